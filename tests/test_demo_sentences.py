"""demo_sentences.py: what the grammar says, what the seed decides, and the lines of a file."""

import hashlib
import itertools
import os
import re
import shutil
import string
import subprocess
from collections import Counter

import pytest

from conftest import REPO
from corpora.demo_sentences import LANGUAGES, make_sentences, read_sentences

MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")
N_SENTENCES = 4900  # of the embedded corpus


def first(n, seed, language="en"):
    return list(itertools.islice(make_sentences(16, 42, seed, language), n))


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


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_sentences_of_other_languages_have_the_letters_that_training_gets(language):
    (letters,) = re.findall(rf"^LETTERS_{language} := (.+)$", MAKEFILE, re.MULTILINE)
    sentences = first(400, 42, language)
    assert len({text.lower() for text in sentences}) == 400
    for text in sentences:
        assert re.fullmatch(r"[\u00bf\u00a1]?[^\W\d_a-z][^{}_|]*[.?!]", text), text
        assert set(text.lower()) <= {*string.ascii_lowercase, *letters, *" .,?!'-\u00bf\u00a1"}, (
            text
        )
        assert "  " not in text and 16 <= len(text) <= 42


def test_make_keeps_the_demos_apart():
    """The system's own LANGUAGE, in the environment, changes nothing."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")

    def folders(*flags, **environment):
        done = subprocess.run(
            ["make", "--dry-run", "demo", *flags], cwd=REPO, env=os.environ | environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return {x.rstrip("/") for x in re.findall(r"(?<![/\w])demo(?:_[a-z]+)*/", done.stdout)}

    assert folders() == folders(LANGUAGE="de_DE:en") == {"demo"}
    assert folders("LANGUAGE=de") == {"demo_de"}
    assert folders("LANGUAGE=de", "PHONEMES=none") == {"demo_de", "demo_de_none"}


def test_n_sentences_takes_the_first_lines_of_a_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\ufeffOne fox.\r\n\r\n  Two foxes. \r\nThree|\r\n", encoding="utf-8")
    assert read_sentences(str(text), 2) == ["One fox.", "Two foxes."]
