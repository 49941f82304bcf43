"""Speaks an LJSpeech-shaped corpus with espeak-ng: training data that needs no download.

    python make_demo_corpus.py --path_to_save demo/corpus
    python make_demo_corpus.py --path_to_save demo/book --sentences book.txt

The first command speaks several thousand short English sentences of the seeded grammar in
demo_sentences.py; the second speaks any text file, one sentence a line. Both write, at 22,050 Hz:

    metadata.csv     id|text|text, as in LJSpeech
    wavs/ID.wav      mono, 16 bit
    word_times.json  {id: [{"word", "index" of its first character, "start" in seconds}, ...]}
    corpus.json      the arguments and totals

word_times.json is the true alignment, measured by the synthesizer itself, that a trained model's
attention can be judged by. espeak-ng and its voices come with `pip install espeakng-loader`.
The same arguments give the same bytes, because no sentence is spoken by a process that has
spoken anything but its own fixed block of sentences before it (see BLOCK_SIZE).
"""

import argparse
import ctypes
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from command_line.files import DataError, file_errors, path_argument, write_whole
from command_line.flags import FlagParser
from corpora.demo_sentences import WORD, CorpusError, make_sentences, read_sentences

SAMPLING_RATE = 22050  # Hz, what espeak-ng's own synthesizer produces
N_SENTENCES, MIN_CHARS, MAX_CHARS, SEED = 3300, 10, 32, 42
WORDS_PER_MINUTE, SLOWEST, FASTEST = 160, 80, 450  # the last two are espeak-ng's limits
MAX_LEAD_SECONDS = 0.05
TAIL_SECONDS = 0.1
SILENCE_LEVEL = 32  # of 32768: -60 dB of full scale; espeak-ng's pauses are exact zeros

# espeak-ng carries the phase of its pitch flutter from one sentence to the next, even across
# espeak_Terminate, so what a process has spoken before changes the samples. Every block of this
# many sentences therefore gets a fresh process; the corpus is the same whatever runs beside it.
BLOCK_SIZE = 250
N_PROCESSES = os.cpu_count() or 1

# espeak-ng's dictionary speaks pairs such as "of the" as one word, with one event for both.
# A zero-width space after each space keeps the pairs apart and is not heard.
WORD_SEPARATOR = "\u200b"

# From speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_PHONEME_EVENTS, INITIALIZE_DONT_EXIT = 0x0001, 0x8000
POS_CHARACTER, CHARS_UTF8, ENDPAUSE = 1, 1, 0x1000
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
    """espeak-ng with one voice at one speed. The library is global: one per process."""

    def __init__(self, voice: str, words_per_minute: int) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise CorpusError("espeak-ng is not installed: pip install espeakng-loader") from None
        data_path = espeakng_loader.get_data_path()
        try:
            self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise CorpusError(f"espeak-ng cannot be loaded: {error}") from None
        options = INITIALIZE_PHONEME_EVENTS | INITIALIZE_DONT_EXIT
        rate = self.library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_path), options
        )
        if rate != SAMPLING_RATE:
            raise CorpusError(
                f"espeak-ng cannot read {data_path} (paths over 150 characters are too long)"
            )
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise CorpusError(
                f"espeak-ng has no voice {voice!r}; its voices are the files in {data_path}/lang"
            )
        self.library.espeak_SetParameter(PARAMETER_RATE, words_per_minute, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # espeak-ng seeds with the time
        self.library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
            ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, int, int, bytes]] = []
        self.callback = SynthCallback(self._collect)  # kept: the library holds only a pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: Any, n_samples: int, events: Any) -> int:
        """SynthCallback: keeps a chunk of samples and the events in it; 0 is to go on."""
        if samples and n_samples > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        for event in events:  # an endless pointer: the list ends with a marked event
            if event.type == EVENT_LIST_TERMINATED:
                break
            phoneme = bytes(event.id) if event.type == EVENT_PHONEME else b""
            self.events.append((event.type, event.text_position - 1, event.sample, phoneme))
        return 0

    def speak(self, text: str) -> tuple[np.ndarray, dict[int, int]]:
        """Speaks one line of text.

        Returns the samples, (n_samples,) int16 at 22,050 Hz, and {index: sample}: where in the
        samples the sound of the word starts whose first character is text[index].

        A word's event marks the start of its first phoneme's slot, and the slot of p, t or k
        opens with up to 49 ms of closed lips or tongue, so the first *phoneme's* event, which
        marks its sound, gives the time. Raises CorpusError where nothing is spoken.
        """
        spoken = re.sub(r"(\s)", r"\1" + WORD_SEPARATOR, text)
        text_index = [i for i, char in enumerate(text) for _ in range(1 + char.isspace())]
        self.chunks, self.events = [], []
        data = spoken.encode() + b"\0"
        flags = CHARS_UTF8 | ENDPAUSE
        if self.library.espeak_Synth(data, len(data), 0, POS_CHARACTER, 0, flags, None, None) != 0:
            raise CorpusError(f"espeak-ng could not speak {text!r}")
        starts, word = {}, None
        for kind, position, sample, phoneme in self.events:
            if kind == EVENT_WORD:
                word = text_index[position] if 0 <= position < len(text_index) else None
            elif kind == EVENT_PHONEME and word is not None and not phoneme.startswith(b"_"):
                starts.setdefault(word, sample)
                word = None
        return trim_silence(np.concatenate([np.zeros(0, np.int16), *self.chunks]), starts, text)


