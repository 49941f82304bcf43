"""Turn text of any language into IPA, as espeak-ng pronounces it.

    to_ipa("Na, 2 Tage?", "de")    # "na, tsv\u02c8a\u026a t\u02c8\u0251\u02d0\u0261\u0259?"

espeak-ng reads the numbers, dates and abbreviations that it knows in that language. The library and
its languages come with `pip install espeakng-loader`.
"""

import ctypes
import os
import re
import threading
import unicodedata
from functools import lru_cache
from pathlib import Path

from command_line.files import DataError
from text.cleaning import TYPOGRAPHIC

# From speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_PHONEME_EVENTS, INITIALIZE_DONT_EXIT = 0x0001, 0x8000
CHARS_UTF8, PHONEMES_IPA = 1, 2

SAMPLING_RATE = 22050  # Hz, what espeak-ng's own synthesizer produces
PUNCTUATION = ".,;:!?"
# All that espeak-ng's tables of phonemes write in any language, so that each sound has a symbol,
# also one that no recording has: letters, Unicode's IPA extensions, signs after and on a letter
# (the last of them are combining characters), tones, and the capitals of sounds that lack an IPA.
IPA = (
    "abcdefghijklmnopqrstuvwxyz"
    "\u00e6\u00e7\u00f0\u00f8\u0127\u014b\u0153\u03a6\u03b2\u03b5\u03b8\u03c7\u1d7b"
    + "".join(map(chr, range(0x0250, 0x02B0)))
    + "\u02b0\u02b2\u02b7\u02bc\u02c8\u02cc\u02d0\u02d1\u02e0\u02e4"
    + "\u02e5\u02e6\u02e7\u02e8\u02e9\u1d50\u1d51\u1d5d\u1dae\u1daf\u207f"
    + "123456789AFKNSXZ"
    + "\u0303\u0306\u0308\u030a\u031d\u031e\u0325\u0329\u032a\u032f\u033a\u033b\u0361"
)
# What espeak-ng writes where a phoneme has no IPA: a glottal stop, a length, an ejective
MNEMONICS = str.maketrans({"?": "\u0294", ":": "\u02d0", "`": "\u02bc"})
_NO_IPA = re.compile(f"[^ {re.escape(IPA)}]")
_SWITCH = re.compile(r"\([a-z-]+\d*\)")  # (en) and (de) around an English word in German
# espeak-ng takes "3." before a small letter for an ordinal, and German months have a capital.
_GERMAN_DATE = re.compile(
    r"(?<=\d\. )(?:J\u00e4nner|Januar|Februar|M\u00e4rz|April|Mai|Juni|Juli|August|September"
    r"|Oktober|November|Dezember)\b"
)
# Ligatures, and degrees of temperature, which espeak-ng spells or skips
_COMPATIBLE = re.compile("[\ufb00-\ufb06\u2103\u2109]")
_LOCK = threading.Lock()  # the library has one language at a time


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """Load espeak-ng, which is one for the whole process."""
    try:
        import espeakng_loader
    except ImportError:
        raise DataError("espeak-ng is not installed: pip install espeakng-loader") from None
    data_path = espeakng_loader.get_data_path()
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except OSError as error:
        raise DataError(f"espeak-ng cannot be loaded: {error}") from None
    options = INITIALIZE_PHONEME_EVENTS | INITIALIZE_DONT_EXIT
    output = AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_path)
    if library.espeak_Initialize(*output, options) != SAMPLING_RATE:
        raise DataError(f"espeak-ng cannot read {data_path} (150 characters are its limit)")
    library.data_path = Path(data_path)
    library.espeak_TextToPhonemes.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_int
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    return library


def choose_voice(voice: str) -> ctypes.CDLL:
    """Choose the language that espeak-ng speaks, such as en-us; return the library."""
    library = load_library()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        names = sorted(path.name for path in library.data_path.glob("lang/**/*") if path.is_file())
        raise DataError(f"espeak-ng has no voice {voice!r:.40}; its languages: {' '.join(names)}")
    return library


@lru_cache(maxsize=2**17)
def to_ipa(text: str, language: str) -> str:
    """Write a text as IPA: words with stress, a space between two, and the clauses' punctuation.

    Spaces and punctuation around the text stay, so that it can be a part of another.
    """
    text = unicodedata.normalize("NFC", re.sub(r"[\s\x00-\x1f]+", " ", text))
    text = text.replace("\ufe0f", "")  # would make a sign colourful, and its name shorter
    text = _COMPATIBLE.sub(lambda c: unicodedata.normalize("NFKC", c[0]), text)
    if language.startswith("de"):
        text = _GERMAN_DATE.sub(lambda month: month[0].lower(), text)
    if not any(unicodedata.category(c)[0] in "LNS" for c in text):
        return _punctuation(text)
    start = re.match(r"(?:[\s.,;:!?]+(?!\d))?", text).end()  # ", and" after a group in braces
    written = [_punctuation(text[:start])]
    with _LOCK:
        library = choose_voice(language)
        buffer = ctypes.create_string_buffer(text[start:].encode())
        first = position = ctypes.addressof(buffer)
        pointer = ctypes.c_void_p(position)
        while pointer.value:  # a clause each time
            ipa = library.espeak_TextToPhonemes(ctypes.byref(pointer), CHARS_UTF8, PHONEMES_IPA)
            end = pointer.value or first + len(buffer) - 1
            clause = buffer.raw[position - first : end - first].decode(errors="ignore")
            position = end
            if pointer.value and clause[-1:].isalnum():
                clause = clause[:-1]  # the first letter of the next one
            words = _SWITCH.sub("", ipa.decode()).translate(MNEMONICS)
            words = _NO_IPA.sub("", decompose(words)).strip()
            gap = re.search(r"[\W_]*$", clause)[0] + (" " if pointer.value else "")
            written += [words, _punctuation(gap)]
    return "".join(written)


def decompose(ipa: str) -> str:
    """Write signs on IPA's letters as characters of their own; \u00e7 is a letter."""
    return unicodedata.normalize("NFD", ipa).replace("c\u0327", "\u00e7")


def _punctuation(gap: str) -> str:
    """Reduce what stands between two clauses to one mark, or none, and a space if it has one."""
    marks = "".join(
        TYPOGRAPHIC.get(c, c) for c in gap.replace("\u2013", ",").replace("\u2014", ",")
    )
    marks = unicodedata.normalize("NFKC", marks)
    mark = next((c for c in marks if c in PUNCTUATION), "")
    return mark + (" " if " " in gap else "")
