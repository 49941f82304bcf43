"""Cut a long text into pieces that a model can speak: at sentence ends, then clauses, then spaces.

    split_text(text, tokenizer, max_characters) -> [Piece("it rained.", "sentence"), ...]

Text is cleaned first, so that only sentences end with a full stop. Blank lines end a paragraph.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from text.tokenizer import Tokenizer

MAX_CHARACTERS = 150  # of a piece, by default
PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
# Brackets and quotes that close a sentence belong to its end; but '"is it?" she said' goes on.
SENTENCE_END = re.compile(
    r"""(?<=[.!?])\s+|(?<=[.])["')\]]+\s+|(?<=[!?])[)\]]+\s+|[\u3002\uff01\uff1f]\s*"""
)
CLAUSE_END = re.compile(r"""[,;:!?]["')]*\s+|\s-+\s+|(?<=\w)--+\s*|\)\s+""")
SPACE = re.compile(r"\s+")


class Piece(NamedTuple):
    """A part of a text that the model speaks in one go."""

    text: str
    end: str  # "word", "clause", "sentence" or "paragraph", which sets the pause after it


def split_text(text: str, tokenizer: Tokenizer, max_characters: int) -> list[Piece]:
    """Cut text into pieces of at most max_characters tokens, and drop pieces without a letter.

    A paragraph within the limit stays one piece, as it was typed, however many sentences it has.
    """

    def is_spoken(part: str) -> bool:
        try:
            tokenizer.encode(part)
        except ValueError:  # it has no letter
            return False
        return True

    def length(part: str) -> int:
        return len(tokenizer.encode(part)) if is_spoken(part) else len(part)

    pieces: list[Piece] = []
    for paragraph in PARAGRAPH_END.split(text):
        sentences = [paragraph.strip()]
        if length(paragraph) > max_characters:
            sentences = _cut_at(tokenizer.clean(paragraph), SENTENCE_END)
        parts = [part for one in sentences for part in _cut_sentence(one, max_characters, length)]
        if spoken := [part for part in parts if is_spoken(part.text)]:
            pieces += [*spoken[:-1], spoken[-1]._replace(end="paragraph")]
    return pieces


def _cut_sentence(sentence: str, max_characters: int, length: Callable[[str], int]) -> list[Piece]:
    """Cut a sentence at clauses, and a clause that is still too long between words."""
    if length(sentence) <= max_characters:
        return [Piece(sentence, "sentence")]
    pieces: list[Piece] = []
    for clause in _join(_cut_at(sentence, CLAUSE_END), max_characters, length):
        parts = [clause]
        if length(clause) > max_characters:
            words = _cut_at(clause, SPACE)
            words = [part for word in words for part in _cut_word(word, max_characters, length)]
            parts = _join(words, max_characters, length)
        pieces += [*(Piece(part, "word") for part in parts[:-1]), Piece(parts[-1], "clause")]
    return [*pieces[:-1], pieces[-1]._replace(end="sentence")]


def _cut_at(text: str, ends: re.Pattern) -> list[str]:
    """Cut text after each match of `ends`, except within braces, and drop empty parts."""
    parts, start = [], 0
    for match in ends.finditer(text):
        if text.count("{", 0, match.start()) > text.count("}", 0, match.start()):
            continue  # between the phonemes of a word
        parts.append(text[start : match.end()].strip())
        start = match.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _cut_word(word: str, max_characters: int, length: Callable[[str], int]) -> list[str]:
    """Cut a word that is longer than the limit, unless it is in phonemes."""
    if length(word) <= max_characters or "{" in word:
        return [word]
    return [word[i : i + max_characters] for i in range(0, len(word), max_characters)]


def _join(parts: list[str], max_characters: int, length: Callable[[str], int]) -> list[str]:
    """Join neighbouring parts into as few and as even texts as the limit allows."""
    total = sum(map(length, parts)) + len(parts) - 1
    target = total / -(-total // max_characters)  # even lengths, so that the last is not too short
    joined = [parts[0]]
    for part in parts[1:]:
        longer = f"{joined[-1]} {part}"
        over, under = length(longer) - target, target - length(joined[-1])
        if length(longer) <= max_characters and over <= under:
            joined[-1] = longer
        else:
            joined.append(part)
    return joined
