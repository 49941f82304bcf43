"""Speak with espeak-ng, through its C library, and measure when each word begins.

    samples, starts = Speaker("en-us").speak("Come in now.")

The library and its voices come with `pip install espeakng-loader`.
"""

import ctypes
import re
from typing import Any

import numpy as np

from command_line.files import DataError
from text.espeak import CHARS_UTF8, choose_voice
from text.espeak import SAMPLING_RATE as SAMPLING_RATE  # as every engine has one

VOICES = {"en": "en-us"}  # those of other languages have the language's name
WORDS_PER_MINUTE = 160
SILENCE_LEVEL = 32  # of 32768: -60 dB of full scale; espeak-ng's pauses are exact zeros

# espeak-ng's dictionary speaks pairs such as "of the" as one word, with one event for both.
# A zero-width space after each space separates them and makes no sound.
WORD_SEPARATOR = "\u200b"

# From speak_lib.h.
POS_CHARACTER, ENDPAUSE = 1, 0x1000
EVENT_LIST_TERMINATED, EVENT_WORD, EVENT_PHONEME = 0, 1, 7
PARAMETER_RATE = 1


class EspeakEvent(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # 1-based, in characters
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_ubyte * 8),  # a union; a phoneme's name
    ]


SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(EspeakEvent)
)


class Speaker:
    """Speaks with espeak-ng, in one voice. The library is global: one per process."""

    def __init__(self, voice: str) -> None:
        self.library = choose_voice(voice)
        self.library.espeak_SetParameter(PARAMETER_RATE, WORDS_PER_MINUTE, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # espeak-ng seeds with the time
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, int, int, bytes]] = []
        self.callback = SynthCallback(self._collect)  # kept: the library holds only a pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: Any, n_samples: int, events: Any) -> int:
        """Keep a chunk of samples and the events in it, as a SynthCallback; 0 means go on."""
        if samples and n_samples > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        for event in events:  # an endless pointer: the list ends with a marked event
            if event.type == EVENT_LIST_TERMINATED:
                break
            phoneme = bytes(event.id) if event.type == EVENT_PHONEME else b""
            self.events.append((event.type, event.text_position - 1, event.sample, phoneme))
        return 0

    def speak(self, text: str) -> tuple[np.ndarray, dict[int, int]]:
        """Speak one line of text: samples (n_samples,) int16, and {index: sample}.

        index is that of a word's first character, sample its first sample. It comes from the event
        of the first phoneme, because a word's own event includes the silence before p, t or k.
        """
        spoken = re.sub(r"(\s)", r"\1" + WORD_SEPARATOR, text)
        text_index = [i for i, char in enumerate(text) for _ in range(1 + char.isspace())]
        self.chunks, self.events = [], []
        data, flags = spoken.encode() + b"\0", CHARS_UTF8 | ENDPAUSE
        size = ctypes.c_size_t(len(data))
        if self.library.espeak_Synth(data, size, 0, POS_CHARACTER, 0, flags, None, None) != 0:
            raise DataError(f"espeak-ng could not speak {text!r}")
        starts, word = {}, None
        for kind, position, sample, phoneme in self.events:
            if kind == EVENT_WORD:
                word = text_index[position] if 0 <= position < len(text_index) else None
            elif kind == EVENT_PHONEME and word is not None and not phoneme.startswith(b"_"):
                starts.setdefault(word, sample)
                word = None
        return np.concatenate([np.zeros(0, np.int16), *self.chunks]), starts
