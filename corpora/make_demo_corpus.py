"""Speak an LJSpeech-shaped corpus with SVOX Pico or espeak-ng: training data without a download.

    python -m corpora.make_demo_corpus --path_to_save demo/corpus
    python -m corpora.make_demo_corpus --path_to_save demo/book --sentences book.txt

The first command speaks short English sentences of the seeded grammar in demo_sentences.py, and
with `--language de`, es, fr or it those of that language; the second any text file, one sentence a
line. Both write, at 22,050 Hz:

    metadata.csv     id|text|text, as in LJSpeech
    wavs/ID.wav      mono, 16 bit
    word_times.json  {id: [{"word", "index" of its first character, "start" in seconds}, ...]}
    corpus.json      the arguments and totals

The synthesizer itself tells the word times, with which evaluate.py compares a model's alignment.
SVOX Pico comes with `pip install py-nanotts`, which there is for Linux on x86-64 alone; where it is
missing, espeak-ng speaks, of `pip install espeakng-loader`. The same arguments give the same bytes.
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from command_line.files import (
    DataError,
    count_argument,
    file_errors,
    path_argument,
    read_json,
    write_whole,
)
from command_line.flags import FlagParser
from command_line.main import say, script
from corpora import espeak, pico
from corpora.demo_sentences import LANGUAGES, LONGEST_SENTENCE, WORD, make_sentences, read_sentences

N_SENTENCES, N_FOREIGN_SENTENCES = 4900, 3000
ENGINES = {"pico": pico, "espeak": espeak}
MAX_LEAD_SECONDS = 0.05  # of silence before the speech
TAIL_SECONDS = 0.1  # of silence after it

# espeak-ng's samples depend on what its process has spoken before. Every block of this
# many sentences therefore gets a fresh process, and the corpus is always the same.
BLOCK_SIZE = 250
N_PROCESSES = os.cpu_count() or 1

Sentence = tuple[str, str]  # its id and text
Spoken = tuple[str, str, float, list[dict[str, Any]]]  # id, text, seconds, word times


def trim_silence(
    wav: np.ndarray, starts: dict[int, int], loud: np.ndarray, sampling_rate: int
) -> tuple[np.ndarray, dict[int, int]]:
    """Leave at most MAX_LEAD_SECONDS of silence before the speech, and TAIL_SECONDS after it.

    `loud` has the places of the samples that are not silent.
    """
    first = max(0, int(loud[0]) - round(MAX_LEAD_SECONDS * sampling_rate))
    tail = np.zeros(round(TAIL_SECONDS * sampling_rate), np.int16)
    trimmed = np.concatenate([wav[first : loud[-1] + 1], tail])
    return trimmed, {index: max(0, n - first) for index, n in starts.items()}


def speak_block(block: list[Sentence], wavs: Path, engine_name: str, voice: str) -> list[Spoken]:
    """Speak sentences into wavs/ID.wav."""
    engine = ENGINES[engine_name]
    speaker, clips = engine.Speaker(voice), []
    for clip_id, text in block:
        wav, starts = speaker.speak(text)
        loud = np.flatnonzero(np.abs(wav.astype(np.int32)) > engine.SILENCE_LEVEL)
        if not len(loud):
            raise DataError(f"{engine_name} spoke nothing for {text!r}")
        wav, starts = trim_silence(wav, starts, loud, engine.SAMPLING_RATE)
        soundfile.write(wavs / f"{clip_id}.wav", wav, engine.SAMPLING_RATE, subtype="PCM_16")
        words = [(word[0], word.start()) for word in WORD.finditer(text) if word.start() in starts]
        seconds = {index: round(n / engine.SAMPLING_RATE, 5) for index, n in starts.items()}
        times = [{"word": word, "index": i, "start": seconds[i]} for word, i in words]
        clips.append((clip_id, text, len(wav) / engine.SAMPLING_RATE, times))
    return clips


def speak_block_apart(block: list[Sentence], wavs: Path, engine: str, voice: str) -> list[Spoken]:
    """Run speak_block in a process of its own."""
    spawn = multiprocessing.get_context("spawn")  # a forked process would have spoken before
    ignore_ctrl_c = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # it is for the parent alone
    try:
        with ProcessPoolExecutor(1, spawn, *ignore_ctrl_c) as pool:
            return pool.submit(speak_block, block, wavs, engine, voice).result()
    except BrokenProcessPool:
        raise DataError("a speaking process died; was the machine out of memory?") from None


def speak_all(sentences: list[Sentence], wavs: Path, engine: str, voice: str) -> list[Spoken]:
    """Speak all sentences, N_PROCESSES blocks at a time."""
    blocks = [sentences[i : i + BLOCK_SIZE] for i in range(0, len(sentences), BLOCK_SIZE)]
    with ThreadPoolExecutor(N_PROCESSES) as threads:
        spoken = threads.map(lambda block: speak_block_apart(block, wavs, engine, voice), blocks)
        bar = tqdm(spoken, total=len(blocks), desc="speaking", unit="block", disable=None)
        return list(itertools.chain.from_iterable(bar))


def write_corpus(folder: Path, texts: list[str], arguments: dict[str, Any]) -> None:
    """Speak the texts into a new folder."""
    (folder / "wavs").mkdir(parents=True)
    sentences = [(f"DEMO-{n:05d}", text) for n, text in enumerate(texts, start=1)]
    spoken = speak_all(sentences, folder / "wavs", arguments["engine"], arguments["voice"])
    record = {
        "arguments": arguments,
        "n_clips": len(spoken),
        "seconds": round(sum(seconds for _, _, seconds, _ in spoken), 2),
        "n_words": sum(len(times) for *_, times in spoken),
    }
    times = ",\n".join(f"{json.dumps(i)}: {json.dumps(times)}" for i, _, _, times in spoken)
    contents = {
        "metadata.csv": "".join(f"{i}|{text}|{text}\n" for i, text, _, _ in spoken),
        "word_times.json": f"{{\n{times}\n}}\n",
        "corpus.json": json.dumps(record, indent=2) + "\n",
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def default_engine() -> str:
    """Choose pico where it is installed."""
    return "pico" if importlib.util.find_spec("py_nanotts") else "espeak"


def choose_sentences(args: argparse.Namespace) -> list[str]:
    """Return the sentences to speak: the lines of --sentences, or the grammar's."""
    if args.sentences is not None:
        return read_sentences(args.sentences, args.n_sentences)
    default = N_SENTENCES if args.language == "en" else N_FOREIGN_SENTENCES
    n_sentences = args.n_sentences or default
    supply = make_sentences(args.min_chars, args.max_chars, args.seed, args.language)
    sentences = list(itertools.islice(supply, n_sentences))
    if len(sentences) < n_sentences:
        only = f"the grammar gives only {len(sentences)} sentences of such lengths"
        raise DataError(f"{only}; lower --n_sentences, or widen --min_chars and --max_chars")
    return sentences


