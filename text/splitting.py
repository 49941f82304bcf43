"""Cut a long text into pieces that a model can speak: at sentence ends, then clauses, then spaces.

    split_text(text, tokenizer, max_characters) -> [Piece("it rained.", "sentence"), ...]

Text is cleaned first, so that only sentences end with a full stop. The ends of other scripts, which
cleaning may write as plain ones and which need no space after them, are marked before that. Blank
lines end a paragraph.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from text.tokenizer import Tokenizer

PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
SENTENCE_MARK, CLAUSE_MARK = "\U0010fffb", "\U0010fffc"  # private characters, which cleaning keeps
# Brackets and quotes that close a sentence belong to its end; but '"is it?" she said' goes on.
SENTENCE_END = re.compile(
    r"""(?<=[.!?])\s+|(?<=[.])["')\]\u00bb\u203a\u2018-\u201d]+\s+|(?<=[!?])[)\]]+\s+"""
    rf"|{SENTENCE_MARK}\s*"
)
CLAUSE_END = re.compile(rf"""[,;:!?]["')]*\s+|\s-+\s+|(?<=\w)--+\s*|\)\s+|{CLAUSE_MARK}\s*""")
SPACE = re.compile("\\s+|[\u1361\u0f0b\u200b]\\s*")  # with those of Ethiopic, Tibetan, Khmer
# Danda (also typed as a bar), Urdu, Arabic, Syriac, Armenian, East Asian, Ethiopic, Khmer, Burmese,
# Tibetan, Greek, N'Ko, Sinhala, Mongolian, Ol Chiki, Meetei ends; and plain ones before an East
# Asian letter. A number may go on after an Arabic or full-width comma or colon.
_CLOSING = (
    "(?:[\u201d\u2019\u00bb\u203a\u300d\u300f\uff09\u3011\u300b\u3009\u3015\uff3d\uff5d)\\]]"
    "|[\"'](?!\\w))*"
)
_EAST_ASIAN = (
    "[\u201c\u2018\u300c\u300e\uff08\u3010\u300a]*[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)
_EAST_ASIAN = f"(?={_CLOSING}{_EAST_ASIAN})"
_OTHER_ENDS = re.compile(
    "(?P<sentence>(?:[\u0964\u0965\u06d4\u061f\u0589\u3002\uff01\uff1f\uff61\u1362\u1367\u17d4\u17d5\u104b\u0f0d"
    "\u0f0e\u037e\u203c\u203d\u2047-\u2049\u0700-\u0702\u07f9\u0df4\u1803\u1809\u1c7e\u1c7f\uabeb]"
    f"|(?<!\\d)\uff0e|[.!?]+{_EAST_ASIAN}|(?<=[\u0900-\u0dff])[ ]?\\|+"
    f"|\u2026+(?={_CLOSING}\\s))+{_CLOSING})"
    "|(?:[\u061b\uff1b\u3001\uff64\u1363-\u1366\u104a\u055d\u07f8\u1802\u1808]"
    "|(?<!\\d)[\u060c\uff0c\uff1a]|[\u060c\uff0c\uff1a](?!\\d)|[\u0387\u00b7](?=\\s)"
    f"|\u2026+|\u2014{{2,}}|[,;:]{_EAST_ASIAN}){_CLOSING}"
)


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
        sentences = [paragraph]
        if length(paragraph) > max_characters:
            marked = tokenizer.clean(_OTHER_ENDS.sub(_mark_end, paragraph))
            sentences = _cut_at(marked, SENTENCE_END)
        parts = [part for one in sentences for part in _cut_sentence(one, max_characters, length)]
        parts = [part._replace(text=_remove_marks(part.text)) for part in parts]
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


def _mark_end(match: re.Match) -> str:
    """Put the mark of a sentence's or a clause's end after it."""
    return match[0] + (SENTENCE_MARK if match["sentence"] else CLAUSE_MARK)


def _remove_marks(text: str) -> str:
    return text.replace(SENTENCE_MARK, "").replace(CLAUSE_MARK, "").strip()


def _cut_at(text: str, ends: re.Pattern) -> list[str]:
    """Cut text after each match of `ends`, except within braces, and drop empty parts."""
    parts, start = [], 0
    for match in ends.finditer(text):
        if text.count("{", 0, match.start()) > text.count("}", 0, match.start()):
            continue  # between the phonemes of a word
        parts.append(text[start : match.end()])
        start = match.end()
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def _cut_word(word: str, max_characters: int, length: Callable[[str], int]) -> list[str]:
    """Cut a word that is longer than the limit into even parts, unless it is in phonemes.

    No part begins with a sign, of a vowel or a sentence's end, that belongs to the letter before.
    """
    if length(word) <= max_characters or "{" in word:
        return [word]
    parts = []
    while word:
        end = -(-len(word) // -(-len(word) // max_characters))
        while end > 1 and unicodedata.category(word[end : end + 1] or " ")[0] in "MP":
            end -= 1
        parts.append(word[:end])
        word = word[end:]
    return parts


def _join(parts: list[str], max_characters: int, length: Callable[[str], int]) -> list[str]:
    """Join neighbouring parts into as few and as even texts as the limit allows."""
    total = length("".join(parts))
    target = total / -(-total // max_characters)  # even lengths, so that the last is not too short
    joined = [parts[0]]
    for part in parts[1:]:
        longer = joined[-1] + part
        over, under = length(longer) - target, target - length(joined[-1])
        if length(longer) <= max_characters and over <= under:
            joined[-1] = longer
        else:
            joined.append(part)
    return joined
