"""text/cleaning.py and text/numbers.py: what people type, and the words that are read aloud.

The pairs of text and words are in normalized_text.tsv; a line that begins with ## is a heading, and
\\u with four figures is a character that cannot be seen.
"""

import re
import string
import time
from itertools import islice
from pathlib import Path

import pytest

from corpora.demo_sentences import make_sentences
from text.cleaning import is_pronounceable
from text.tokenizer import DEFAULT_SYMBOLS, PAD, Tokenizer, clean_text

LINES = Path(__file__).with_name("normalized_text.tsv").read_text(encoding="utf-8").splitlines()
PAIRS = [
    re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), line).split("\t")
    for line in LINES
    if not line.startswith("## ")
]


@pytest.mark.parametrize(("text", "words"), PAIRS)
def test_what_people_type_becomes_the_words_that_are_read_aloud(text, words):
    assert clean_text(text) == words


def test_the_table_is_large_and_its_words_are_in_the_alphabet():
    texts, words = zip(*PAIRS, strict=True)
    assert len(set(texts)) == len(PAIRS) >= 200
    assert set("".join(words)) <= set(DEFAULT_SYMBOLS)


@pytest.mark.parametrize("words", [words for _, words in PAIRS])
def test_words_are_not_changed_any_more(words):
    assert clean_text(words) == words


@pytest.mark.parametrize(
    "row",
    [
        "in being comparatively modern.",
        "April twenty-eight, nineteen thirty-five.",
        "On the eighth of June, eighteen forty-five, two hundred and six were counted;",
        'he said, "I never saw it" -- and that was all.',
        "Oswald's rifle; the prisoners' side: at twelve:fifty-four",
        "Is it so? No. I would not. Yes, no.",
        "the forty-third President (as he then was) of the United States!",
        "I saw one third of the half-crown, two hundred dollars and ten percent.",
        "a penny-a-line man, who wrote no. He was a gen of the art",
        "of felons' side. six. The cap was third c forty-six,",
    ],
)
def test_a_normalised_transcript_loses_only_its_capitals(row):
    assert clean_text(row) == row.lower()


@pytest.mark.parametrize(
    ("row", "cleaned"),
    [
        ("M\u00fcller, habitu\u00e9 and bric-\u00e0-brac", "muller, habitue and bric-a-brac"),
        ("the \u201cbolting\u201d of [Oswald]", 'the "bolting" of (oswald)'),
        ("Mr. Owen and Mrs. Fry", "mister owen and missus fry"),
        ("the Rev. W. Bailey, LL.D., Ordinary", "the reverend w bailey, l l d, ordinary"),
        ("Dr. Robert N. McClelland", "doctor robert n mcclelland"),
        ("St. James's and the St. Sepulchre bell", "saint james's and the saint sepulchre bell"),
        ("Rea and Co., of Western Cartridge Co. of East", "rea and company, of western cartridge "
         "company of east"),
        ("at one:forty-five a.m., two p.m.", "at one:forty-five a m, two p m."),
        ("the U.S.S.R. and the U.S. Embassy", "the u s s r and the u s embassy"),
        ("The FBI, CIA and FPCC; P.S. M.P.'s", "the f b i, c i a and f p c c; p s m p's"),
        ("in I. O. U. for it, etc. away, i.e., so", "in i o u for it, et cetera away, i e, so"),
        ("Folsom, Jr.", "folsom, junior."),
    ],
)  # fmt: skip
def test_of_a_normalised_transcript_accents_quotes_and_abbreviations_change(row, cleaned):
    assert clean_text(row) == cleaned


def test_sentences_in_capitals_are_not_spelled():
    for sentence in islice(make_sentences(min_chars=12, max_chars=60, seed=3), 500):
        assert clean_text(sentence.upper()) == clean_text(sentence) == sentence.lower()


@pytest.mark.parametrize("word", ["nasa", "depth", "yacht", "queue", "john", "czech", "burnt"])
def test_syllables_of_words(word):
    assert is_pronounceable(word)


@pytest.mark.parametrize("word", ["fbi", "tv", "www", "html", "bbc", "kgb", "cpu", "nth", "io"])
def test_syllables_that_words_do_not_have(word):
    assert not is_pronounceable(word)


def test_a_table_with_capitals_keeps_words_in_capitals():
    tokenizer = Tokenizer([PAD, *" .", *string.ascii_letters])
    assert tokenizer.clean("The FBI of Henry VIII paid $5.") == (
        "The FBI of Henry VIII paid five dollars."
    )


def test_a_table_with_figures_keeps_them():
    tokenizer = Tokenizer([PAD, *" .-", *string.ascii_lowercase, *string.digits])
    text = "No. 5, 1990s and 10-20 in the U.S. in Nov. 1963"
    assert tokenizer.clean(text) == "number 5, 1990s and 10-20 in the u s in november 1963"


def test_signs_have_no_english_name_in_another_alphabet():
    tokenizer = Tokenizer([PAD, *" абвгдежзийклмнопрстуфхцчшщъыьэюя"])
    assert tokenizer.clean("и & да") == "и & да"
    assert tokenizer.unknown_characters("и & да + @") == "&+@"


def test_signs_of_the_table_are_kept():
    tokenizer = Tokenizer([PAD, *" &%'", *string.ascii_lowercase])
    assert tokenizer.clean("R & D, 50 % + b") == "r & d, fifty percent plus b"


@pytest.mark.parametrize(
    "unit",
    ["A.", "a@", "1-", "1/", "1 1 ", "+1 ", "1.1", "$", "'5", "x1", "www.", "FBI ", "Co. \n", "10:",
     "\u00bd", "1\u2013", "555-", "a-", "(1", "1^", "-5 ", "U.S. ", "a.b@", " ", "1 1/2 "],
)  # fmt: skip
def test_the_time_grows_with_the_length_of_the_text(unit):
    text = "a " + unit * (10_000 // len(unit))
    start = time.process_time()
    clean_text(text)
    assert time.process_time() - start < 3.0
