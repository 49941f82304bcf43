# ruff: noqa: RUF001
"""A long text in pieces: where it is cut, and that nothing of it is lost."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text.splitting import split_text
from text.tokenizer import Tokenizer

PLAIN = Tokenizer()
CASES = {
    "short enough": ("It rained. We left.", 20, [("It rained. We left.", "paragraph")]),
    "sentences": (
        "Mr. Jones paid $3.50. Was it? It was!", 30,
        [("mister jones paid three", "word"), ("dollars and fifty cents.", "sentence"),
         ("was it?", "sentence"), ("it was!", "paragraph")],
    ),
    "a quotation goes on": (
        '"Is it raining?" she said. "Yes." (He nodded.) So be it.', 26,
        [('"is it raining?" she said.', "sentence"), ('"yes."', "sentence"),
         ("(he nodded.)", "sentence"), ("so be it.", "paragraph")],
    ),
    "clauses": (
        "We went to the shop, then home; nobody saw us.", 24,
        [("we went to the shop,", "clause"), ("then home;", "clause"),
         ("nobody saw us.", "paragraph")],
    ),
    "paragraphs": ("One.\n \nTwo\nlines.\n\n***\n\nThree.", 99,
                   [("One.", "paragraph"), ("Two\nlines.", "paragraph"), ("Three.", "paragraph")]),
    "words, evenly": ("a bc de fg hi jk", 10, [("a bc de", "word"), ("fg hi jk", "paragraph")]),
    "one long word": ("abcdefgh", 5, [("abcd", "word"), ("efgh", "paragraph")]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_where_it_is_cut(name):
    text, max_characters, expected = CASES[name]
    assert [tuple(piece) for piece in split_text(text, PLAIN, max_characters)] == expected


OTHER_SCRIPTS = {  # pieces of at most so many characters
    12: "पहला वाक्य।/दूसरा॥/क्या यह है?",
    16: "यह पहला वाक्य|/यह दूसरा |",
    14: "یہ پہلا ہے۔/کیا وہ ہے؟/ہاں،/یہ بہت اچھا ہے",
    11: "你好，世界。/「走吧！」/他说：10：30；/三、四、五、六。/好的!/再见吗？",
    13: "我说:“你好!”/然后我就走了……/真的是这样吗?",
    9: "Սա մեկ է։/Դա երկու։",
    7: "ሰላም ነው፧/እሺ፣ ደህና",
    18: "Ναι· είναι…/Τι είναι·/είναι καλό.",
    8: "ᠨᠢᠭᠡ᠃/ᠬᠣᠶᠠᠷ᠂",
}


@pytest.mark.parametrize("max_characters", OTHER_SCRIPTS)
@pytest.mark.parametrize("has_signs", [True, False])
def test_other_scripts_are_cut_at_their_own_ends(max_characters, has_signs):
    """Whether the table has the signs or not, and without a space after them."""
    expected = OTHER_SCRIPTS[max_characters].split("/")
    letters = "".join(c for c in "".join(expected) if has_signs or c.isalpha() or c.isnumeric())
    letters += "".join(c for c in "".join(expected) if unicodedata.category(c)[0] == "M")
    tokenizer = Tokenizer(["_", *dict.fromkeys(' .,?!:;"' + letters)], "basic")
    text = "".join(expected) if "你" in letters else " ".join(expected)
    pieces = [piece.text for piece in split_text(text, tokenizer, max_characters)]
    assert pieces == [tokenizer.clean(piece) for piece in expected]


def test_a_word_is_not_cut_before_the_signs_of_its_letters():
    """Scripts without spaces: a sign alone has no letter, and would be dropped."""
    tokenizer = Tokenizer(["_", *"မင်္ဂလာပါ။"], "basic")
    pieces = [piece.text for piece in split_text("မင်္ဂလာပါ။", tokenizer, 8)]
    assert pieces == ["မင်္ဂ", "လာပါ။"]


def test_phonemes_of_a_word_stay_together():
    tokenizer = PLAIN.with_phonemes()
    text = "{HH AH0 L OW1} {W ER1 L D}, {HH AH0 L OW1} {AO1 L}."
    pieces = [piece.text for piece in split_text(text, tokenizer, 10)]
    assert pieces == ["{HH AH0 L OW1} {W ER1 L D},", "{HH AH0 L OW1} {AO1 L}."]
    pieces = [piece.text for piece in split_text(text, tokenizer, 5)]
    assert pieces == ["{HH AH0 L OW1}", "{W ER1 L D},", "{HH AH0 L OW1}", "{AO1 L}."]


@given(st.text("abc .,;?!-\n\"'()1", max_size=120), st.integers(3, 40))
def test_nothing_is_lost_and_no_piece_is_too_long(text, max_characters):
    pieces = [piece.text for piece in split_text(text, PLAIN, max_characters)]

    def letters(*texts):
        return re.sub("[^a-z]", "", "".join(map(PLAIN.clean, texts)))

    assert letters(*pieces) == letters(*re.split(r"\n\s*\n", text))
    assert all(len(PLAIN.encode(piece)) <= max_characters for piece in pieces)
