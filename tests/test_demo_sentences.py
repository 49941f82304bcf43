"""demo_sentences.py: what the grammar says, what the seed decides, and the lines of a file."""

import itertools
import re
import string
from collections import Counter

from demo_sentences import make_sentences, read_sentences, read_slots


def test_sentences_are_unique_ordinary_english_of_the_asked_length():
    sentences = list(itertools.islice(make_sentences(10, 32, seed=42), 3300))
    assert len({re.sub("[^a-z]", "", text.lower()) for text in sentences}) == 3300
    for text in sentences:
        assert 10 <= len(text) <= 32
        assert re.fullmatch(r"[A-Z][A-Za-z ,;:'-]*[.?!]", text), text
        assert not re.search(r"\ba (?!one)[aeiou]|\ban (?!honest)[^aeiou]", text, re.I), text
    for length in range(10, 33):
        assert sum(len(text) == length for text in sentences) >= 20


def test_sentences_cover_every_letter_and_mark():
    sentences = list(itertools.islice(make_sentences(10, 32, seed=42), 3300))
    counts = Counter("".join(sentences).lower())
    assert min(counts[letter] for letter in string.ascii_lowercase) >= 150
    assert min(counts[mark] for mark in ".,?!;:'-") >= 50
    words = Counter(re.findall(r"[a-z'-]+", " ".join(sentences).lower()))
    assert len(words) > 800
    assert sum(n >= 3 for n in words.values()) > 0.85 * len(words)  # few only once or twice
    bigrams = Counter(a + b for a, b in itertools.pairwise("".join(sentences).lower()))
    assert sum(n for pair, n in bigrams.items() if n < 5) < 0.02 * bigrams.total()


def test_sentences_depend_on_the_seed_alone_and_suffice_for_ljspeechs_size():
    def first(n, seed):
        return list(itertools.islice(make_sentences(10, 32, seed), n))

    assert first(200, 1) == first(200, 1)
    assert len(set(first(200, 1)) & set(first(200, 2))) < 20
    assert len(first(13_100, 42)) == 13_100


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
