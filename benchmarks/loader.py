"""The data loader alone: clips per second per core, from the manifest to collated batches.

    python benchmarks/loader.py
    python benchmarks/loader.py --manifest data/train_metadata.csv --batch_size 32

Without --manifest it writes a corpus of noise to a temporary folder, whose clips have LJSpeech's
lengths: 1.1 to 10.1 s, 6.6 s on average, 15 characters a second, 16-bit mono at 22050 Hz. Clips
of as many frames share a file, so that LJSpeech's 13,100 take 191 MB. The files are in the page
cache when they are read, so a slow disk comes on top.

Three tables:
- where one core's time goes, per clip: reading the manifest and the wav, mel, text, collation,
  measured by calling the dataset's own functions one after the other;
- clips per second through torch's DataLoader, in this process (--num_workers 0, one thread) and
  with workers (one thread each); workers are started before the clock is;
- what share of the mel batches is padding, beside what batches in random order would hold;
  without --manifest this is for LJSpeech's 13,100 lengths, which needs no files.

Writes loader.csv and loader.png to --output_dir.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from torch.utils.data import DataLoader

# Run as a script, only this folder is on the path; the flat modules are in the one above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.figure import Figure

from benchmarks.common import (
    COLOURS,
    OURS,
    add_common_arguments,
    describe_device,
    format_table,
    make_parser,
    positive,
    progress,
    torch_threads,
    write_csv,
)
from dataset import (
    MANIFEST_COLUMNS,
    AudioConfig,
    BatchSampler,
    TTSCollator,
    TTSDataset,
    Utterance,
    audio_to_mel,
    load_wav,
)
from files import DataError
from plotting import save_figure
from tokenizer import Tokenizer

SHORTEST, LONGEST = 1.1, 10.1  # seconds, LJSpeech
LENGTH_BETA = (1.85, 1.18)  # of the lengths between them: mean 6.6 s, standard deviation 2.2 s
CHARACTERS_PER_SECOND = 15
LJSPEECH_CLIPS = 13_100
CPU = torch.device("cpu")
SENTENCE = "the quick brown fox jumps over the lazy dog, and then it naps. "


def draw_lengths(n_clips: int) -> np.ndarray:
    """Seconds, distributed as LJSpeech's clips are."""
    shares = np.random.default_rng(0).beta(*LENGTH_BETA, size=n_clips)
    return SHORTEST + (LONGEST - SHORTEST) * shares


def write_corpus(folder: Path, n_clips: int, audio_config: AudioConfig) -> Path:
    """Clips of noise with LJSpeech's lengths, in whole frames; returns the manifest."""
    sampling_rate, hop_size = audio_config.sampling_rate, audio_config.hop_size
    rng = np.random.default_rng(1)
    noise = rng.normal(0.0, 0.1, size=int(LONGEST * sampling_rate) + 1).clip(-1.0, 1.0)
    rows = []
    for seconds in draw_lengths(n_clips):
        n_samples = int(seconds * sampling_rate) // hop_size * hop_size
        path = folder / f"{n_samples}.wav"
        if not path.exists():
            soundfile.write(path, noise[:n_samples], sampling_rate, subtype="PCM_16")
        n_characters = int(seconds * CHARACTERS_PER_SECOND)
        text = (SENTENCE * (n_characters // len(SENTENCE) + 1))[:n_characters].strip()
        rows.append((str(path), text, n_samples / sampling_rate))
    manifest = folder / "manifest.csv"
    pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS)).to_csv(manifest, index=False)
    return manifest


