"""Text to token ids and back.

    tokenizer = Tokenizer()
    tokens = tokenizer.encode("Printing, in 1465")   # LongTensor (T_text,)
    tokenizer.decode(tokens)                         # "printing, in fourteen sixty-five"

`clean_text` keeps every character that the table of symbols holds, and makes the others plain:
lower case, accents off, typographic punctuation to ASCII. What is read aloud as words becomes
English words (normalize.py: abbreviations, addresses, signs; numerals.py: all that has figures),
any white space one space. Characters that are then still unknown are left out, and
`unknown_characters` names them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from normalize import (
    expand_abbreviations,
    expand_codes,
    replace_characters,
    spell_capitals,
    spell_signs,
)
from numerals import spell_numerals

PAD = "<pad>"
DEFAULT_SYMBOLS = (PAD, *" !\"'(),-.:;?", *"abcdefghijklmnopqrstuvwxyz")
DEFAULT_CHARACTERS = frozenset(DEFAULT_SYMBOLS[1:])
# ARPAbet as torchaudio and NVIDIA write it. In their tables capitals are phonemes, or letters that
# no text has trained, because their cleaners make all text lower case.
PHONEMES = {"AA", "@AA"}
MAX_NAMED = 20  # characters that one line names
PLAIN = {  # what has no equivalent in Unicode's own table (NFKD)
    **dict.fromkeys("\u2032`", "'"),
    "\u2033": '"',
    **dict.fromkeys("\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("[{", "("),
    **dict.fromkeys("]}", ")"),
    "/": " ",
    "\u00df": "ss",
    "\u00e6": "ae",
    "\u0153": "oe",
    "\u00f8": "o",
    "\u0142": "l",
    "\u0111": "d",
    "\u00f0": "d",
    "\u00fe": "th",
    "\u0131": "i",
}


@lru_cache(maxsize=16)
def _decomposed_by_nfc(known: frozenset[str]) -> dict[str, str]:
    """Characters that NFC takes apart, such as Devanagari's U+095C, by what it makes of them."""
    forms = {unicodedata.normalize("NFC", character): character for character in known}
    return {form: character for form, character in forms.items() if form not in known}


def _compose(text: str, known: frozenset[str]) -> str:
    """NFC, except for the characters of the table that it takes apart."""
    text = unicodedata.normalize("NFC", text)
    for form, character in _decomposed_by_nfc(known).items():
        text = text.replace(form, character)
    return text


def _match_case(text: str, known: frozenset[str]) -> str:
    """Characters that the table has only in their other case, in that case."""
    return "".join(
        c if c in known else next((o for o in (c.lower(), c.upper()) if o in known), c)
        for c in text
    )


def _make_plain(character: str, known: frozenset[str]) -> str:
    """A character without its accents and in lower case, punctuation as ASCII has it."""
    parts = _match_case(unicodedata.normalize("NFKD", character), known)
    parts = [part if part in known else part.lower() for part in parts]
    kept = (part for part in parts if part in known or not unicodedata.combining(part))
    return "".join(part if part in known else PLAIN.get(part, part) for part in kept)


@lru_cache(maxsize=16)
def _has_kinds(known: frozenset[str]) -> tuple[bool, bool]:
    """Whether the table has capitals, and whether figures."""
    return any(c != c.lower() for c in known), any(c.isdecimal() for c in known)


def _normalize(text: str, known: frozenset[str]) -> str:
    """The words that are read aloud, their case and accents as they are."""
    text = _compose(text, known)
    if not text.isascii():
        text = replace_characters(text, known)
    is_shouted = text.isupper() and len(text.split()) > 2
    has_capitals, has_figures = _has_kinds(known)
    text = expand_abbreviations(text)
    if not has_capitals:
        text = expand_codes(text)
    if not has_figures:
        text = spell_numerals(text)
    if not has_capitals:
        text = spell_capitals(text, is_shouted)
    return spell_signs(text, known)


