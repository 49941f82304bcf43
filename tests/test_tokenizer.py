"""Text to token ids and back, in tables of any language: text/tokenizer.py."""

import string
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from text.tokenizer import DEFAULT_SYMBOLS, PAD, Tokenizer

KNOWN = "".join(DEFAULT_SYMBOLS[1:])
LATIN = string.ascii_lowercase + " "
tokenizer = Tokenizer()


@given(st.text())
def test_any_text_is_encoded_without_its_unknown_characters_or_refused(text):
    cleaned = tokenizer.clean(text)
    kept = "".join(character for character in cleaned if character in KNOWN)
    if set(kept) & set(string.ascii_lowercase):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == kept
        assert tokens.min() > 0 and tokens.max() < tokenizer.vocab_size
    else:
        with pytest.raises(ValueError, match="no letter"):
            tokenizer.encode(text)
    assert set(tokenizer.unknown_characters(text)) == set(cleaned) - set(KNOWN)


def test_ids_are_positions_in_the_table_and_0_is_padding():
    assert tokenizer.pad_token_id == 0 and tokenizer.symbols[0] == PAD
    assert tokenizer.vocab_size == len(DEFAULT_SYMBOLS) == 39
    tokens = tokenizer.encode("az !")
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [DEFAULT_SYMBOLS.index(character) for character in "az !"]
    assert tokenizer.decode([0, *tokens.tolist(), 0]) == tokenizer.decode(tokens) == "az !"
    assert Tokenizer(["_", "b", "a"]).encode("ab").tolist() == [2, 1]


def test_unknown_characters_are_left_out_and_named():
    text = "snow \u2603 and \U0001f600\U0001f600 and \u4e2d\u6587 \u2603"
    assert tokenizer.unknown_characters(text) == "\u2603\U0001f600\u4e2d\u6587"
    assert tokenizer.decode(tokenizer.encode(text)) == "snow  and  and  "
    describe = tokenizer.describe_unknown
    line = describe(["two \u2603\u2603", "\u2603 and \u4e2d", "Plain, caf\u00e9!", "\u200b"])
    assert line.endswith(" of 3 of 4 clips: '\u2603' in 2, '\u4e2d' in 1, '\\u200b' in 1")
    assert describe(["Plain, 1465 \u2014 caf\u00e9!"]) == "" == describe([])
    many = describe("".join(map(chr, range(0x4E00, 0x4E00 + 10_000))))
    assert many.endswith("and 9,980 more") and len(many) < 400


@pytest.mark.parametrize(
    ("text", "letters"),
    [("", ""), (" \n", ""), ("...", ""), ("\0", ""),
     ("\u041f\u0440\u0438, \u043f", "\u043f\u0440\u0438"),
     ("\u4e2d!" * 9 + "".join(map(chr, range(0x4e2e, 0x4e60))),
      "".join(map(chr, range(0x4e2d, 0x4e41))))],
)  # fmt: skip
def test_text_without_a_letter_is_refused_in_one_sentence(text, letters):
    """The first 20 letters that have no symbol are named."""
    with pytest.raises(ValueError) as refusal:
        tokenizer.encode(text)
    what = f"that a symbol stands for, only {letters!r}" if letters else "to speak"
    assert str(refusal.value) == f"text has no letter {what}: {text!r}"


@pytest.mark.parametrize(
    ("symbols", "reason"),
    [
        (["_", "a", "b", "a"], "symbols must be unique, found twice: a"),
        (["_", 7], "symbols must be a list of at least two strings, found"),
    ],
)
def test_a_table_that_is_none_is_refused(symbols, reason):
    with pytest.raises(ValueError, match=reason):
        Tokenizer(symbols)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("table", "text", "kept"),
    [
        (LATIN + "äöüßÄÖÜ" + LATIN.upper().strip(), "Ärger, schöne Grüße", "Ärger schöne Grüße"),
        (LATIN.upper() + "ÄÖÜ", "Schöne Grüße 5", "SCHÖNE GRÜSSE FIVE"),
        (LATIN + LATIN.upper().strip() + ".", "Dr. Smith, st. 1ST", "Doctor Smith saint first"),
        ("абвгдежзиклмнопрстуфхцчшщъыьэюя ", "Мой йод", "мои иод"),
        ("αβγδεζηθικλμνοπρσςτυφχψω ", "ΟΔΟΣ ΣΟΣ", "οδος σος"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
        ("\u0915\u0921\u095c", "\u0915\u095c", "\u0915\u095c"),  # NFC takes U+095C apart
        (LATIN + string.digits, "Room 5, 1465", "room 5 1465"),
    ],
)
def test_what_is_in_the_table_is_kept_and_only_the_rest_is_made_plain(table, text, kept, form):
    own = Tokenizer([PAD, *table])
    tokens = own.encode(unicodedata.normalize(form, text))
    assert own.decode(tokens) == kept
    assert tokens.tolist() == [1 + table.index(character) for character in kept]