def trim_silence(
    wav: np.ndarray, starts: dict[int, int], text: str
) -> tuple[np.ndarray, dict[int, int]]:
    """Leaves at most MAX_LEAD_SECONDS of silence before the speech, and TAIL_SECONDS after it."""
    loud = np.flatnonzero(np.abs(wav.astype(np.int32)) > SILENCE_LEVEL)
    if not len(loud):
        raise CorpusError(f"espeak-ng spoke nothing for {text!r}")
    first = max(0, int(loud[0]) - round(MAX_LEAD_SECONDS * SAMPLING_RATE))
    tail = np.zeros(round(TAIL_SECONDS * SAMPLING_RATE), np.int16)
    trimmed = np.concatenate([wav[first : loud[-1] + 1], tail])
    return trimmed, {index: max(0, n - first) for index, n in starts.items()}


def word_times(text: str, starts: dict[int, int]) -> tuple[list[dict], int]:
    """Joins the words of a text with their starts in samples.

    Returns the words that have a time, and the number of those that have none.
    """
    times = []
    words = list(WORD.finditer(text))
    for word in words:
        start = starts.get(word.start())
        if start is not None:
            seconds = round(start / SAMPLING_RATE, 5)
            times.append({"word": word[0], "index": word.start(), "start": seconds})
    return times, len(words) - len(times)


def speak_block(
    block: list[tuple[str, str]], wavs: Path, voice: str, words_per_minute: int
) -> list:
    """Speaks [(id, text), ...] into wavs; returns [(id, seconds, times, n_untimed), ...]."""
    speaker = Speaker(voice, words_per_minute)
    clips = []
    for clip_id, text in block:
        wav, starts = speaker.speak(text)
        soundfile.write(wavs / f"{clip_id}.wav", wav, SAMPLING_RATE, subtype="PCM_16")
        clips.append((clip_id, len(wav) / SAMPLING_RATE, *word_times(text, starts)))
    return clips


