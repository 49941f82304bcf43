"""Turn text into token ids and back.

    tokenizer = Tokenizer()
    tokens = tokenizer.encode("Printing, in 1465")   # LongTensor (T_text,)
    tokenizer.decode(tokens)                         # "printing, in fourteen sixty-five"

cleaning.py makes text fit the table of symbols; characters that the table still lacks are left out.
ARPAbet in braces, as in "{T ER1 N} left", is looked up as phonemes where the table has them.

    tokenizer = Tokenizer(ESPEAK_SYMBOLS, language="de")
    tokenizer.clean("Na, {v\u02c8\u025blt}!")     # "{na}, {v\u02c8\u025blt}!"

With a language, espeak.py writes all words in IPA, and braces hold IPA. A lexicon replaces words of
the text before anything else.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor

from text.cleaning import (
    CLEANERS,
    clean_text,
    compose,
    decode_entities,
    lower_turkish,
    make_plain,
    match_case,
    write_for_espeak,
)
from text.english import has_capitals
from text.espeak import IPA, PUNCTUATION, decompose, to_ipa
from text.phonemes import ARPABET, PHONEMES_IN_BRACES, find_odd_phoneme

PAD = "<pad>"
DEFAULT_SYMBOLS = (PAD, *" !\"'(),-.:;?", *"abcdefghijklmnopqrstuvwxyz")
LETTERS = frozenset(DEFAULT_SYMBOLS[1:])
ESPEAK_SYMBOLS = (PAD, " ", *PUNCTUATION, *IPA)  # of every language
# A table has phonemes if it has one of these: ARPAbet as torchaudio and NVIDIA write it. Both turn
# all text into lower case, so capitals in their tables are phonemes, or letters never trained.
SIGNS_OF_PHONEMES = {"AA", "@AA"}
PLACEHOLDER = "\U0010fffd"  # stands for a group in braces while the text around it is cleaned
# Groups in braces, and the private characters with which splitting.py marks ends, which stay
_GROUP = re.compile(r"\{[^{}]*\}")
_IN_BRACES = re.compile(f"({_GROUP.pattern}|[\U0010fff0-\U0010ffff])")
_IPA_WORD = re.compile(f"[^\\s{re.escape(PUNCTUATION)}\U0010fff0-\U0010ffff]+")
MAX_NAMED = 20  # characters that one line names


def plain_spelling(text: str) -> str:
    """Spell accents and apostrophes in one way, so that a lexicon's words are found."""
    return unicodedata.normalize("NFC", text).replace("\u2019", "'")


