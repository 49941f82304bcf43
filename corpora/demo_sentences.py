"""Make the sentences that make_demo_corpus.py speaks: a seeded grammar's, or the lines of a file.

    next(make_sentences(min_chars=10, max_chars=32, seed=42))   # "A monkey washed a sticky door."
    make_sentences(min_chars=12, max_chars=187, seed=42)        # as long as LJSpeech's
    read_sentences("book.txt", n_sentences=None)                # its lines, checked

demo_grammar.ini has the words, and the templates that they fill. A sentence of more than
LONGEST_SENTENCE characters is several parts joined, with quotes, years and numbers in words.
"""

import random
import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

from command_line.files import DataError, file_errors
from corpora.texts import read_text

GRAMMAR = Path(__file__).with_name("demo_grammar.ini")
LENGTH_SLACK = 2  # characters by which a sentence may miss the drawn length
LONGEST_SENTENCE = 40  # characters; longer ones are joined
JOINS = (", and ", ", and ", ", but ", ", so ", ", while ", ", because ", "; ", "; ", ". ", ". ")
GIVE_UP_AFTER = 5_000  # draws in a row without a new sentence: the grammar is exhausted
# A word as it is spoken, with its apostrophes and hyphens: "we'll", "brand-new".
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
REPEATABLE = {"a", "an", "are", "is", "it", "the", "was"}  # no sentence has another word twice

Slots = dict[str, list[str]]  # the words and templates that fill each slot of a template


def inflect(word: str, ending: str) -> str:
    """Return the plural (ending "s") or past (ending "d") of "word" or "word/irregular"."""
    base, _, irregular = word.partition("/")
    if ending == "d":
        ending = "d" if base.endswith("e") else "ed"
    elif re.search("(s|x|z|ch|sh|[^aeiou]y)$", base):
        ending = "es"
    return irregular or re.sub("([^aeiou])y$", r"\1i", base) + ending


def read_grammar() -> Slots:
    """Read the words and templates that can fill each slot of a template."""
    grammar = ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    grammar.read(GRAMMAR, encoding="utf-8")
    slots = {
        name: [template.strip() for template in " ".join(text.split()).split("|")]
        for name, text in grammar["templates"].items()
    }
    for names, text in grammar["words"].items():
        words = [word.replace("_", " ") for word in text.split()]
        name, _, inflected_name = names.partition("/")
        slots[name] = [word.split("/")[0] for word in words]
        if inflected_name:
            ending = "s" if name in ("person", "thing") else "d"
            slots[inflected_name] = [inflect(word, ending) for word in words]
    return slots


def fill(template: str, slots: Slots, rng: random.Random) -> str:
    """Fill the {slots} of a template until only {a} is left."""
    return re.sub(r"{([a-z ]{2,})}", lambda m: fill(rng.choice(slots[m[1]]), slots, rng), template)


def choose_articles(text: str) -> str:
    """Replace each {a} by "a" or "an"."""
    return re.sub(r"{a}(?= (?!use|one)([aeiou]|honest))", "an", text).replace("{a}", "a")


def draw_sentence(slots: Slots, rng: random.Random) -> str:
    """Draw a sentence; "" if it would have a word twice."""
    text = choose_articles(fill("{sentence}", slots, rng))
    words = [word for word in re.findall(r"[a-z'-]+", text.lower()) if word not in REPEATABLE]
    return text[0].upper() + text[1:] if len(set(words)) == len(words) else ""


def draw_long_sentence(slots: Slots, rng: random.Random, n_chars: int) -> str:
    """Join parts until there are about n_chars characters or more."""
    text = fill("{part}", slots, rng)
    while len(text) < n_chars - LENGTH_SLACK:
        text += rng.choice(JOINS) + fill("{part}", slots, rng)
    text = choose_articles(text) + "."
    # A capital at the start, also after an opening quote, and after each full stop.
    return re.sub(r'^"?[a-z]|(?<=\. )"?[a-z]', lambda m: m[0].upper(), text)


def make_sentences(min_chars: int, max_chars: int, seed: int) -> Iterator[str]:
    """Yield sentences of min_chars to max_chars characters, no two of which have the same letters.

    Ends when GIVE_UP_AFTER draws in a row give nothing new.
    """
    rng, slots = random.Random(seed), read_grammar()
    seen, misses = set(), 0
    while misses < GIVE_UP_AFTER:
        if misses % 100 == 0:  # draw the length first, or short and long ones would be rare
            target = rng.randint(min_chars, max_chars)
        if target <= LONGEST_SENTENCE:
            text = draw_sentence(slots, rng)
        else:
            text = draw_long_sentence(slots, rng, target)
        letters = re.sub(r"[^a-z]", "", text.lower())
        fits = min_chars <= len(text) <= max_chars and abs(len(text) - target) <= LENGTH_SLACK
        if fits and letters not in seen:
            seen.add(letters)
            misses = 0
            yield text
        else:
            misses += 1


def read_sentences(path: str, n_sentences: int | None) -> list[str]:
    """Read the non-blank lines of a UTF-8 text file, or the first n_sentences of them."""
    with file_errors():
        lines = map(str.strip, read_text(Path(path)).split("\n"))
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if line][:n_sentences]
    for i, line in numbered:
        if "|" in line or any(ord(char) < 32 and char != "\t" for char in line):
            raise DataError(f"{path} line {i} has a | or a control character; remove it")
        if not WORD.search(line):
            raise DataError(f"{path} line {i} has no word to speak; remove it")
    if len(numbered) < (n_sentences or 1):
        raise DataError(f"{path} has only {len(numbered)} sentences")
    return [line for _, line in numbered]
