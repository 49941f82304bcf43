"""Tests of text/tokenizer.py: what text becomes before the model sees it, and the way back."""

import string
import time
import unicodedata

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from convert_checkpoint import SYMBOLS
from text.cleaning import ABBREVIATIONS, BEFORE_NUMBERS
from text.tokenizer import DEFAULT_SYMBOLS, PAD, Tokenizer, clean_text

KNOWN = "".join(DEFAULT_SYMBOLS[1:])
PUNCTUATION = KNOWN.replace(string.ascii_lowercase, "").replace(" ", "")


def has_letter(text: str) -> bool:
    return any(character in string.ascii_lowercase for character in text)


@given(st.text(alphabet=KNOWN + string.ascii_uppercase + string.digits + "$%&\n\t", min_size=1))
def test_cleaned_text_survives_encode_and_decode_unchanged(text):
    cleaned = clean_text(text)
    assume(has_letter(cleaned) and not set(cleaned) - set(KNOWN))
    tokenizer = Tokenizer()
    assert tokenizer.decode(tokenizer.encode(cleaned)) == cleaned
    assert tokenizer.decode(tokenizer.encode(text)) == cleaned


@given(st.text())
def test_any_text_is_encoded_without_its_unknown_characters_or_refused(text):
    tokenizer = Tokenizer()
    cleaned = clean_text(text)
    kept = "".join(character for character in cleaned if character in KNOWN)
    if has_letter(kept):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == kept
        assert tokens.min() > 0 and tokens.max() < tokenizer.vocab_size
    else:
        with pytest.raises(ValueError, match="no letter"):
            tokenizer.encode(text)
    assert set(tokenizer.unknown_characters(text)) == set(cleaned) - set(KNOWN)


def test_ids_are_positions_in_the_table_and_0_is_padding():
    tokenizer = Tokenizer()
    assert tokenizer.pad_token_id == 0 and tokenizer.symbols[0] == PAD
    assert tokenizer.vocab_size == len(DEFAULT_SYMBOLS) == 39
    tokens = tokenizer.encode("az !")
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [DEFAULT_SYMBOLS.index(character) for character in "az !"]
    assert Tokenizer(["_", "b", "a"]).encode("ab").tolist() == [2, 1]


def test_decode_gives_one_character_for_a_letter_and_its_accent():
    """However the table writes them: pictures have one label for each token."""
    tokenizer = Tokenizer(["<pad>", "c", "a", "f", "e\u0301"])
    tokens = tokenizer.encode("caf\u00e9")
    assert len(tokens) == 4 and tokenizer.decode(tokens) == "caf\u00e9"


