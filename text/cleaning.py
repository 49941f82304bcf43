"""Clean text for a table of symbols: keep its characters, make the others plain.

    clean_text("Caf\u00e9 No. 5", known)              # "cafe number five"
    clean_text("Sch\u00f6n, Nr. 5", known, "basic")  # "sch\u00f6n, nr. 5", where it has them

Characters that the table lacks are written in lower case, without accents, with a keyboard's
punctuation. The cleaner "english" first spells out numbers, abbreviations and signs (english.py).
HTML's entities, such as &amp;, become the characters that they stand for.
"""

import re
import string
import unicodedata
from functools import lru_cache
from html import unescape
from html.entities import html5

from text.english import has_capitals, is_shouted, spell_capitals, to_words

CLEANERS = ("english", "basic")  # basic: for all other languages
# Characters that Unicode's equivalents (NFKC) leave as they are, or turn into something misread
TYPOGRAPHIC = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u00b4`\u2039\u203a", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d\u300e\u300f\u301d", '"'),
    **dict.fromkeys("\u2010\u2011\u2043\ufe63\uff0d", "-"),
    **dict.fromkeys("\u22ef\u2025", "..."),
    "\u00b2": "^2", "\u00b3": "^3", "\u2044": "/", "\u2116": "No. ", "\u2122": " ",
    "\u2033": "\u2033", "\u02da": "\u00b0", "\u00bf": "", "\u00a1": "",
    # The ends of sentences and clauses in other scripts
    **dict.fromkeys("\u0964\u0965\u06d4\u0589\u3002\uff61\u1362\u17d4\u17d5\u104b", "."),
    **dict.fromkeys("\u0f0d\u0f0e", "."),
    **dict.fromkeys("\u061f\u1367", "?"), **dict.fromkeys("\u1365\u1366", ":"),
    **dict.fromkeys("\u060c\u3001\uff64\u1363\u104a\u055d", ","),
    **dict.fromkeys("\u061b\u1364", ";"),
}  # fmt: skip
# Characters that Unicode's decomposition (NFKD) leaves as they are
PLAIN = {
    **dict.fromkeys("\u2032`", "'"),
    **dict.fromkeys("\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("[{", "("),
    **dict.fromkeys("]}", ")"),
    "\u2033": '"', "/": " ", "\u00df": "ss", "\u00e6": "ae", "\u0153": "oe", "\u00f8": "o",
    "\u0142": "l", "\u0111": "d", "\u00f0": "d", "\u00fe": "th", "\u0131": "i",
}  # fmt: skip
KNOWN_TO_ESPEAK = frozenset(string.ascii_letters + " !\"'(),-.:;?")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z]\w{1,30});")
_POWER = re.compile("(?<=\\d)([\u207a\u207b]?)([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)")
_TURKISH = str.maketrans("I\u0130", "\u0131i")
_DASH = re.compile(r"\s*\u2014\s*|\s*(?<!-)--+(?![->])\s*|(?<=[^\W\d]) - (?=[^\W\d])")
_SENTENCE = re.compile(r"(\.['\")\]]*\s+)([a-z]\w*)")
_LETTER_A = re.compile(  # beside another letter that stands alone
    r"\ba(?= [b-z](?![\w'-]))|(?<=(?<![\w'])[b-z] )a(?![\w'-])"
    r"|\bA(?= [B-Z](?![\w'-]))|(?<=(?<![\w'])[B-Z] )A(?![\w'-])"
)
_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")  # 10 000


def clean_text(text: str, known: frozenset[str], cleaner: str = "english") -> str:
    """Clean text for a table of the characters `known`; characters still unknown stay."""
    text = compose(decode_entities(text), known)
    if cleaner == "english":
        text = to_words(as_typed(text, known), known)
    else:
        text = "".join(c if c in known else TYPOGRAPHIC.get(c) or c for c in text)
    if not text.isascii():
        text = "".join(c if c in known else unicodedata.normalize("NFKD", c) for c in text)
    text = compose(text, known)  # joins half-width katakana with their marks, for example
    if not has_capitals(known):  # the whole text: a sigma at the end of a word has its own form
        text = lower_turkish(text, known) if cleaner == "basic" else text.lower()
    if not known.issuperset(text):
        text = match_case(text, known)
        text = match_case("".join(make_plain(c, known) for c in text), known)
    return re.sub(r"\s+", " ", text).strip()


def as_typed(text: str, known: frozenset[str]) -> str:
    """Write variants of characters as a keyboard has them; accents stay."""
    text = _THOUSANDS.sub(",", _POWER.sub(_write_power, text))
    return "".join(c if c.isascii() or c in known else _replace_character(c) for c in text)


def write_for_espeak(text: str) -> str:
    """Write English as words and marks that espeak-ng reads as people do.

    espeak-ng alone reads "$3.50" as "dollar three point five zero" and spells US in shouted text.
    It pauses at an en dash but not at "--", and neither at a full stop before a small letter, such
    as that of a number in words. The A of "7 a.m." is "eigh" here, because "a m" has an article.
    """
    text = _DASH.sub(" \u2013 ", as_typed(text, KNOWN_TO_ESPEAK))
    words = to_words(text, KNOWN_TO_ESPEAK)
    if is_shouted(text):
        words = spell_capitals(words, True).lower()

    def begin(match: re.Match) -> str:
        is_typed = match[0] in text and not text.islower()  # as in "et al. say"
        return match[0] if is_typed else match[1] + match[2].capitalize()

    return _LETTER_A.sub("eigh", _SENTENCE.sub(begin, words))


def decode_entities(text: str) -> str:
    """Replace HTML's entities, '&amp;' or '&#39;', also where they were encoded twice."""
    if "&" not in text:
        return text

    def decode(match: re.Match) -> str:
        is_known = match[0][1] == "#" or match[0][1:] in html5  # but "Smith &Co;" is none
        return unescape(match[0]) if is_known else match[0]

    return _ENTITY.sub(decode, _ENTITY.sub(decode, text))


def lower_turkish(text: str, known: frozenset[str]) -> str:
    """Write a text in lower case; in a table with a dotless i, I is that letter, as in Turkish."""
    return (text.translate(_TURKISH) if "\u0131" in known else text).lower()


def compose(text: str, known: frozenset[str]) -> str:
    """Join letters and their accents (NFC), and keep known characters that NFC splits."""
    text = unicodedata.normalize("NFC", text)
    for parts, character in _find_split(known).items():
        text = text.replace(parts, character)
    return text


@lru_cache(maxsize=16)
def _find_split(known: frozenset[str]) -> dict[str, str]:
    """Map the parts of known characters that NFC splits, such as U+095C, to the characters."""
    by_parts = {unicodedata.normalize("NFC", character): character for character in known}
    return {parts: character for parts, character in by_parts.items() if parts not in known}


def _write_power(match: re.Match) -> str:
    """Write the exponent of 10\u207b\u2075 as ^-5."""
    sign = "-" if match[1] == "\u207b" else ""
    return f"^{sign}{unicodedata.normalize('NFKC', match[2])}"


def _replace_character(character: str) -> str:
    """Write a variant of a character as a keyboard has it; accents stay."""
    if character in TYPOGRAPHIC:
        return TYPOGRAPHIC[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    equivalent = unicodedata.normalize("NFKC", character)
    if character.isnumeric():  # with a space before it: 1\u00bd is not 11/2
        return " " + equivalent.replace("\u2044", "/")
    return equivalent


def match_case(text: str, known: frozenset[str]) -> str:
    """Write characters that are known only in their other case in that case."""
    return "".join(
        c if c in known else next((o for o in (c.lower(), c.upper()) if o in known), c)
        for c in text
    )


def make_plain(character: str, known: frozenset[str]) -> str:
    """Write an unknown character in lower case, without accents, as a keyboard has it."""
    if character in known:
        return character
    parts = match_case(unicodedata.normalize("NFKD", character), known)
    parts = [part if part in known else part.lower() for part in parts]
    kept = (part for part in parts if part in known or not unicodedata.combining(part))
    return "".join(part if part in known else PLAIN.get(part, part) for part in kept)
