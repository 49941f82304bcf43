"""Speak with SVOX Pico, and measure when each word begins.

    samples, starts = Speaker("en-US").speak("Come in now.")

The library and its voices come with `pip install py-nanotts`, for Linux on x86-64.
"""

import ctypes
import re

import numpy as np

from command_line.files import DataError
from corpora.demo_sentences import WORD

VOICES = {"en": "en-US", "de": "de-DE", "es": "es-ES", "fr": "fr-FR", "it": "it-IT"}
SAMPLING_RATE = 22050  # Hz, to which the 16,000 Hz of Pico are resampled
PICO_RATE = 16_000
SILENCE_LEVEL = 160  # of 32768: -46 dB of full scale; Pico's pauses have a faint noise
VOLUME, PROBE_VOLUME = 50, 10  # percent; from about 70 on, the loudest vowels clip

FRAME = 64  # samples: Pico makes its sound in frames of 4 ms, each of one volume
# A change of volume is heard this much before the first phoneme that is spoken after it: measured
# in 38 words that begin with s after a vowel, where it was 38 to 54 ms.
VOLUME_LEAD = 0.046  # seconds

# Pico reads memory that it never wrote, so a sentence's sound would depend on the one before it.
# Linux gives pages of zeros to every allocation of at least this many bytes; Pico's has 2,500,000.
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 1 << 20


class Speaker:
    """Speaks with SVOX Pico, in one voice."""

    def __init__(self, voice: str) -> None:
        try:
            import py_nanotts
        except ImportError as error:
            raise DataError(
                f"SVOX Pico cannot be loaded ({error}): pip install py-nanotts"
            ) from None
        voices = [known.value for known in py_nanotts.Voice]
        if voice not in voices:
            raise DataError(f"SVOX Pico has no voice {voice!r}; it has {', '.join(voices)}")
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        self.voice, self.engine = voice, py_nanotts.NanoTTS()

    def speak(self, text: str) -> tuple[np.ndarray, dict[int, int]]:
        """Speak one line of text: samples (n_samples,) int16, and {index: sample}.

        index is that of a word's first character, sample its first sample. Pico reports no times.
        The text is therefore spoken twice, the second time with every other word at another volume:
        where the two begin to differ, or to agree again, the next word begins. Where one of the
        words makes no sound, no word's time is known.
        """
        words = [match.start() for match in find_words(text)]
        wav, probe = (self.synthesize(mark_words(text, probe)) for probe in (VOLUME, PROBE_VOLUME))
        starts = find_starts(wav, probe)
        wav = resample(wav)
        seconds = [start / PICO_RATE + VOLUME_LEAD for start in starts]
        loud = np.flatnonzero(np.abs(wav.astype(np.int32)) > SILENCE_LEVEL)
        first = int(loud[0]) if len(loud) else 0
        samples = [first, *(round(second * SAMPLING_RATE) for second in seconds)]
        return wav, dict(zip(words, samples, strict=True)) if len(samples) == len(words) else {}

    def synthesize(self, text: str) -> np.ndarray:
        """Synthesize text with Pico's tags: samples (n_samples,) int16 at PICO_RATE."""
        try:
            return np.frombuffer(self.engine.speak(text, voice=self.voice), np.int16)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"SVOX Pico could not speak {text!r}: {error}") from None


def find_words(text: str) -> list[re.Match[str]]:
    """Find the first word of each part between spaces: a tag inside of 3.14 would change it."""
    parts = re.finditer(r"\S+", text)
    found = (WORD.search(text, part.start(), part.end()) for part in parts)
    return [word for word in found if word]


def mark_words(text: str, probe_volume: int) -> str:
    """Tag the words with their volumes: VOLUME and probe_volume in turn."""
    marked, position = "", 0
    for i, word in enumerate(find_words(text)):
        volume = probe_volume if i % 2 else VOLUME
        marked += f'{plain(text[position : word.start()])}<volume level="{volume}">'
        position = word.start()
    return marked + plain(text[position:])


def plain(text: str) -> str:
    """Replace what Pico would read as a tag."""
    return re.sub("[<>]", " ", text)


def find_starts(wav: np.ndarray, probe: np.ndarray) -> list[int]:
    """Find the samples from which wav and probe (n_samples,) differ, or are equal again."""
    n_frames = len(wav) // FRAME
    frames, probed = (x[: n_frames * FRAME].reshape(n_frames, FRAME) for x in (wav, probe))
    heard = np.flatnonzero(frames.any(axis=1))  # a silent frame tells nothing
    same = (frames == probed).all(axis=1)[heard]
    return [int(i) * FRAME for i in heard[1:][same[1:] != same[:-1]]]


def resample(wav: np.ndarray) -> np.ndarray:
    """Resample (n_samples,) int16 from PICO_RATE to SAMPLING_RATE."""
    from scipy.signal import resample_poly  # slow to import

    wav = resample_poly(wav.astype(float), SAMPLING_RATE, PICO_RATE)
    return np.clip(np.rint(wav), -32768, 32767).astype(np.int16)
