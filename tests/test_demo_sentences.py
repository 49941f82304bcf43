"""demo_sentences.py: what the grammar says, what the seed decides, and the lines of a file."""

import hashlib
import itertools
import re
import string
from collections import Counter

import pytest

from corpora.demo_sentences import make_sentences, read_sentences

N_SENTENCES = 4900  # of the embedded corpus


def first(n, seed):
    return list(itertools.islice(make_sentences(16, 42, seed), n))


def test_sentences_are_unique_ordinary_english_of_every_length_letter_and_mark():
    sentences = first(N_SENTENCES, 42)
    assert len({re.sub("[^a-z]", "", text.lower()) for text in sentences}) == N_SENTENCES
    for text in sentences:
        assert re.fullmatch(r"[A-Z][A-Za-z ,;:'-]*[.?!]", text), text
        assert not re.search(r"\ba (?!one)[aeiou]|\ban (?!honest|hour)[^aeiou]", text, re.I), text
    assert {len(text) for text in sentences} == set(range(16, 43))
    counts = Counter("".join(sentences).lower())
    # Once in a hundred sentences is enough to learn a letter's sound.
    assert min(counts[symbol] for symbol in string.ascii_lowercase + ".,?!;:'") >= 33


@pytest.mark.parametrize(
    ("min_chars", "max_chars", "digest"),
    [(16, 42, "c93dd2a55be645f0"), (12, 187, "34deb0f693cfb9a7")],
)
def test_the_corpus_of_the_demo_does_not_change(min_chars, max_chars, digest):
    """Scores of trained models are compared across versions of this repo."""
    sentences = list(itertools.islice(make_sentences(min_chars, max_chars, 42), 500))
    assert hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16] == digest
    assert len(set(sentences) & set(first(500, 1))) < 100, "another seed, other sentences"


def test_n_sentences_takes_the_first_lines_of_a_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\ufeffOne fox.\r\n\r\n  Two foxes. \r\nThree|\r\n", encoding="utf-8")
    assert read_sentences(str(text), 2) == ["One fox.", "Two foxes."]
