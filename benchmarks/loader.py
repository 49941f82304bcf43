"""Time the data loader alone: clips per second per core, from the manifest to collated batches.

    python benchmarks/loader.py
    python benchmarks/loader.py --manifest data/train_metadata.csv --batch_size 32

Without --manifest the clips are noise of LJSpeech's lengths. They are read from the page cache; a
slow disk would come on top. There are two tables: clips per second through training's loader, in
this process and with workers of one thread each; and the padding in training's batches and in
random ones, without --manifest for LJSpeech's 13,100 lengths.

Writes loader.csv and loader_padding.csv to --output_dir.
"""

import argparse
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
from benchmarks import common
from benchmarks.common import Row
from command_line.files import count_argument, path_argument
from command_line.main import script
from dataset import AudioConfig, BatchSampler, TTSDataset
from text.tokenizer import Tokenizer
from training.set_up import open_loader

SHORTEST, LONGEST = 1.1, 10.1  # seconds, LJSpeech
LENGTH_BETA = (1.85, 1.18)  # of the lengths between them: mean 6.6 s, standard deviation 2.2 s
CHARACTERS_PER_SECOND = 15
LJSPEECH_CLIPS = 13_100
SENTENCE = "the quick brown fox jumps over the lazy dog, and then it naps. "
CPU = torch.device("cpu")


def draw_lengths(n_clips: int) -> np.ndarray:
    """Draw seconds, distributed as LJSpeech's clips are."""
    shares = np.random.default_rng(0).beta(*LENGTH_BETA, size=n_clips)
    return SHORTEST + (LONGEST - SHORTEST) * shares


def write_corpus(folder: Path, n_clips: int) -> Path:
    """Write clips of noise with LJSpeech's lengths, in whole frames; return the manifest."""
    sampling_rate, hop_size = AudioConfig().sampling_rate, AudioConfig().hop_size
    noise = np.random.default_rng(1).normal(0.0, 0.1, size=int(LONGEST * sampling_rate) + 1)
    rows = []
    for seconds in draw_lengths(n_clips):
        n_samples = int(seconds * sampling_rate) // hop_size * hop_size
        path = folder / f"{n_samples}.wav"
        if not path.exists():
            soundfile.write(path, noise[:n_samples].clip(-1.0, 1.0), sampling_rate, "PCM_16")
        text = (SENTENCE * 3)[: int(seconds * CHARACTERS_PER_SECOND)].strip()
        rows.append((str(path), text, n_samples / sampling_rate))
    manifest = folder / "manifest.csv"
    pd.DataFrame(rows, columns=list(dataset.MANIFEST_COLUMNS)).to_csv(manifest, index=False)
    return manifest


@contextmanager
def open_corpus(args: argparse.Namespace) -> Iterator[Path]:
    """Yield --manifest, or the manifest of a temporary corpus of noise."""
    with tempfile.TemporaryDirectory() as folder:
        yield args.manifest or write_corpus(Path(folder), args.n_clips)


def loader_row(num_workers: int, n_clips: int, audio_seconds: float, times: list[float]) -> Row:
    """Make a line of the table."""
    n_cores, median = max(num_workers, 1), statistics.median(times)
    return {
        "num_workers": num_workers,
        "clips_per_s": n_clips / median,
        "clips_per_s_per_core": n_clips / median / n_cores,
        "per_core_min": n_clips / max(times) / n_cores,
        "per_core_max": n_clips / min(times) / n_cores,
        "audio_s_per_s_per_core": audio_seconds / median / n_cores,
    }


def padding_share(lengths: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """Compute the share of the frames in padded batches that is padding."""
    padded = sum(len(batch) * max(int(lengths[i]) for i in batch) for batch in batches)
    return 1.0 - sum(int(lengths[i]) for batch in batches for i in batch) / padded


def measure(args: argparse.Namespace, manifest: Path) -> None:
    """Measure loaders and padding; print and write."""
    machine, folder = common.print_device(CPU), args.output_dir
    hop_seconds = AudioConfig().hop_seconds
    clips = TTSDataset(manifest, AudioConfig(), Tokenizer(), cache_mels=args.cache_mels)
    n_clips, audio_seconds = len(clips), sum(clips.n_frames) * hop_seconds
    print(f"{n_clips:,} clips, {audio_seconds / n_clips:.2f} s on average")
    rows = []
    for num_workers in dict.fromkeys([0, *args.num_workers]):
        batches = BatchSampler(clips.n_frames, args.batch_size)
        read_all = partial(deque, open_loader(clips, batches, num_workers, CPU), maxlen=0)
        read_all()  # starts the workers
        times = [common.timed(read_all, CPU) for _ in range(args.repeats)]
        rows.append(loader_row(num_workers, n_clips, audio_seconds, times))
    common.report(folder / "loader.csv", rows, machine)

    lengths = np.array(clips.n_frames)
    if not args.manifest:  # a small corpus has fewer clips of similar lengths
        lengths = draw_lengths(LJSPEECH_CLIPS) / hop_seconds
    sampled = BatchSampler(lengths, args.batch_size).draw()
    random = np.array_split(np.random.default_rng(0).permutation(len(lengths)), len(sampled))
    padding = [
        {"batches": kind, "clips": len(lengths), "padding_share": padding_share(lengths, batches)}
        for kind, batches in (("BatchSampler", sampled), ("random order", random))
    ]
    common.report(folder / "loader_padding.csv", padding, machine)


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure with these flags."""
    counts = {"n_clips": (256, "clips of noise"), "batch_size": (16, "clips")}
    parser = common.make_parser(__doc__, **counts, repeats=(3, "timed passes"))
    add = parser.add_argument
    add("--manifest", type=Path, help="CSV of prep_splits.py; noise if unset")
    add("--cache_mels", type=path_argument, help="folder of mels, as train_taco.py takes it")
    add("--num_workers", type=count_argument, nargs="+", default=[2], help="processes (default: 2)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with open_corpus(args) as manifest:
        measure(args, manifest)


if __name__ == "__main__":
    main()
