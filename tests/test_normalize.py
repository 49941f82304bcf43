"""What people type becomes the words that are read aloud: cleaning.py, english.py, numbers.py.

The pairs of text and words are in normalized_text.tsv; a line that begins with ## is a heading, and
\\u with four figures is a character that cannot be seen.
"""

import re
import string
import time
from pathlib import Path

import pytest

from text.markup import strip_markup
from text.tokenizer import DEFAULT_SYMBOLS, PAD, Tokenizer

LINES = Path(__file__).with_name("normalized_text.tsv").read_text(encoding="utf-8").splitlines()
PAIRS = [
    re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), line).split("\t")
    for line in LINES
    if not line.startswith("## ")
]
clean = Tokenizer().clean


def test_text_becomes_words_that_cleaning_leaves_alone():
    assert len({text for text, _ in PAIRS}) == len(PAIRS) >= 390
    assert [(text, clean(text)) for text, _ in PAIRS] == [(text, words) for text, words in PAIRS]
    assert [clean(words) for _, words in PAIRS] == [words for _, words in PAIRS]
    assert set("".join(words for _, words in PAIRS)) <= set(DEFAULT_SYMBOLS)


MARKUP = {  # / between paragraphs
    "1. a\n   - b\n2. c": "one. a/b/two. c",
    "- a\n\u25e6 b": "a/b",
    "a | b\n--- | ---\nc | ": "a, b/c",
    "[![a](b.svg)](https://c.d) [e](<f g> 'h') ![i][j]": "a e i",
    "```a``` ``b`c`` d**e**f g\\\nh": "a b'c def g h",
    "> [!NOTE]\n> a": "note. a",
    "if a<b and c>d then": "if a less than b and c greater than d then",
}


@pytest.mark.parametrize("text", MARKUP)
def test_marks_of_markdown_are_not_read(text):
    paragraphs = re.split(r"\n\s*\n", strip_markup(text)[0])
    assert "/".join(filter(None, map(clean, paragraphs))) == MARKUP[text]


def test_long_numbers_are_read_figure_by_figure():
    for number in ("9" * 400, "9" * 400 + ".5", "$" + "9" * 400 + ".25"):
        assert clean(number).split()[:400] == ["nine"] * 400
    figures = "1234567891" * 3
    assert len(clean(f"0.{figures}").split()) == 2 + len(figures)
    assert clean("9" * 20 + "th") == " ".join(["nine"] * 20) + "th"


@pytest.mark.parametrize(
    ("table", "text", "cleaned"),
    [
        (" ." + string.ascii_letters, "The FBI of Henry VIII paid $5.",
         "The FBI of Henry the eighth paid five dollars."),
        (" .-" + string.ascii_lowercase + string.digits,
         "No. 5, 1990s and 10-20 in the U.S. in Nov. 1963 by Henry VIII",
         "number 5, 1990s and 10-20 in the u s in november 1963 by henry the 8th"),
        (" абвгдежзийклмнопрстуфхцчшщъыьэюя", "И & да", "и & да"),
        (" &%'" + string.ascii_lowercase, "R & D, 50 % + b", "r & d, fifty percent plus b"),
    ],
)  # fmt: skip
def test_what_the_table_of_symbols_has_is_kept(table, text, cleaned):
    """Capitals, figures and signs; another alphabet has no letters for the names of signs."""
    assert Tokenizer([PAD, *table]).clean(text) == cleaned


@pytest.mark.parametrize(
    "unit",
    ["A.", "a@", "1-", "1/", "1 1 ", "+1 ", "1.1", "$", "www.", "FBI ", "U.S. ", " ", "111,",
     "www.b.com/" + "a" * 40 + "qj "],
)  # fmt: skip
def test_the_time_grows_with_the_length_of_the_text(unit):
    text = "a " + unit * (10_000 // len(unit))
    start = time.process_time()
    clean(text)
    assert time.process_time() - start < 3.0