def is_made(folder: Path, arguments: dict[str, Any], overwrite: bool) -> bool:
    """Tell if a folder already has the corpus of these arguments; refuse one with other content."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = dict(read_json(folder / "corpus.json", "corpus.json")["arguments"])
    except (DataError, TypeError, KeyError, ValueError):
        raise DataError(f"{folder} was not made by this script; choose another folder") from None
    if overwrite:
        return False
    if other := [name for name in arguments if found.get(name) != arguments[name]]:
        holds = f"{folder} holds another corpus (other {', '.join(other)})"
        raise DataError(f"{holds}; choose another folder or add --overwrite")
    return True


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the flags; exit with code 2 on a mistake."""
    parser = FlagParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--path_to_save", type=path_argument, required=True, help="folder to make")
    add("--sentences", type=path_argument, help="text to speak, one sentence a line")
    add("--language", choices=LANGUAGES, default="en", help="of grammar, voice (%(default)s)")
    numbers = f"{N_SENTENCES} in English, else {N_FOREIGN_SENTENCES}, or all of --sentences"
    add("--n_sentences", type=count_argument, help=f"{numbers}, if unset")
    grammar = "of the grammar's sentences (%(default)s)"
    add("--min_chars", type=count_argument, default=16, help=grammar)
    add("--max_chars", type=count_argument, default=42, help=grammar)
    add("--seed", type=int, default=42, help=grammar)
    add("--engine", choices=ENGINES, default=default_engine(), help="speaker (%(default)s)")
    add("--voice", help="of the engine: en-US of pico, en-us of espeak, or of --language, if unset")
    add("--overwrite", action="store_true", help="replace another corpus at path_to_save")
    args = parser.parse_args(argv)
    if args.min_chars > args.max_chars:
        parser.error(f"--min_chars {args.min_chars} exceeds --max_chars {args.max_chars}")
    if args.language != "en" and args.max_chars > LONGEST_SENTENCE:
        most = f"--max_chars {LONGEST_SENTENCE} is the most in other languages than English"
        parser.error(f"{most}, found {args.max_chars}")
    if args.voice is None:
        args.voice = ENGINES[args.engine].VOICES.get(args.language, args.language)
    return args


@script
def main(argv: list[str] | None = None) -> None:
    """Make the corpus, whole or not at all."""
    args = parse_args(argv)
    sentences = choose_sentences(args)
    arguments = {
        "n_sentences": len(sentences),
        "sentences_sha256": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
        "engine": args.engine,
        "voice": args.voice,
    }
    folder = Path(args.path_to_save).absolute()
    with file_errors():
        if is_made(folder, arguments, args.overwrite):
            say(f"{folder} is already there, made with the same arguments.")
            return
    ENGINES[args.engine].Speaker(args.voice)  # refuses a bad voice before any process starts
    with file_errors():
        write_whole(folder, lambda scratch: write_corpus(scratch, sentences, arguments))
    made = read_json(folder / "corpus.json", "corpus.json")
    clips = f"{made['n_clips']} clips, {made['seconds'] / 60:.1f} minutes"
    say(f"{folder}: {clips}, {made['n_words']} words with their times.")


if __name__ == "__main__":
    main()
