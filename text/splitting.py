"""A long text in pieces that a model can speak: at sentence ends, then at clauses, then at spaces.

    split_text(text, tokenizer, max_characters) -> [Piece("it rained.", "sentence"), ...]

A text to be cut is cleaned first, so that what looks like a sentence's end is one: by then the full
stops of abbreviations, initials and decimals are gone. Blank lines end a paragraph.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from text.tokenizer import Tokenizer

MAX_CHARACTERS = 150  # of a piece, unless told otherwise
PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
# Brackets and quotes that close a sentence go with it. After '"is it?"' may come 'she said'.
SENTENCE_END = re.compile(
    r"""(?<=[.!?])\s+|(?<=[.])["')\]]+\s+|(?<=[!?])[)\]]+\s+|[\u3002\uff01\uff1f]\s*"""
)
CLAUSE_END = re.compile(r"""[,;:!?]["')]*\s+|\s-+\s+|(?<=\w)--+\s*|\)\s+""")
SPACE = re.compile(r"\s+")


class Piece(NamedTuple):
    """What is spoken at once."""

    text: str
    end: str  # "word", "clause", "sentence" or "paragraph": what the pause after it is that of


def cut_at(text: str, ends: re.Pattern) -> list[str]:
    """The text in parts, each with the mark that ends it; none is empty, braces stay whole."""
    parts, start = [], 0
    for match in ends.finditer(text):
        if text.count("{", 0, match.start()) > text.count("}", 0, match.start()):
            continue  # among the phonemes of a word
        parts.append(text[start : match.end()].strip())
        start = match.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def pack(parts: list[str], max_characters: int, length: Callable[[str], int]) -> list[str]:
    """Neighbouring parts joined, as few and as even as the limit allows."""
    total = sum(map(length, parts)) + len(parts) - 1
    n_packs = -(-total // max_characters)
    target = total / n_packs  # so that no short rest is left at the end
    packs = [parts[0]]
    for part in parts[1:]:
        joined = f"{packs[-1]} {part}"
        over, under = length(joined) - target, target - length(packs[-1])
        if length(joined) <= max_characters and over <= under:
            packs[-1] = joined
        else:
            packs.append(part)
    return packs


def cut_word(word: str, max_characters: int, length: Callable[[str], int]) -> list[str]:
    """A word longer than the limit in parts; in phonemes it stays whole."""
    if length(word) <= max_characters or "{" in word:
        return [word]
    return [word[i : i + max_characters] for i in range(0, len(word), max_characters)]


def cut_sentence(
    sentence: str, max_characters: int, length: Callable[[str], int]
) -> list[tuple[str, str]]:
    """A sentence in parts within the limit, each with its end, which is "sentence" for the last."""
    if length(sentence) <= max_characters:
        return [(sentence, "sentence")]
    pieces: list[tuple[str, str]] = []
    for clause in pack(cut_at(sentence, CLAUSE_END), max_characters, length):
        if length(clause) <= max_characters:
            pieces.append((clause, "clause"))
            continue
        words = [part for word in cut_at(clause, SPACE)
                 for part in cut_word(word, max_characters, length)]  # fmt: skip
        pieces += [(words, "word") for words in pack(words, max_characters, length)]
        pieces[-1] = pieces[-1][0], "clause"
    pieces[-1] = pieces[-1][0], "sentence"
    return pieces


def split_text(text: str, tokenizer: Tokenizer, max_characters: int) -> list[Piece]:
    """Pieces of at most max_characters symbols, in order; what has no letter is left out.

    A text within the limit that has no blank line in it is one piece, whole as it stands, however
    many sentences it has.
    """

    def length(part: str) -> int:
        try:
            return len(tokenizer.encode(part))
        except ValueError:  # no letter
            return len(part)

    def is_spoken(part: str) -> bool:
        try:
            tokenizer.encode(part)
        except ValueError:
            return False
        return True

    pieces: list[Piece] = []
    for paragraph in PARAGRAPH_END.split(text):
        sentences = [paragraph.strip()]
        if length(paragraph) > max_characters:
            sentences = cut_at(tokenizer.clean(paragraph), SENTENCE_END)
        parts = [part for one in sentences for part in cut_sentence(one, max_characters, length)]
        spoken = [Piece(*part) for part in parts if is_spoken(part[0])]
        if spoken:
            pieces += [*spoken[:-1], Piece(spoken[-1].text, "paragraph")]
    return pieces