def speak_block_apart(block: list[tuple[str, str]], *speech: Path | str | int) -> list:
    """speak_block, with its arguments, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit what was spoken
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(speak_block, block, *speech).result()
    except BrokenProcessPool:
        raise CorpusError("a speaking process died; was the machine out of memory?") from None


def speak_all(clips: list[tuple[str, str]], *speech: Path | str | int) -> Iterator[list]:
    """Yields what speak_block returns, block after block, N_PROCESSES at a time."""
    blocks = [clips[i : i + BLOCK_SIZE] for i in range(0, len(clips), BLOCK_SIZE)]
    mask = {}
    if hasattr(signal, "pthread_sigmask"):  # processes inherit it: Ctrl-C is for this one alone
        resource_tracker.ensure_running()  # the first process would start it, and it unmasks
        mask["initializer"] = signal.pthread_sigmask
        mask["initargs"] = (signal.SIG_BLOCK, [signal.SIGINT])
    with ThreadPoolExecutor(N_PROCESSES, **mask) as threads:
        yield from threads.map(lambda block: speak_block_apart(block, *speech), blocks)


def write_corpus(
    folder: Path, sentences: list[str], spares: Iterator[str], voice: str, words_per_minute: int
) -> dict:
    """Writes wavs, metadata.csv and word_times.json into an empty folder; returns the totals.

    A sentence with a word that has no time is replaced by the next of the spares while there are
    any, and otherwise kept without that word's time.
    """
    (folder / "wavs").mkdir()
    texts = {f"DEMO-{n:05d}": text for n, text in enumerate(sentences, start=1)}
    done, todo, n_replaced = {}, list(texts), 0
    with tqdm(total=len(texts), unit=" clips", disable=not sys.stderr.isatty()) as bar:
        while todo:
            clips = [(clip_id, texts[clip_id]) for clip_id in todo]
            for block in speak_all(clips, folder / "wavs", voice, words_per_minute):
                done |= {clip_id: rest for clip_id, *rest in block}
                bar.update(len(block))
            spare_of = dict(zip((i for i in todo if done[i][2]), spares, strict=False))
            texts |= spare_of
            todo = list(spare_of)
            n_replaced += len(todo)
    metadata = "".join(f"{clip_id}|{text}|{text}\n" for clip_id, text in texts.items())
    (folder / "metadata.csv").write_text(metadata, encoding="utf-8", newline="\n")
    times = ",\n".join(f"{json.dumps(i)}: {json.dumps(done[i][1])}" for i in texts)
    (folder / "word_times.json").write_text(f"{{\n{times}\n}}\n", encoding="utf-8", newline="\n")
    return {
        "n_clips": len(texts),
        "seconds": round(sum(seconds for seconds, _, _ in done.values()), 2),
        "n_words": sum(len(words) for _, words, _ in done.values()),
        "n_words_without_time": sum(n for _, _, n in done.values()),
        "n_sentences_replaced": n_replaced,
    }


def choose_sentences(args: argparse.Namespace) -> tuple[list[str], Iterator[str]]:
    """The sentences to speak, and spares for those that espeak-ng does not time word by word."""
    if args.n_sentences is not None and args.n_sentences < 1:
        raise CorpusError(f"--n_sentences is {args.n_sentences}; it must be at least 1")
    if args.sentences is not None:
        return read_sentences(args.sentences, args.n_sentences), iter(())
    n_sentences = args.n_sentences or N_SENTENCES
    if not 1 <= args.min_chars <= args.max_chars:
        raise CorpusError(f"no length is {args.min_chars} to {args.max_chars} characters")
    supply = make_sentences(args.min_chars, args.max_chars, args.seed)
    sentences = list(itertools.islice(supply, n_sentences))
    if len(sentences) < n_sentences:
        raise CorpusError(
            f"the grammar gives only {len(sentences)} different sentences of {args.min_chars} to"
            f" {args.max_chars} characters; lower --n_sentences or widen the range"
        )
    return sentences, itertools.islice(supply, n_sentences)


@file_errors()
def is_there(folder: Path, arguments: dict, overwrite: bool) -> bool:
    """Whether folder already holds the complete corpus of these arguments.

    Raises CorpusError where it holds anything else that may not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        record = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        found, n_clips = dict(record["arguments"]), int(record["n_clips"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise CorpusError(
            f"{folder} exists and was not made by this script; choose another"
        ) from None
    if overwrite:
        return False
    if found != arguments:
        names = [name for name in arguments if found.get(name) != arguments[name]]
        raise CorpusError(
            f"{folder} holds another corpus (other {', '.join(names)}); choose another folder"
            " or add --overwrite"
        )
    if len(list((folder / "wavs").glob("*.wav"))) != n_clips:
        raise CorpusError(f"{folder} has lost some of its {n_clips} wavs; add --overwrite")
    return True


def build_corpus(args: argparse.Namespace) -> str:
    """Makes the corpus, whole or not at all; returns a sentence about it.

    Raises CorpusError for what the person at the command line can put right.
    """
    if not SLOWEST <= args.words_per_minute <= FASTEST:
        raise CorpusError(f"--words_per_minute must be {SLOWEST} to {FASTEST}")
    sentences, spares = choose_sentences(args)
    arguments = {
        "n_sentences": len(sentences),
        "sentences_sha256": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
        "voice": args.voice,
        "words_per_minute": args.words_per_minute,
    }
    folder = Path(args.path_to_save).absolute()
    if is_there(folder, arguments, args.overwrite):
        return f"{folder} is already there, made with the same arguments."
    Speaker(args.voice, args.words_per_minute)  # so that a bad voice fails here, in words
    totals: dict = {}

    def write(scratch: Path) -> None:
        scratch.mkdir()
        totals.update(write_corpus(scratch, sentences, spares, args.voice, args.words_per_minute))
        record = json.dumps({"arguments": arguments, **totals}, indent=2)
        (scratch / "corpus.json").write_text(record + "\n", encoding="utf-8")

    with file_errors():
        write_whole(folder, write)
    return (
        f"{folder}: {totals['n_clips']} clips, {totals['seconds'] / 60:.1f} minutes,"
        f" {totals['n_words']} words with their times"
        f" ({totals['n_words_without_time']} without, {totals['n_sentences_replaced']} sentences"
        " replaced)."
    )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description="Speak an LJSpeech-shaped corpus with espeak-ng.")
    add = parser.add_argument
    add("--path_to_save", type=path_argument, required=True, help="folder to make")
    add(
        "--sentences",
        type=path_argument,
        help="UTF-8 text to speak, one sentence a line (default: the grammar's)",
    )
    add("--n_sentences", type=int, help=f"how many (default: {N_SENTENCES}, or all of --sentences)")
    add("--min_chars", type=int, help=f"shortest, grammar only (default: {MIN_CHARS})")
    add("--max_chars", type=int, help=f"longest, grammar only (default: {MAX_CHARS})")
    add("--seed", type=int, help=f"of the sentences, grammar only (default: {SEED})")
    add("--voice", default="en-us", help="an espeak-ng voice (default: %(default)s)")
    rate_help = "how fast it speaks (default: %(default)s)"
    add("--words_per_minute", type=int, default=WORDS_PER_MINUTE, help=rate_help)
    add("--overwrite", action="store_true", help="replace another corpus at path_to_save")
    args = parser.parse_args(argv)
    for name, default in (("min_chars", MIN_CHARS), ("max_chars", MAX_CHARS), ("seed", SEED)):
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif args.sentences is not None:
            parser.error(f"--{name} is for the grammar and has no meaning with --sentences")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs with these flags (default: the command line's); returns the exit status."""
    args = parse_args(argv)
    try:
        print(build_corpus(args))
    except DataError as error:
        print(f"make_demo_corpus.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_demo_corpus.py: interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