class Tokenizer:
    """Text to token ids by a table of symbols; id 0, the first symbol, is padding.

    Symbols of several characters that are no phonemes keep their ids, but no text produces them.
    `known` has the characters that text can be made of, `character_ids` their ids. `language` is
    espeak-ng's name of one whose words become IPA, "" for letters; `lexicon` has what replaces a
    word, see lexicon.py.
    """

    pad_token_id = 0

    def __init__(
        self,
        symbols: Sequence[str] = DEFAULT_SYMBOLS,
        cleaner: str = "english",
        language: str = "",
        lexicon: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if cleaner not in CLEANERS:
            raise ValueError(f"cleaner must be {' or '.join(CLEANERS)}, found {cleaner!r:.40}")
        check_symbols(symbols)
        self.symbols, self.cleaner = tuple(symbols), cleaner
        self.language, self.lexicon = language, dict(lexicon)
        if not all(isinstance(text, str) for text in (language, *self.lexicon.values())):
            raise ValueError("language and what replaces the words of the lexicon must be strings")
        forms = {unicodedata.normalize(form, x) for x in self.lexicon for form in ("NFC", "NFD")}
        longest_first = (  # with either apostrophe
            re.escape(x).replace("'", "['\u2019]") for x in sorted(forms, key=len, reverse=True)
        )
        self._respelled = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", re.IGNORECASE)
        self.has_phonemes = not SIGNS_OF_PHONEMES.isdisjoint(self.symbols)
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self._phoneme_ids = {  # NVIDIA's table has a letter B beside the phoneme @B
            name: ids.get(f"@{name}", ids.get(name))
            for name in ARPABET
            if self.has_phonemes and not ids.keys().isdisjoint((name, f"@{name}"))
        }
        self._phonemes = {i: name for name, i in self._phoneme_ids.items()}
        self.character_ids: dict[str, int] = {}
        for i, symbol in enumerate(self.symbols[1:], start=1):
            # A letter and its accent may be written as two characters.
            character = symbol if len(symbol) == 1 else unicodedata.normalize("NFC", symbol)
            if len(character) == 1 and not (self.has_phonemes and character.isupper()):
                self.character_ids.setdefault(character, i)
        self._characters = {i: character for character, i in self.character_ids.items()}
        self.known = frozenset(self.character_ids)
        self.has_letters = any(character.isalpha() for character in self.known)

    @property
    def vocab_size(self) -> int:
        """Return the number of symbols, padding included."""
        return len(self.symbols)

    @property
    def _is_english_ipa(self) -> bool:
        return self.language.split("-")[0] == "en"

    def with_phonemes(self) -> "Tokenizer":
        """Add the phonemes that the table lacks at its end; return the new tokenizer."""
        return self._with(f"@{name}" for name in ARPABET if name not in self._phoneme_ids)

    def with_characters(self, characters: str) -> "Tokenizer":
        """Add the characters that the table lacks at its end; return the new tokenizer."""
        if not has_capitals(self.known):
            turkish = {"\u0131" for c in characters if c in "\u0130\u0131"}
            characters = lower_turkish(characters, self.known | turkish)
        characters = compose("".join(characters.split()), self.known)
        return self._with(c for c in dict.fromkeys(characters) if c not in self.known)

    def _with(self, symbols: Iterable[str]) -> "Tokenizer":
        if not (more := [*symbols]):
            return self
        return Tokenizer([*self.symbols, *more], self.cleaner, self.language, self.lexicon)

    def with_lexicon(self, lexicon: Mapping[str, str]) -> "Tokenizer":
        """Add words to the lexicon, or replace them in it; return the new tokenizer."""
        return Tokenizer(self.symbols, self.cleaner, self.language, self.lexicon | lexicon)

    def split(self, text: str) -> list[str]:
        """Split text at phonemes in braces: text, braces, text, ..., text."""
        if self.language:
            return _IN_BRACES.split(text)
        return [text] if "{" in self.known else PHONEMES_IN_BRACES.split(text)

    def clean(self, text: str) -> str:
        """Clean text for the table; phonemes in braces stay as they are.

        With a language, words that are not yet in braces become IPA in braces.
        """
        clean = self._write_ipa if self.language else self._clean_letters
        if self.lexicon:  # also the words that cleaning makes out of figures, for example
            text = self.respell(clean(self.respell(text)))
        return clean(text)

    def to_letters(self, text: str) -> str:
        """Clean text without the lexicon and without IPA, as a transcript is cleaned."""
        if self._is_english_ipa:  # a recognizer writes some numbers in figures
            return clean_text(text, LETTERS)
        if self.language:
            return unicodedata.normalize("NFKC", decode_entities(text))
        return self._clean_letters(text)

    def respell(self, text: str) -> str:
        """Replace the words of the lexicon, except in braces."""
        parts = self.split(text)
        parts[::2] = [
            self._respelled.sub(
                lambda word: self.lexicon.get(plain_spelling(word[0]).lower(), word[0]), part
            )
            for part in parts[::2]
        ]
        return "".join(parts)

    def _write_ipa(self, text: str) -> str:
        """Write a text as words of IPA in braces, with plain punctuation between them."""
        parts = self.split(decode_entities(text))
        if self._is_english_ipa:
            parts[::2] = [write_for_espeak(part) for part in parts[::2]]
        parts[::2] = [to_ipa(part, self.language) if part else "" for part in parts[::2]]
        ipa = decompose("".join(parts).replace("{", "").replace("}", ""))
        return " ".join(_IPA_WORD.sub(r"{\g<0>}", ipa).split())

    def _clean_letters(self, text: str) -> str:
        parts = self.split(text.replace(PLACEHOLDER, ""))
        cleaned = clean_text(PLACEHOLDER.join(parts[::2]), self.known, self.cleaner)
        for group in parts[1::2]:
            phonemes = " ".join(group[1:-1].split())
            cleaned = cleaned.replace(PLACEHOLDER, f"{{{phonemes}}}", 1)
        return cleaned

    def encode(self, text: str) -> Tensor:
        """Return the token ids of the cleaned text, (T_text,) int64, without unknown characters.

        Raises ValueError if there is nothing to speak, or no such phoneme.
        """
        if self.has_phonemes and (odd := find_odd_phoneme(text)):
            raise ValueError(f"{odd} is no phoneme of ARPAbet")
        if self.language:
            return self._encode_ipa(text)
        ids: list[int] = []
        is_spoken = False
        for i, part in enumerate(self.split(self.clean(text))):
            if i % 2:
                ids += self._encode_phonemes(part)
                is_spoken = True
            else:
                kept = [character for character in part if character in self.known]
                ids += [self.character_ids[character] for character in kept]
                is_spoken |= any(character.isalpha() for character in kept)
        if not is_spoken:
            letters = "".join(filter(str.isalpha, self.unknown_characters(text)))[:MAX_NAMED]
            lacking = f"that a symbol stands for, only {letters!r}" if letters else "to speak"
            raise ValueError(f"text has no letter {lacking}: {text[:80]!r}")
        return torch.tensor(ids, dtype=torch.int64)

    def _encode_ipa(self, text: str) -> Tensor:
        for group in filter(_GROUP.match, self.split(text)):
            if odd := set(decompose(group)).difference(self.known, "{}\n"):
                raise ValueError(f"{min(odd)!r} in {group[:60]} is no symbol of espeak-ng's IPA")
        cleaned = self.clean(text)
        if not any(map(str.isalpha, cleaned)):
            raise ValueError(f"text has nothing that espeak-ng can speak: {text[:80]!r}")
        ids = [self.character_ids[c] for c in cleaned if c in self.known]
        return torch.tensor(ids, dtype=torch.int64)

    def _encode_phonemes(self, group: str) -> list[int]:
        names = group[1:-1].split()
        for name in names:
            if name not in self._phoneme_ids:
                problem = f"the symbols lack the phoneme {name} of {group[:60]}"
                raise ValueError(f"{problem}; a model trained with --phonemes has all of ARPAbet")
        return [self._phoneme_ids[name] for name in names]

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Return the text of token ids, without padding and with phonemes in braces."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        parts = []
        for is_phoneme, run in groupby(ids, key=self._phonemes.__contains__):
            if is_phoneme:
                parts.append(f"{{{' '.join(self._phonemes[i] for i in run)}}}")
            else:
                written = (i for i in run if i != self.pad_token_id)
                parts += [self._characters.get(i, self.symbols[i]) for i in written]
        return "".join(parts)

    def unknown_characters(self, text: str) -> str:
        """List the characters of the cleaned text that the table lacks, each once, in order."""
        letters = "".join(self.split(self.clean(text))[::2])
        return "".join(dict.fromkeys(c for c in letters if c not in self.known))

    def folded_letters(self, text: str) -> dict[str, str]:
        """Map the letters and accents that cleaning replaces to their replacements: \u00f6 to o."""
        if self.language:
            return {}
        composed = compose("".join(self.split(text)[::2]), self.known)
        if self.cleaner == "basic" and not has_capitals(self.known):
            composed = lower_turkish(composed, self.known)
        letters = (c for c in composed if not c.isascii() and unicodedata.category(c)[0] in "LM")
        lacking = [c.lower() for c in letters if match_case(c, self.known) not in self.known]
        plain = {c: make_plain(c, self.known) for c in lacking}
        return {c: others for c, others in plain.items() if self.known.issuperset(others)}

    def describe_unknown(self, texts: Iterable[str]) -> str:
        """Name the characters that are left out, and count their texts; "" if there are none."""
        found = [[repr(c) for c in self.unknown_characters(text)] for text in texts]
        return _describe("characters that have no symbol are left out of", found)

    def describe_folded(self, texts: Iterable[str]) -> str:
        """Name the letters that are replaced, and count their texts; "" if there are none."""
        folded = [self.folded_letters(text) for text in texts]
        found = [[f"{c!r} as {letters!r}" for c, letters in of_text.items()] for of_text in folded]
        return _describe("letters that have no symbol are replaced in", found)


def check_symbols(symbols: Sequence[str]) -> None:
    """Check that a table is a list of different strings: padding and at least one more."""
    is_list = isinstance(symbols, (list, tuple)) and len(symbols) > 1
    if not is_list or not all(isinstance(symbol, str) and symbol for symbol in symbols):
        raise ValueError(f"symbols must be a list of at least two strings, found {symbols!r:.40}")
    if twice := sorted(symbol for symbol, n in Counter(symbols).items() if n > 1):
        raise ValueError(f"symbols must be unique, found twice: {' '.join(twice)}")


def _describe(what: str, found: Sequence[Sequence[str]]) -> str:
    """Count what was found in each text: "what 2 of 3 clips: 'a' in 2, 'b' in 1"."""
    counts = Counter(thing for of_text in found for thing in of_text)
    if not counts:
        return ""
    named = [f"{thing} in {n:,}" for thing, n in counts.most_common(MAX_NAMED)]
    if len(counts) > MAX_NAMED:
        named.append(f"and {len(counts) - MAX_NAMED:,} more")
    return f"{what} {sum(map(bool, found)):,} of {len(found):,} clips: {', '.join(named)}"
