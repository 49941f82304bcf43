"""Text to token ids and back.

    tokenizer = Tokenizer()
    tokens = tokenizer.encode("Printing, in 1465")   # LongTensor (T_text,)
    tokenizer.decode(tokens)                         # "printing, in fourteen sixty-five"

`clean_text` keeps every character that the table of symbols holds, and makes the others plain:
lower case, accents off, typographic punctuation to ASCII, any white space one space. The cleaner
"english" first turns what is read aloud as words into English words (cleaning.py: abbreviations,
addresses, signs; numbers.py: all that has figures); "basic", for other languages, does not.
Characters that are then still unknown are left out, and `unknown_characters` names them. ARPAbet in
braces, as in "{T ER1 N} left", is looked up as phonemes where the table has them
(`with_phonemes`).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from text.cleaning import (
    CHARACTERS,
    expand_abbreviations,
    expand_codes,
    replace_characters,
    spell_capitals,
    spell_signs,
)
from text.numbers import spell_numerals
from text.phonemes import ARPABET, PHONEMES_IN_BRACES, find_odd_phoneme

CLEANERS = ("english", "basic")
PAD = "<pad>"
DEFAULT_SYMBOLS = (PAD, *" !\"'(),-.:;?", *"abcdefghijklmnopqrstuvwxyz")
DEFAULT_CHARACTERS = frozenset(DEFAULT_SYMBOLS[1:])
# A table has phonemes if it has one of these: ARPAbet as torchaudio and NVIDIA write it. In their
# tables capitals are phonemes, or letters that no text has trained, because their cleaners make all
# text lower case.
SIGNS_OF_PHONEMES = {"AA", "@AA"}
HELD_PLACE = "\U0010fffd"  # stands for a group in braces while the text around it is cleaned
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


def _replace_punctuation(text: str, known: frozenset[str]) -> str:
    """Typographic quotes, dashes and the like as a keyboard has them; all else as it is."""
    text = _compose(text, known)
    return "".join(c if c in known else CHARACTERS.get(c) or c for c in text)


def clean_text(
    text: str, known: frozenset[str] = DEFAULT_CHARACTERS, cleaner: str = "english"
) -> str:
    """Text as `Tokenizer.encode` looks it up, character by character.

    Args:
        known: the characters of the table, which are kept. A table with figures keeps numbers.
        cleaner: one of CLEANERS.
    """
    english = cleaner == "english"
    text = _normalize(text, known) if english else _replace_punctuation(text, known)
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


def _describe(what: str, found: Sequence[Sequence[str]]) -> str:
    """A line that says what happens in how many texts, and in how many each thing found in them."""
    counts = Counter(thing for of_text in found for thing in of_text)
    if not counts:
        return ""
    named = [f"{thing} in {n:,}" for thing, n in counts.most_common(MAX_NAMED)]
    if len(counts) > MAX_NAMED:
        named.append(f"and {len(counts) - MAX_NAMED:,} more")
    clips = f"{sum(map(bool, found)):,} of {len(found):,} clips"
    return f"{what} {clips}: {', '.join(named)}"


class Tokenizer:
    """Cleans text, and looks its characters up in a table of symbols; id 0, the first, is padding.

    Other symbols of several characters than phonemes keep their ids and are never produced from
    text. `has_phonemes` says whether the table has ARPAbet, with or without "@" before it.

    Raises:
        ValueError: on a table that is no list of strings, an empty one, or a symbol that occurs
            twice; on a cleaner that is none of CLEANERS.
    """

    pad_token_id = 0

    def __init__(self, symbols: Sequence[str] = DEFAULT_SYMBOLS, cleaner: str = "english") -> None:
        if cleaner not in CLEANERS:
            raise ValueError(f"cleaner must be {' or '.join(CLEANERS)}, found {cleaner!r:.40}")
        self.cleaner = cleaner
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
        self.has_phonemes = not SIGNS_OF_PHONEMES.isdisjoint(self.symbols)
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self._phoneme_ids = {  # NVIDIA's table has a letter B beside the phoneme @B
            name: ids.get(f"@{name}", ids.get(name))
            for name in ARPABET
            if self.has_phonemes and not ids.keys().isdisjoint((name, f"@{name}"))
        }
        self._phonemes = {i: name for name, i in self._phoneme_ids.items()}
        self._ids: dict[str, int] = {}  # of the characters that text is made of
        for i, symbol in enumerate(self.symbols[1:], start=1):
            # A letter and its accent may be written as two characters.
            character = symbol if len(symbol) == 1 else unicodedata.normalize("NFC", symbol)
            if len(character) == 1 and not (self.has_phonemes and character.isupper()):
                self._ids.setdefault(character, i)
        self._characters = {i: character for character, i in self._ids.items()}
        self.known = frozenset(self._ids)
        self.has_letters = any(character.isalpha() for character in self.known)

    @property
    def vocab_size(self) -> int:
        """Number of symbols, padding included."""
        return len(self.symbols)

    @property
    def character_ids(self) -> dict[str, int]:
        """The token id of each character that text can be made of."""
        return dict(self._ids)

    def with_phonemes(self) -> "Tokenizer":
        """The same table with what it lacks of ARPAbet at its end; itself if it lacks nothing."""
        lacking = [f"@{name}" for name in ARPABET if name not in self._phoneme_ids]
        return Tokenizer([*self.symbols, *lacking], self.cleaner) if lacking else self

    def with_characters(self, characters: str) -> "Tokenizer":
        """The same table with what it lacks of these at its end; itself if it lacks nothing.

        White space is passed over. Letters are taken in lower case, as text is, unless the table
        has capitals.
        """
        if not _has_kinds(self.known)[0]:
            characters = characters.lower()
        characters = _compose("".join(characters.split()), self.known)
        lacking = [c for c in dict.fromkeys(characters) if c not in self.known]
        return Tokenizer([*self.symbols, *lacking], self.cleaner) if lacking else self

    def _split(self, text: str) -> list[str]:
        """Text and ARPAbet in braces, in turn, beginning with text."""
        return [text] if "{" in self.known else PHONEMES_IN_BRACES.split(text)

    def clean(self, text: str) -> str:
        """The text as the table can have it: `clean_text`, and ARPAbet in braces as it stands."""
        parts = self._split(text.replace(HELD_PLACE, "") if "{" in text else text)
        groups = [f"{{{' '.join(group[1:-1].split())}}}" for group in parts[1::2]]
        cleaned = clean_text(HELD_PLACE.join(parts[::2]), self.known, self.cleaner)
        for group in groups:
            cleaned = cleaned.replace(HELD_PLACE, group, 1)
        return cleaned

    def unknown_characters(self, text: str) -> str:
        """The characters of the cleaned text that the table lacks, each once, in order."""
        letters = "".join(self._split(self.clean(text))[::2])
        return "".join(dict.fromkeys(c for c in letters if c not in self.known))

    def folded_letters(self, text: str) -> dict[str, str]:
        """Letters and accents that the table lacks, in order, by the letters that it has for them.

        'Sch\u00f6n' -> {'\u00f6': 'o'}; of an accent on its own, {'\u0303': ''}.
        """
        composed = _compose("".join(self._split(text)[::2]), self.known)
        letters = (c for c in composed if not c.isascii() and unicodedata.category(c)[0] in "LM")
        lacking = [c.lower() for c in letters if _match_case(c, self.known) not in self.known]
        plain = {c: _make_plain(c, self.known) for c in lacking}
        return {c: others for c, others in plain.items() if self.known.issuperset(others)}

    def describe_unknown(self, texts: Iterable[str]) -> str:
        """A line on the characters that the table lacks and in how many texts; "" if it has all."""
        found = [[repr(c) for c in self.unknown_characters(text)] for text in texts]
        return _describe("characters that have no symbol are left out of", found)

    def describe_folded(self, texts: Iterable[str]) -> str:
        """A line on the letters that become others, and in how many texts; "" if none does."""
        found = []
        for text in texts:
            folded = {} if text.isascii() else self.folded_letters(text)
            found.append([f"{c!r} as {letters!r}" for c, letters in folded.items()])
        return _describe("letters that have no symbol are replaced in", found)

    def encode(self, text: str) -> Tensor:
        """Token ids of the cleaned text, shape (T_text,), int64; unknown characters left out.

        Raises:
            ValueError: when nothing is left to say, or for what is in braces and is no phoneme of
                ARPAbet, or none of the table.
        """
        if self.has_phonemes and (odd := find_odd_phoneme(text)):
            raise ValueError(f"{odd} is no phoneme of ARPAbet")
        ids: list[int] = []
        has_sound = False
        for i, part in enumerate(self._split(self.clean(text))):
            if i % 2:
                ids += self._encode_phonemes(part)
                has_sound = True
            else:
                kept = [character for character in part if character in self.known]
                ids += [self._ids[character] for character in kept]
                has_sound |= any(character.isalpha() for character in kept)
        if not has_sound:
            letters = "".join(filter(str.isalpha, self.unknown_characters(text)))[:MAX_NAMED]
            lacking = f"that a symbol stands for, only {letters!r}" if letters else "to speak"
            raise ValueError(f"text has no letter {lacking}: {text[:80]!r}")
        return torch.tensor(ids, dtype=torch.int64)

    def _encode_phonemes(self, group: str) -> list[int]:
        names = group[1:-1].split()
        for name in names:
            if name not in self._phoneme_ids:
                raise ValueError(
                    f"the symbols lack the phoneme {name} of {group[:60]}; a model trained with "
                    "--phonemes has all of ARPAbet"
                )
        return [self._phoneme_ids[name] for name in names]

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of token ids, padding left out; phonemes in braces."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        parts = []
        for is_phoneme, run in groupby(ids, key=self._phonemes.__contains__):
            if is_phoneme:
                parts.append(f"{{{' '.join(self._phonemes[i] for i in run)}}}")
            else:
                written = (i for i in run if i != self.pad_token_id)
                parts += [self._characters.get(i, self.symbols[i]) for i in written]
        return "".join(parts)
