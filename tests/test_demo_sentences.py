"""demo_sentences.py: what the grammar says, what the seed decides, and the lines of a file."""

import itertools
import re
import string
from collections import Counter

import pytest

from corpora.demo_sentences import make_sentences, read_sentences, read_slots

N_SENTENCES = 3300  # of the embedded corpus


def first(n, seed):
    return list(itertools.islice(make_sentences(10, 32, seed), n))


@pytest.mark.parametrize("seed", [1, 42])
def test_sentences_are_unique_ordinary_english_of_every_length_letter_and_mark(seed):
    sentences = first(N_SENTENCES, seed)
    assert len({re.sub("[^a-z]", "", text.lower()) for text in sentences}) == N_SENTENCES
    for text in sentences:
        assert re.fullmatch(r"[A-Z][A-Za-z ,;:'-]*[.?!]", text), text
        assert not re.search(r"\ba (?!one)[aeiou]|\ban (?!honest)[^aeiou]", text, re.I), text
    assert {len(text) for text in sentences} == set(range(10, 33))
    counts = Counter("".join(sentences).lower())
    # Once in a hundred sentences is enough to learn a letter's sound.
    assert min(counts[symbol] for symbol in string.ascii_lowercase + ".,?!;:'-") >= 33


def test_sentences_depend_on_the_seed_alone():
    assert first(200, 1) == first(200, 1)
    assert len(set(first(200, 1)) & set(first(200, 2))) < 100


def test_inflections():
    slots = read_slots()
    plurals = dict(
        zip(slots["thing"] + slots["person"], slots["things"] + slots["people"], strict=True)
    )
    pasts = dict(zip(slots["do"] + slots["cook"], slots["did"] + slots["ate"], strict=True))
    for word, plural in ("fox", "foxes"), ("pony", "ponies"), ("key", "keys"), ("knife", "knives"):
        assert plurals[word] == plural
    for word, past in ("hurry", "hurried"), ("joke", "joked"), ("stay", "stayed"), ("run", "ran"):
        assert pasts[word] == past
    assert pasts["sit down"] == "sat down"


def test_n_sentences_takes_the_first_lines_of_a_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\ufeffOne fox.\r\n\r\n  Two foxes. \r\nThree|\r\n", encoding="utf-8")
    assert read_sentences(str(text), 2) == ["One fox.", "Two foxes."]
