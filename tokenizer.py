"""Text to token ids and back.

    tokenizer = Tokenizer()
    tokens = tokenizer.encode("Printing, in 1465")   # LongTensor (T_text,)
    tokenizer.decode(tokens)                         # "printing, in fourteen sixty-five"

`clean_text` makes the text plain: accents off, typographic punctuation to ASCII, common
abbreviations and numbers to words, lower case, single spaces. Characters that are then still
unknown are left out, and `unknown_characters` names them.
"""

import re
import unicodedata
from collections.abc import Sequence

import torch
from num2words import num2words
from torch import Tensor

PAD = "<pad>"
DEFAULT_SYMBOLS = (PAD, *" !\"'(),-.:;?", *"abcdefghijklmnopqrstuvwxyz")
PLAIN_PUNCTUATION = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032`", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("[{", "("),
    **dict.fromkeys("]}", ")"),
    "\u00df": "ss",
    "\u00e6": "ae",
    "\u0153": "oe",
    "\u00f8": "o",
    "\u0142": "l",
    "&": " and ",
    "%": " percent",
    "/": " ",
    "\u2044": " ",
}
ABBREVIATIONS = {
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "st": "saint",
    "co": "company",
    "jr": "junior",
    "sr": "senior",
    "maj": "major",
    "gen": "general",
    "capt": "captain",
    "lt": "lieutenant",
    "col": "colonel",
    "sgt": "sergeant",
    "rev": "reverend",
    "hon": "honorable",
    "esq": "esquire",
    "ltd": "limited",
    "ft": "fort",
}
CURRENCIES = {
    "$": ("dollar", "dollars"),
    "\u00a3": ("pound", "pounds"),
    "\u20ac": ("euro", "euros"),
}

_ABBREVIATION = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\.")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"  # a comma only before three figures
_MONEY = re.compile(rf"([$\u00a3\u20ac])\s?({_WHOLE}(?:\.\d+)?)")
_NUMBER = re.compile(rf"{_WHOLE}(?:\.\d+)?")
_ORDINAL = re.compile(rf"\b({_WHOLE})(?:st|nd|rd|th)\b")
MAX_FIGURES = 15  # longer numbers are read figure by figure


def _spell_figures(figures: str) -> str:
    return " ".join(num2words(int(figure)) for figure in figures)


def _spell_number(number: str, may_be_year: bool = True) -> str:
    """'1465' -> 'fourteen sixty-five'; '1,465' -> 'one thousand ...'; '2.5' -> 'two point five'."""
    whole, _, decimals = number.replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    if len(whole) > MAX_FIGURES or (len(whole) > 1 and whole[0] == "0"):
        words = _spell_figures(whole)
    else:
        # Four figures without a comma are read as LJSpeech's reader does, as a year.
        is_year = may_be_year and number == whole and len(whole) == 4 and whole[1:3] != "00"
        words = num2words(int(whole), to="year" if is_year else "cardinal")
    return f"{words} point {_spell_figures(decimals)}" if decimals else words


def _spell_money(match: re.Match) -> str:
    singular, plural = CURRENCIES[match[1]]
    words = _spell_number(match[2], may_be_year=False)
    return f"{words} {singular if words == 'one' else plural}"


def _spell_ordinal(match: re.Match) -> str:
    whole = match[1].replace(",", "")
    return match[0] if len(whole) > MAX_FIGURES else num2words(int(whole), to="ordinal")


def clean_text(text: str) -> str:
    """Plain lower-case text: what `Tokenizer.encode` looks up, character by character."""
    # A fraction or an exponent must not run into the number before it: 1\u00bd is not 11/2.
    text = "".join(f" {c}" if c.isnumeric() and not c.isdecimal() else c for c in text)
    text = unicodedata.normalize("NFKD", text).lower()
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = "".join(PLAIN_PUNCTUATION.get(character, character) for character in text)
    text = _ABBREVIATION.sub(lambda match: ABBREVIATIONS[match[1]], text)
    text = _MONEY.sub(_spell_money, text)
    text = _ORDINAL.sub(_spell_ordinal, text)
    text = _NUMBER.sub(lambda match: _spell_number(match[0]), text)
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
        self.ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        if len(self.ids) < len(self.symbols):
            twice = sorted({s for s in self.symbols if self.symbols.count(s) > 1})
            raise ValueError(f"symbols must be unique, found twice: {' '.join(twice)}")

    @property
    def vocab_size(self) -> int:
        """Number of symbols, padding included."""
        return len(self.symbols)

    def unknown_characters(self, text: str) -> str:
        """The characters of the cleaned text that the table lacks, each once, in order."""
        known = set(self.symbols[1:])
        return "".join(dict.fromkeys(c for c in clean_text(text) if c not in known))

    def encode(self, text: str) -> Tensor:
        """Token ids of the cleaned text, shape (T_text,), int64; unknown characters left out.

        Raises:
            ValueError: when nothing is left to say.
        """
        known = {symbol: i for symbol, i in self.ids.items() if i != self.pad_token_id}
        cleaned = clean_text(text)
        tokens = [known[character] for character in cleaned if character in known]
        if not any(self.symbols[token].isalpha() for token in tokens):
            raise ValueError(f"text has no letter to speak: {text[:80]!r}")
        return torch.tensor(tokens, dtype=torch.int64)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of token ids, padding left out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        return "".join(self.symbols[i] for i in ids if i != self.pad_token_id)