@given(
    st.sets(
        st.characters(categories=["Lu", "Ll", "Lt", "Lo"]).filter(
            lambda c: (
                len(unicodedata.normalize("NFC", c)) > 1 or unicodedata.is_normalized("NFC", c)
            )
        ),
        min_size=1,
    ),
    st.data(),
)
def test_a_text_of_the_tables_own_letters_comes_back_whole(letters, data):
    own = Tokenizer([PAD, *sorted(letters)])
    text = "".join(data.draw(st.lists(st.sampled_from(sorted(letters)), min_size=1)))
    for form in ("NFC", "NFD"):
        same_text = unicodedata.normalize(form, text)
        assert own.decode(own.encode(same_text)) == text
        assert own.unknown_characters(same_text) == ""


# ---------------------------------------------------------------- other languages than English


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Ma\u0308dchen  und\tGru\u0308ße", "mädchen und grüße"),
        ("„Ja“ \u2013 sagt\u2019s … »so«", '"ja" - sagt\'s ... "so"'),
        ("Café à la Zoë, Łódź", "cafe a la zoe, lodz"),
        ("z. B. Dr. No, St. Pauli, die NASA", "z. b. dr. no, st. pauli, die nasa"),
        ("¿Qué?", "¿que?"),
    ],
)
def test_the_cleaner_basic_leaves_english_out(text, cleaned):
    german = Tokenizer([*DEFAULT_SYMBOLS, *"äöüß"], "basic")
    assert german.clean(text) == cleaned


@pytest.mark.parametrize("cleaner", ["english", "basic"])
def test_letters_that_become_others_are_named(cleaner):
    own = Tokenizer(cleaner=cleaner)
    assert own.folded_letters("Ärger, Ma\u0308dchen, Straße") == {"ä": "a", "ß": "ss"}
    assert own.folded_letters("q\u0303 中 Ж é — “5”") == {"\u0303": "", "é": "e"}
    line = own.describe_folded(["Ärger, Mädchen", "Plain.", "schöne Mädchen"])
    assert line.endswith(" in 2 of 3 clips: 'ä' as 'a' in 2, 'ö' as 'o' in 1")
    assert own.describe_folded(["Plain “text”, 5 ½ — 20 °C"]) == ""
    assert own.with_characters("äöüß").describe_folded(["schöne Grüße"]) == ""


def test_more_characters_come_at_the_end_once_and_in_the_case_of_the_table():
    basic = Tokenizer(cleaner="basic").with_characters("Ä ö\u00a0o\u0308 äß a")
    assert basic.symbols == (*DEFAULT_SYMBOLS, "ä", "ö", "ß")
    assert basic.with_characters("ßÄ") is basic
    assert basic.cleaner == basic.with_phonemes().cleaner == "basic"
    capitals = Tokenizer([*DEFAULT_SYMBOLS, *"ABC"]).with_characters("Ä")
    assert capitals.symbols[-1] == "Ä"


def test_turkish_has_two_letters_i():
    """A table with the dotless one has both, whatever the case of what is typed."""
    turkish = Tokenizer(cleaner="basic").with_characters("ÇĞIİÖŞÜ")
    assert turkish.known >= set("çğ\u0131iöşü") and "\u0307" not in turkish.known
    assert turkish.clean("ISPARTA'DA İYİ IŞIK") == "\u0131sparta'da iyi \u0131ş\u0131k"
    assert turkish.folded_letters("İYİ IŞIK") == {}
    assert Tokenizer(cleaner="basic").clean("I am") == "i am"