def clean_text(text: str, known: frozenset[str] = DEFAULT_CHARACTERS) -> str:
    """Text as `Tokenizer.encode` looks it up, character by character.

    Args:
        known: the characters of the table, which are kept. A table with figures keeps numbers.
    """
    text = _normalize(text, known)
    if not text.isascii():
        text = "".join(c if c in known else unicodedata.normalize("NFKD", c) for c in text)
    text = _compose(text, known)  # half-width katakana and their marks, for one, come together
    if not _has_kinds(known)[0]:
        text = text.lower()  # as a whole: a sigma that ends a word has a form of its own
    if not known.issuperset(text):
        text = _match_case(text, known)
        text = "".join(c if c in known else _make_plain(c, known) for c in text)
        text = _match_case(text, known)
    return re.sub(r"\s+", " ", text).strip()


class Tokenizer:
    """Looks characters up in a table of symbols; id 0, the first symbol, is padding.

    Symbols of several characters, such as the phonemes in the tables of other Tacotron 2 weights,
    keep their ids and are never produced from text.

    Raises:
        ValueError: on a table that is no list of strings, an empty one, or a symbol that occurs
            twice.
    """

    pad_token_id = 0

    def __init__(self, symbols: Sequence[str] = DEFAULT_SYMBOLS) -> None:
        if not isinstance(symbols, (list, tuple)):
            raise ValueError(f"symbols must be a list of strings, found {type(symbols).__name__}")
        self.symbols = tuple(symbols)
        odd = [symbol for symbol in self.symbols if not isinstance(symbol, str) or not symbol]
        if odd:
            raise ValueError(f"symbols must be strings that are not empty, found {odd[0]!r:.40}")
        if len(self.symbols) < 2:
            raise ValueError(f"symbols must hold padding and a character, found {self.symbols}")
        if len(set(self.symbols)) < len(self.symbols):
            twice = sorted({s for s in self.symbols if self.symbols.count(s) > 1})
            raise ValueError(f"symbols must be unique, found twice: {' '.join(twice)}")
        has_phonemes = not PHONEMES.isdisjoint(self.symbols)
        self._ids: dict[str, int] = {}  # of the characters that text is made of
        for i, symbol in enumerate(self.symbols[1:], start=1):
            # A letter and its accent may be written as two characters.
            character = symbol if len(symbol) == 1 else unicodedata.normalize("NFC", symbol)
            if len(character) == 1 and not (has_phonemes and character.isupper()):
                self._ids.setdefault(character, i)
        self.known = frozenset(self._ids)

    @property
    def vocab_size(self) -> int:
        """Number of symbols, padding included."""
        return len(self.symbols)

    def clean(self, text: str) -> str:
        """The text as the table can have it: `clean_text` with the characters of the table."""
        return clean_text(text, self.known)

    def unknown_characters(self, text: str) -> str:
        """The characters of the cleaned text that the table lacks, each once, in order."""
        return "".join(dict.fromkeys(c for c in self.clean(text) if c not in self.known))

    def describe_unknown(self, texts: Iterable[str]) -> str:
        """A line on the characters that the table lacks and in how many texts; "" if it has all."""
        counts: Counter[str] = Counter()
        n_texts = n_affected = 0
        for text in texts:
            unknown = self.unknown_characters(text)
            counts.update(unknown)
            n_texts += 1
            n_affected += bool(unknown)
        if not counts:
            return ""
        named = [f"{c!r} in {n:,}" for c, n in counts.most_common(MAX_NAMED)]
        if len(counts) > MAX_NAMED:
            named.append(f"and {len(counts) - MAX_NAMED:,} more")
        clips = f"{n_affected:,} of {n_texts:,} clips"
        return f"characters that have no symbol are left out of {clips}: {', '.join(named)}"

    def encode(self, text: str) -> Tensor:
        """Token ids of the cleaned text, shape (T_text,), int64; unknown characters left out.

        Raises:
            ValueError: when nothing is left to say.
        """
        kept = [character for character in self.clean(text) if character in self.known]
        if not any(character.isalpha() for character in kept):
            raise ValueError(f"text has no letter to speak: {text[:80]!r}")
        return torch.tensor([self._ids[character] for character in kept], dtype=torch.int64)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of token ids, padding left out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return "".join(self.symbols[i] for i in ids if i != self.pad_token_id)