def test_decode_leaves_padding_out_and_takes_lists_and_tensors():
    tokenizer = Tokenizer()
    tokens = tokenizer.encode("hi there").tolist()
    assert tokenizer.decode([0, *tokens, 0, 0]) == "hi there"
    assert tokenizer.decode(torch.tensor([*tokens, 0])) == "hi there"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Printing, in 1465", "printing, in fourteen sixty-five"),
        ("HELLO World", "hello world"),
        ("Café Zoë, naïve façade", "cafe zoe, naive facade"),
        ("Stra\u00dfe STRA\u1e9eE", "strasse strasse"),
        ("\u00c6sop \u0152uvre \u0141\u00f3d \u00d8re", "aesop oeuvre lod ore"),
        ("\u201cIt\u2019s\u201d \u2014 yes\u2026", "\"it's\" - yes..."),
        ("\u00abno\u00bb [so] {it} goes", '"no" (so) (it) goes'),
        ("\ufb01ne of\ufb01ce", "fine office"),
        ("Mr. and Mrs. Smith", "mister and missus smith"),
        ("DR. X, Capt. Y, Lt. Z, Col. A", "doctor x, captain y, lieutenant z, colonel a"),
        ("Maj. B, Gen. C, Sgt. D, Rev. E", "major b, general c, sergeant d, reverend e"),
        ("St. Jr. Sr. Hon. Esq.", "saint junior senior honorable esquire."),
        ("Co. Ltd. Ft. Worth", "company limited fort worth"),
        ("the first. mist. drawn", "the first. mist. drawn"),
        ("mr smith", "mr smith"),
        ("this & that/other", "this and that other"),
        ("5% off", "five percent off"),
    ],
)  # fmt: skip
def test_clean_text_of_words(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("1900", "nineteen hundred"),
        ("1905", "nineteen oh-five"),
        ("2024.", "twenty twenty-four."),
        ("1000", "one thousand"),
        ("2005", "two thousand and five"),
        ("2000", "two thousand"),
        ("1,465", "one thousand, four hundred and sixty-five"),
        ("10,000", "ten thousand"),
        ("1,000,000", "one million"),
        ("0", "zero"),
        ("007", "zero zero seven"),
        ("3.14", "three point one four"),
        ("0.5", "zero point five"),
        ("2.50", "two point five"),
        ("0.05", "zero point zero five"),
        ("1,2345", "one,twenty-three forty-five"),
        ("-5", "minus five"),
        ("1841, 1842", "eighteen forty-one, eighteen forty-two"),
        ("1841,1842", "eighteen forty-one,eighteen forty-two"),
        ("1,2,3", "one,two,three"),
        ("1st 2nd 3rd 21st", "first second third twenty-first"),
        ("1,000th", "one thousandth"),
        ("$1", "one dollar"),
        ("$1.00", "one dollar"),
        ("$5, please", "five dollars, please"),
        ("$2.5", "two point five dollars"),
        ("$1465", "one thousand, four hundred and sixty-five dollars"),
        ("\u00a31,000,000", "one million pounds"),
        ("\u20ac 20", "twenty euros"),
        ("x\u00b2", "x squared"),
        ("1\u00bd", "one and a half"),
        ("\u0661\u0669\u0668\u0664", "nineteen eighty-four"),
    ],
)
def test_clean_text_of_numbers(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize("number", ["9" * 400, "9" * 400 + ".5", "$" + "9" * 400 + ".25"])
def test_numbers_too_long_for_words_are_read_figure_by_figure(number):
    assert clean_text(number).split()[:400] == ["nine"] * 400


def test_a_long_decimal_keeps_all_its_figures():
    figures = "1234567891" * 3
    assert len(clean_text(f"0.{figures}").split()) == 2 + len(figures)


def test_an_ordinal_of_many_figures_is_not_cut_short():
    assert clean_text("9" * 20 + "th") == " ".join(["nine"] * 20) + "th"


@pytest.mark.parametrize(
    "space", [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2028", "\u2029", "\u0085", "\u3000", "\v"]
)
def test_any_whitespace_becomes_one_space(space):
    assert clean_text(f"{space}one{space}two{space}") == "one two"


def test_a_line_says_which_characters_are_left_out_of_how_many_texts():
    describe = Tokenizer().describe_unknown
    line = describe(["two \u2603\u2603", "\u2603 and \u4e2d", "Plain, caf\u00e9!", "\u200b"])
    assert line.endswith(" of 3 of 4 clips: '\u2603' in 2, '\u4e2d' in 1, '\\u200b' in 1")
    assert describe(["Plain, 1465 \u2014 caf\u00e9!"]) == "" == describe([])
    many = describe("".join(map(chr, range(0x4E00, 0x4E00 + 10_000))))
    assert many.endswith("and 9,980 more") and len(many) < 400


def test_unknown_characters_are_named_once_in_order_and_left_out():
    tokenizer = Tokenizer()
    text = "snow \u2603 and \U0001f600\U0001f600 and \u4e2d\u6587 \u2603"
    assert tokenizer.unknown_characters(text) == "\u2603\U0001f600\u4e2d\u6587"
    assert tokenizer.decode(tokenizer.encode(text)) == "snow  and  and  "
    assert tokenizer.unknown_characters("Plain, text: 1465 \u2014 caf\u00e9!") == ""


@pytest.mark.parametrize(
    ("text", "letters"),
    [*((text, "") for text in ("", "   ", "\n", "...", "?!", "\U0001f600", "\0")),
     ("\u4e2d\u6587", "\u4e2d\u6587"), ("\u041f\u0440\u0438, \u043f", "\u043f\u0440\u0438"),
     ("\u4e2d!" * 9 + "".join(map(chr, range(0x4e2e, 0x4e60))),
      "".join(map(chr, range(0x4e2d, 0x4e41))))],
)  # fmt: skip
def test_text_without_a_letter_is_refused_in_one_sentence(text, letters):
    """Letters that no symbol stands for are named, the first 20."""
    with pytest.raises(ValueError) as refusal:
        Tokenizer().encode(text)
    what = f"that a symbol stands for, only {letters!r}" if letters else "to speak"
    assert str(refusal.value) == f"text has no letter {what}: {text!r}"


def test_the_refusal_of_a_long_text_stays_short():
    with pytest.raises(ValueError) as refusal:
        Tokenizer().encode("." * 10_000)
    assert len(str(refusal.value)) < 150


@pytest.mark.parametrize("symbols", [["_", "a", "b", "a"], ["a", "a"], [PAD, *"abc", PAD]])
def test_a_symbol_that_occurs_twice_is_refused(symbols):
    with pytest.raises(ValueError, match="unique"):
        Tokenizer(symbols)


@pytest.mark.parametrize("symbols", [[], ["_"]])
def test_a_table_without_a_character_is_refused(symbols):
    with pytest.raises(ValueError, match="symbols must hold"):
        Tokenizer(symbols)


def test_symbols_of_several_characters_keep_their_ids_and_are_never_produced():
    tokenizer = Tokenizer(["_", "a", "h", "@AH", "@a", "ah", "@"])
    assert tokenizer.encode("ah @ah").tolist() == [1, 2, 6, 1, 2]
    assert tokenizer.decode([3, 1]) == "@AHa"


def test_a_padding_symbol_of_one_character_is_never_produced():
    tokenizer = Tokenizer(["_", *"ab"])
    assert tokenizer.encode("a_b").tolist() == [1, 2]
    assert tokenizer.unknown_characters("a_b") == "_"


LATIN = string.ascii_lowercase + " "


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("table", "text", "kept"),
    [
        (LATIN + "äöüß", "Schöne Grüße", "schöne grüße"),
        (LATIN + "äöüßÄÖÜ" + LATIN.upper().strip(), "Ärger, schöne Grüße", "Ärger schöne Grüße"),
        (LATIN.upper() + "ÄÖÜ", "Schöne Grüße 5", "SCHÖNE GRÜSSE FIVE"),
        (LATIN + "é", "Café ZOË", "café zoe"),
        (LATIN + LATIN.upper().strip() + ".", "Dr. Smith, st. 1ST", "Doctor Smith saint first"),
        ("абвгдежзийклмнопрстуфхцчшщъыьэюя ", "Мой йод", "мой йод"),
        ("абвгдежзиклмнопрстуфхцчшщъыьэюя ", "Мой йод", "мои иод"),
        ("αβγδεζηθικλμνοπρσςτυφχψω ", "ΟΔΟΣ ΣΟΣ", "οδος σος"),
        ("かがきぎ", "かがき", "かがき"),
        ("かき", "かがき", "かかき"),
        ("カガ", "ｶｶﾞ", "カガ"),
        ("안녕하세요", "안녕하세요", "안녕하세요"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
        ("\u0915\u0921\u095c", "\u0915\u095c", "\u0915\u095c"),  # NFC takes U+095C apart
        ("一二三人", "三人", "三人"),
        (LATIN + string.digits, "Room 5, 1465", "room 5 1465"),
        (LATIN + "\u0301", "é", "e\u0301"),
        (LATIN + "&\u2019", "Q&A isn\u2019t", "q&a isn\u2019t"),
    ],
)  # fmt: skip
def test_what_is_in_the_table_is_kept_and_only_the_rest_is_made_plain(table, text, kept, form):
    tokenizer = Tokenizer([PAD, *table])
    tokens = tokenizer.encode(unicodedata.normalize(form, text))
    assert tokenizer.decode(tokens) == kept
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
    tokenizer = Tokenizer([PAD, *sorted(letters)])
    text = "".join(data.draw(st.lists(st.sampled_from(sorted(letters)), min_size=1)))
    for form in ("NFC", "NFD"):
        same_text = unicodedata.normalize(form, text)
        assert tokenizer.decode(tokenizer.encode(same_text)) == text
        assert tokenizer.unknown_characters(same_text) == ""


def test_a_letter_may_be_written_in_the_table_as_two_characters():
    symbols = [PAD, "a", "a\u0308", "b"]
    assert Tokenizer(symbols).encode("Bäa\u0308a").tolist() == [3, 2, 2, 1]
    assert Tokenizer([*symbols, "ä"]).encode("ä").tolist() == [2], "the first of two spellings"


def test_the_tables_of_other_models_go_on_lower_casing():
    """NVIDIA's has capitals, but its cleaner leaves none; in torchaudio's they are phonemes."""
    for size in (38, 148):
        tokenizer = Tokenizer(SYMBOLS[size])
        assert tokenizer.decode(tokenizer.encode("Dr. Zoë, 5")) == "doctor zoe, five"
    with pytest.raises(ValueError, match="no letter"):
        Tokenizer(SYMBOLS[96]).encode("BIG DOG")


@given(
    st.lists(st.text(alphabet=string.ascii_lowercase, min_size=2, max_size=9), min_size=1),
    st.data(),
)
def test_plain_text_keeps_its_length(words, data):
    assume(not set(words) & {*ABBREVIATIONS, *BEFORE_NUMBERS})
    words = [word.capitalize() if data.draw(st.booleans()) else word for word in words]
    marks = data.draw(
        st.lists(st.sampled_from(["", *PUNCTUATION]), min_size=len(words), max_size=len(words))
    )
    text = " ".join(word + mark for word, mark in zip(words, marks, strict=True))
    assert clean_text(text) == text.lower()
    assert len(Tokenizer().encode(text)) == len(text)


@pytest.mark.parametrize(
    "unit", ["Hello, world. ", "1", "1,", "$1.5 ", "111,", "Dr. ", "1,,", "1."]
)
def test_ten_thousand_characters_are_cleaned_quickly(unit):
    text = "a " + unit * (10_000 // len(unit))
    start = time.process_time()
    n_tokens = len(Tokenizer().encode(text))
    assert n_tokens >= 9_000
    assert time.process_time() - start < 5.0
