"""Find when each word of a spoken text begins and ends, from the alignments of its pieces.

    words = time_words(text, result, voice)                       # of each piece
    words = restore_words(typed, words, voice.tokenizer.clean)    # as they were typed
    write_timings(words, Path("spoken/001"))                      # 001.json, 001.srt

A word is what stands between two spaces; a pause belongs to no word.
"""

import json
import math
import re
from collections.abc import Callable
from difflib import SequenceMatcher
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from command_line.files import file_errors, write_text
from dataset import to_log_mel
from speech.speaking import Synthesis, encode
from speech.voice import Voice

WORD = re.compile(r"(?:\{[^{}]*\}|\S)+")  # phonemes in braces have spaces between them
# The closure of a t or a k is as quiet as a pause, and shorter.
MIN_PAUSE = 0.1  # seconds
QUIET = 40.0  # dB below the loudest frame
DECIBELS = 20 / math.log(10)  # of a natural logarithm


class Word(NamedTuple):
    """A word of a sound, and when it is spoken, in seconds."""

    word: str
    start: float
    end: float


def is_spoken(text: str) -> bool:
    """Return True if a text has a letter or a digit."""
    return any(map(str.isalnum, text))


def time_words(
    text: str, result: Synthesis, voice: Voice, offset: float = 0.0, speed: float = 1.0
) -> list[Word]:
    """Time the words of a piece, as they are spoken, whose sound begins at `offset` seconds.

    A word lasts until attention reaches the first letter of the next one, unless the sound pauses
    between the two: attention goes ahead of the sound there.
    """
    symbols = [voice.tokenizer.decode([token]) for token in encode(text, voice).tolist()]
    furthest = result.alignment.argmax(dim=1).cummax(dim=0).values.numpy()  # (T_mel,)
    reached = furthest.searchsorted(range(len(symbols) + 1)).tolist()  # the frame of each symbol
    words, letters = [], [(0, 0)]  # the first and the last letter of each word
    for _, run in groupby(enumerate(symbols), key=lambda item: item[1].isspace()):
        run = list(run)
        if spoken := [i for i, symbol in run if is_spoken(symbol)]:
            words.append("".join(symbol for _, symbol in run))
            letters.append((spoken[0], spoken[-1]))
    pauses, n_frames = find_pauses(result.mel, voice), len(result.mel)
    borders: list[int] = []  # frames: for each pause, its start and its end
    for (_, last), (first, _) in pairwise([*letters, (len(symbols), 0)]):
        begin, end = reached[last], reached[min(first + 1, len(symbols))]
        near = [pause for pause in pauses if pause[0] <= end and pause[1] >= begin]
        border = reached[first] if first < len(symbols) else n_frames
        borders += max(near, key=lambda pause: pause[1] - pause[0], default=(border, border))
    seconds = voice.audio_config.hop_seconds / speed
    times = [offset + frame * seconds for frame in accumulate(borders, max)][1:-1]
    return [Word(*word) for word in zip(words, times[::2], times[1::2], strict=True)]


def find_pauses(mel: Tensor, voice: Voice) -> list[tuple[int, int]]:
    """Find where a mel (T_mel, num_mels) is quiet, at its ends or for long: first frame, end."""
    levels = to_log_mel(mel, voice.audio_config).logsumexp(dim=1)  # (T_mel,) of magnitudes
    quiet = (levels < levels.max() - QUIET / DECIBELS).tolist()
    min_frames, pauses, frame = MIN_PAUSE / voice.audio_config.hop_seconds, [], 0
    for is_quiet, run in groupby(quiet):
        start, frame = frame, frame + len(list(run))
        if is_quiet and (frame - start >= min_frames or start == 0 or frame == len(quiet)):
            pauses.append((start, frame))
    return pauses


def restore_words(typed: str, words: list[Word], clean: Callable[[str], str]) -> list[Word]:
    """Replace the spoken words of a text by those that were typed: "five dollars" by "$5".

    `clean` turns each typed word into what would be spoken if it stood alone. Where more or fewer
    words were spoken, neighbours share one entry, as "$5 million" does. Punctuation that stands
    alone goes to the word before it, so that the entries together are the whole text.
    """
    typed_words = WORD.findall(typed)
    cleaned = {word: [*filter(is_spoken, WORD.findall(clean(word)))] for word in {*typed_words}}
    expected = [(i, part) for i, word in enumerate(typed_words) for part in cleaned[word]]
    texts = [key_of(part) for _, part in expected], [key_of(word.word) for word in words]
    starts = [(0, 0)]  # of each entry: its first word among those typed, and among those spoken
    early: list[str] = []  # spoken just before, in another order than typed
    for kind, i, i_end, j, j_end in SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        while kind in ("replace", "delete") and i < i_end and texts[0][i] in early:
            early.remove(texts[0][i])
            i += 1
        if kind != "equal":
            early = texts[1][j:j_end] if kind == "insert" else []
        n_typed, n_spoken = i_end - i, j_end - j
        for k in range(n_spoken if n_typed == n_spoken else min(n_typed, n_spoken, 1)):
            if expected[i + k][0] > starts[-1][0] and j + k > starts[-1][1]:
                starts.append((expected[i + k][0], j + k))
    ends = [*starts[1:], (len(typed_words), len(words))]
    return [
        Word(" ".join(typed_words[i:i_end]), words[j].start, words[j_end - 1].end)
        for (i, j), (i_end, j_end) in zip(starts, ends, strict=True)
    ]


def key_of(word: str) -> str:
    """Return the letters and digits of a word, by which two are compared."""
    return "".join(filter(str.isalnum, word)).lower()


@file_errors()
def write_timings(words: list[Word], path: Path) -> None:
    """Write the words to path.json, as {"word", "start", "end"}, and to path.srt, a cue each."""
    words = [Word(word, round(start, 3), round(end, 3)) for word, start, end in words]
    lines = [json.dumps(word._asdict(), ensure_ascii=False) for word in words]
    cues = [
        f"{number}\n{format_time(word.start)} --> {format_time(word.end)}\n{word.word}\n"
        for number, word in enumerate(words, start=1)
    ]
    for suffix, text in (("json", "[" + ",\n ".join(lines) + "]\n"), ("srt", "\n".join(cues))):
        write_text(f"{path}.{suffix}", text)


def format_time(seconds: float) -> str:
    """Write a time as SubRip does: 00:01:02,345."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{milliseconds:03d}"
