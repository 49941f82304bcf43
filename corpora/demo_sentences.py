"""Make the sentences that make_demo_corpus.py speaks: a seeded grammar's, or the lines of a file.

    next(make_sentences(16, 42, seed=42))  # "Anna dropped the camera after lunch."
    make_sentences(12, 187, seed=42)  # as long as LJSpeech's
    read_sentences("book.txt", n_sentences=None)  # its lines, checked

demo_grammar.ini has the words, and the templates that they fill; demo_grammar_de.ini and its like
do so for other languages. A sentence of more than LONGEST_SENTENCE characters, in English only, is
several parts joined, with quotes, years and numbers in words.
"""

import random
import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

from command_line.files import DataError, file_errors
from corpora.layouts import read_text

LANGUAGES = ("en", "de", "es", "fr", "it")
LENGTH_SLACK = 2  # characters by which a sentence may miss the drawn length
LONGEST_SENTENCE = 44  # characters; longer ones are joined
JOINS = (", and ", ", and ", ", but ", ", while ", "; ", "; ", ". ", ". ")
GIVE_UP_AFTER = 5_000  # draws in a row without a new sentence: the grammar is exhausted
# A word as it is spoken, with its apostrophes and hyphens: "we'll", "brand-new".
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
# No sentence has another word twice.
REPEATABLE = set(re.findall(r"\w+", "a an and are at for i in is it m of s some t the to was you"))
CLASHES = [
    *({"i", "me"}, {"i", "us"}, {"we", "me"}, {"we", "us"}, {"let", "me"}, {"let", "us"}),
    *({"he", "him"}, {"she", "her"}, {"they", "them"}),
]

Slots = dict[str, list[str]]  # the words and templates that fill each slot of a template


def conjugate(verb: str) -> dict[str, str]:
    """Return the forms of "verb", "verb/past" or "verb/past/participle", by slot."""
    base, past, participle = [*verb.split("/"), "", ""][:3]
    stem = re.sub("([^aeiou])y$", r"\1i", base)
    return {
        "do": base,
        "did": past or stem.removesuffix("e") + "ed",
        "doing": participle or base.removesuffix("e") + "ing",
        "does": stem + ("es" if re.search("(s|x|z|ch|sh|o|i)$", stem) else "s"),
    }


def read_grammar(language: str = "en") -> Slots:
    """Read the words and templates that can fill each slot of a template."""
    grammar = ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    name = "demo_grammar.ini" if language == "en" else f"demo_grammar_{language}.ini"
    grammar.read(Path(__file__).with_name(name), encoding="utf-8")
    slots = {name: split_templates(text) for name, text in grammar["templates"].items()}
    for name, text in grammar["words"].items():
        slots[name] = [word.replace("_", " ") for word in text.split()]
    for verb, text in grammar["verbs"].items() if language == "en" else ():
        for form, word in conjugate(verb).items():
            slots.setdefault(form, []).extend(f"{word} {rest}" for rest in split_templates(text))
    return slots


def split_templates(text: str) -> list[str]:
    """Split the templates of a rule, which may go over several lines."""
    return [template.strip() for template in " ".join(text.split()).split("|")]


def fill(template: str, slots: Slots, rng: random.Random) -> str:
    """Fill the {slots} of a template until only {a} is left."""
    return re.sub(r"{([a-z ]{2,})}", lambda m: fill(rng.choice(slots[m[1]]), slots, rng), template)


def choose_articles(text: str) -> str:
    """Replace each {a} by "a" or "an"."""
    return re.sub(r"{a}(?= (?!use|one)([aeiou]|honest))", "an", text).replace("{a}", "a")


def draw_sentence(slots: Slots, rng: random.Random) -> str:
    """Draw a sentence; "" if it would have a word twice, or someone as subject and object."""
    text = choose_articles(fill("{sentence}", slots, rng))
    text = re.sub(r"(n't|never)( [^,;.:]*)?\bsome\b", r"\1\2any", text)
    said = re.findall("[a-z]+", text.lower())
    words = [word for word in said if word not in REPEATABLE]
    if len(set(words)) < len(words) or any(clash <= set(said) for clash in CLASHES):
        return ""
    return text[0].upper() + text[1:]


def draw_foreign_sentence(slots: Slots, rng: random.Random) -> str:
    """Draw a sentence of another language; "" if it would have a word of four letters twice."""
    text = fill("{sentence}", slots, rng)
    words = re.findall(r"\w{4,}", text.lower())
    if len(set(words)) < len(words):
        return ""
    return re.sub(r"[^\W\d_]", lambda m: m[0].upper(), text, count=1)  # after a Spanish sign


def draw_long_sentence(slots: Slots, rng: random.Random, n_chars: int) -> str:
    """Join parts until there are about n_chars characters or more."""
    text = fill("{part}", slots, rng)
    while len(text) < n_chars - LENGTH_SLACK:
        text += rng.choice(JOINS) + fill("{part}", slots, rng)
    text = choose_articles(text) + "."
    # A capital at the start, also after an opening quote, and after each full stop.
    return re.sub(r'^"?[a-z]|(?<=\. )"?[a-z]', lambda m: m[0].upper(), text)


def make_sentences(
    min_chars: int, max_chars: int, seed: int, language: str = "en"
) -> Iterator[str]:
    """Yield sentences of min_chars to max_chars characters, no two of which have the same letters.

    Ends when GIVE_UP_AFTER draws in a row give nothing new.
    """
    rng, slots = random.Random(seed), read_grammar(language)
    draw = draw_sentence if language == "en" else draw_foreign_sentence
    seen, misses = set(), 0
    while misses < GIVE_UP_AFTER:
        if misses % 100 == 0:  # draw the length first, or short and long ones would be rare
            target = rng.randint(min_chars, max_chars)
        if target <= LONGEST_SENTENCE:
            text = draw(slots, rng)
        else:
            text = draw_long_sentence(slots, rng, target)
        letters = "".join(filter(str.isalpha, text.lower()))
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
