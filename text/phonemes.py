"""Write phonemes in text: ARPAbet in braces, and words as CMUdict pronounces them.

dictionary = load_dictionary()                    # needs requirements/phonemes.txt
to_phonemes("turn left", dictionary)              # "{T ER1 N} {L EH1 F T}"
to_phonemes("turn xqz", dictionary)               # "{T ER1 N} xqz": not in the dictionary
"""

import re
from collections.abc import Mapping

import numpy as np

from command_line.files import import_extra

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
# Vowels carry no stress mark, or 0 (unstressed), 1 (primary stress), 2 (secondary stress).
ARPABET = tuple(sorted(CONSONANTS.split() + [v + s for v in VOWELS.split() for s in ("", *"012")]))
_ONE_PHONEME = rf"(?:{'|'.join(sorted(ARPABET, key=len, reverse=True))})"
PHONEMES_IN_BRACES = re.compile(rf"(\{{\s*{_ONE_PHONEME}(?:\s+{_ONE_PHONEME})*\s*\}})")
_LIKE_PHONEMES_IN_BRACES = re.compile(r"\{\s*([A-Z]{1,3}\d?(?:\s+[A-Z]{1,3}\d?)*)\s*\}")
_WORD_OR_BRACES = re.compile(r"\{[^{}]*\}|[A-Za-z]+(?:'[A-Za-z]+)*")
SHARE_OF_TEXTS, SHARE_OF_WORDS = 0.5, 0.5  # that training writes in phonemes


def find_odd_phoneme(text: str) -> str:
    """Find a wrong name among phonemes: '{T ER3 N}' -> 'ER3 in {T ER3 N}'; "" if there is none."""
    for group in _LIKE_PHONEMES_IN_BRACES.finditer(text):
        names = group[1].split()
        odd = [name for name in names if name not in ARPABET]
        if 0 < len(odd) < len(names):
            return f"{odd[0]} in {group[0]}"
    return ""


def load_dictionary() -> dict[str, str]:
    """Load CMUdict: each word, in lower case, with its first pronunciation: 'turn' -> 'T ER1 N'."""
    cmudict = import_extra("cmudict", "--phonemes", "requirements/phonemes.txt")
    return {word: " ".join(phonemes[0]) for word, phonemes in cmudict.dict().items()}


def to_phonemes(
    text: str, dictionary: Mapping[str, str], rng: np.random.Generator | None = None
) -> str:
    """Replace the words of a cleaned text by ARPAbet in braces, where the dictionary has them.

    With an rng, for training, that is half of the words of half of the texts.
    """
    if rng is not None and rng.random() >= SHARE_OF_TEXTS:
        return text

    def pronounce(match: re.Match) -> str:
        phonemes = dictionary.get(match[0].lower())
        if not phonemes or (rng is not None and rng.random() >= SHARE_OF_WORDS):
            return match[0]
        return f"{{{phonemes}}}"

    return _WORD_OR_BRACES.sub(pronounce, text)