def time_parts(
    manifest: Path, audio_config: AudioConfig, tokenizer: Tokenizer, batch_size: int
) -> dict[str, float]:
    """Seconds of one pass over the manifest, by part; in this process, nothing overlaps."""
    seconds = dict.fromkeys(("read manifest", "read wav", "wav to mel", "encode text"), 0.0)
    clock = time.perf_counter()

    def add(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[part] = seconds.get(part, 0.0) + now - clock
        clock = now

    dataset = TTSDataset(manifest, audio_config, tokenizer)
    collate = TTSCollator(audio_config, tokenizer)
    add("read manifest")
    for batch in BatchSampler(dataset.n_frames, batch_size):
        utterances = []
        for index in batch:
            path, text = dataset.paths[index], dataset.texts[index]
            wav = load_wav(path, audio_config.sampling_rate)
            add("read wav")
            mel = audio_to_mel(wav, audio_config)
            add("wav to mel")
            tokens = tokenizer.encode(text)
            add("encode text")
            utterances.append(Utterance(tokens, mel, text, path))
        collate(utterances)
        add("collate")
    return seconds


def make_loader(
    dataset: TTSDataset, batches: Iterable[list[int]], num_workers: int, device: torch.device = CPU
) -> DataLoader:
    """training's loader, but its workers live on from one pass to the next."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=TTSCollator(dataset.audio_config, dataset.tokenizer),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )


def time_loader(dataset: TTSDataset, batch_size: int, num_workers: int, repeats: int) -> list:
    """Seconds of each pass through a DataLoader; one before them starts the workers."""
    batches = BatchSampler(dataset.n_frames, batch_size)
    loader = make_loader(dataset, batches, num_workers)
    seconds = []
    for repeat in range(1 + repeats):
        start = time.perf_counter()
        n_clips = sum(len(batch.tokens) for batch in loader)
        if n_clips != len(dataset):
            raise RuntimeError(f"the loader gave {n_clips} of {len(dataset)} clips")
        seconds.append(time.perf_counter() - start)
        progress(f"{num_workers} workers, pass {repeat} of {repeats}: {seconds[-1]:.2f} s")
    return seconds[1:]


def loader_row(num_workers: int, n_clips: int, audio_seconds: float, times: list) -> dict[str, Any]:
    """One line of the table and of the CSV."""
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
    """Share of the frames in padded batches that is padding."""
    padded = sum(len(batch) * max(int(lengths[i]) for i in batch) for batch in batches)
    return 1.0 - sum(int(lengths[i]) for batch in batches for i in batch) / padded


def padding_rows(lengths: Sequence[float], batch_size: int) -> list[dict[str, Any]]:
    sampled = BatchSampler(lengths, batch_size).batches
    order = np.random.default_rng(0).permutation(len(lengths))
    random = [part.tolist() for part in np.array_split(order, len(sampled))]
    return [
        {
            "batches": label,
            "clips": len(lengths),
            "padding_share": padding_share(lengths, batches),
        }
        for label, batches in (("BatchSampler", sampled), ("random order", random))
    ]


def make_figure(parts: list[dict], rows: list[dict], machine: str) -> Figure:
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.barh([p["part"] for p in parts], [p["ms_per_clip"] for p in parts], color=COLOURS[OURS])
    for y, part in enumerate(parts):
        text = f"{part['ms_per_clip']:.2g} ms"
        left.annotate(
            text, (part["ms_per_clip"], y), (4, 0), textcoords="offset points", va="center"
        )
    left.invert_yaxis()
    left.set_xlim(0, 1.25 * max(part["ms_per_clip"] for part in parts))
    left.set(xlabel="milliseconds per clip, one core", title="where the time goes")

    for x, row in enumerate(rows):
        rate = row["clips_per_s_per_core"]
        spread = [[rate - row["per_core_min"]], [row["per_core_max"] - rate]]
        right.bar(x, rate, 0.5, yerr=spread, capsize=4, color=COLOURS[OURS])
        right.annotate(
            f"{rate:.0f}", (x, row["per_core_max"]), (0, 4), textcoords="offset points", ha="center"
        )
    labels = [
        f"{row['num_workers']} workers" if row["num_workers"] else "in process" for row in rows
    ]
    right.set_xticks(range(len(rows)), labels)
    right.set_ylim(0, 1.2 * max(row["per_core_max"] for row in rows))
    right.set(ylabel="clips per second and core", title="through the DataLoader")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(machine, fontsize=8)
    return figure


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--manifest", type=Path, help="CSV of prep_splits.py; noise if unset")
    parser.add_argument("--n_clips", type=positive, default=256, help="of noise (default: 256)")
    parser.add_argument("--batch_size", type=positive, default=16, help="clips (default: 16)")
    parser.add_argument(
        "--num_workers", type=positive, nargs="+", default=[2],
        help="worker processes, beside a run without (default: 2)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=3, help="timed passes (default: 3)")
    add_common_arguments(parser, with_models=False)
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, manifest: Path) -> None:
    """Parts, loaders, padding; prints and writes."""
    audio_config, tokenizer = AudioConfig(), Tokenizer()
    machine = describe_device(CPU)
    dataset = TTSDataset(manifest, audio_config, tokenizer)
    n_clips = len(dataset)
    audio_seconds = sum(dataset.n_frames) * audio_config.hop_seconds
    print(f"{machine}\n{n_clips:,} clips, {audio_seconds / n_clips:.2f} s on average\n")

    time_parts(manifest, audio_config, tokenizer, args.batch_size)  # fills caches
    seconds = time_parts(manifest, audio_config, tokenizer, args.batch_size)
    total = sum(seconds.values())
    parts = [
        {"part": part, "ms_per_clip": 1e3 * s / n_clips, "share": s / total}
        for part, s in seconds.items()
    ]
    rows = [
        loader_row(
            n, n_clips, audio_seconds, time_loader(dataset, args.batch_size, n, args.repeats)
        )
        for n in dict.fromkeys([0, *args.num_workers])
    ]
    lengths = dataset.n_frames
    if not args.manifest:  # a small corpus has fewer clips of one length to put together
        lengths = (draw_lengths(LJSPEECH_CLIPS) / audio_config.hop_seconds).tolist()
    padding = padding_rows(lengths, args.batch_size)
    print(*map(format_table, (parts, rows, padding)), sep="\n\n")

    write_csv(args.output_dir / "loader.csv", rows, machine)
    write_csv(args.output_dir / "loader_parts.csv", parts, machine)
    save_figure(make_figure(parts, rows, machine), args.output_dir / "loader.png")
    print(f"\nCSV and PNG: {args.output_dir}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder, torch_threads(1):
            measure(args, args.manifest or write_corpus(Path(folder), args.n_clips, AudioConfig()))
    except DataError as error:
        sys.exit(f"loader.py: {error}")


if __name__ == "__main__":
    main()
