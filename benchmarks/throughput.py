"""Measure mel frames per second of training, this model's and torchaudio's, loader to optimizer.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --batch_size 16 --steps 4    # on a CPU
    python benchmarks/throughput.py --manifest data/train_metadata.csv --batch_size 64 --steps 50

A pass takes an epoch's batches, or the first --steps of them, through train_taco.py's loader, Adam
and clipping. "waiting_share" is the part in which it waited for a batch. The first pass of each
does not count. Without --manifest the clips are noise, as many and as long as LJSpeech's. Frames
are valid ones; "padded_frames_per_s" counts the padding too. On CUDA, "peak_mib" is the memory that
a pass adds to that of the models.

Writes throughput.csv to --output_dir.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.loader import LJSPEECH_CLIPS, open_corpus
from benchmarks.train_step import Contender, make_contender, train_step
from command_line.files import DataError, count_argument, path_argument, seed_argument
from command_line.main import script
from dataset import AudioConfig, BatchSampler, TTSDataset
from model import Tacotron2Config
from speech.voice import DTYPES
from text.tokenizer import Tokenizer
from training.config import MAX_WORKERS, TrainConfig, make_config
from training.set_up import group_batches, open_loader

TRAINING = {
    "lr": TrainConfig.learning_rate,
    "eps": TrainConfig.adam_eps,
    "weight_decay": TrainConfig.weight_decay,
    "max_grad_norm": TrainConfig.max_grad_norm,
}
MOST_WORKERS = 8  # by default: with 15 on 16 cores an H100 waited longer


class Pass(NamedTuple):
    """One model's pass over the batches."""

    seconds: float
    waiting: float  # seconds of them, for the loader
    n_steps: int
    n_padded: int  # frames, padding included
    clips: list[tuple[int, int]]  # characters and frames of each, in the order of training
    peak_mib: float  # 0 on a CPU


def draw_batches(clips: TTSDataset, batch_size: int, seed: int, n_steps: int | None) -> list[list]:
    """Draw the clips of each step, the longest text first."""
    if len(clips) < batch_size:
        raise DataError(f"{len(clips)} clips do not fill a batch of --batch_size {batch_size}")
    n_tokens = [len(clips.tokenizer.encode(text)) for text in clips.texts]
    batches = BatchSampler(clips.n_frames, batch_size, seed=seed).draw()
    if n_steps and n_steps > len(batches):
        raise DataError(f"--steps {n_steps} is more than the {len(batches)} batches of an epoch")
    return [sorted(batch, key=n_tokens.__getitem__, reverse=True) for batch in batches[:n_steps]]


def run_pass(
    contender: Contender, loader: Iterable, dtype: torch.dtype, device: torch.device
) -> Pass:
    """Take one step for each batch of the loader."""
    cuda, n_steps, n_padded, waiting, clips = device.type == "cuda", 0, 0, 0.0, []
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if cuda else 0
    start = asked = time.perf_counter()
    for (batch,) in group_batches(loader, 1):
        waiting += time.perf_counter() - asked
        batch = batch.to(device)
        train_step(contender, batch, dtype)
        n_steps += 1
        n_padded += batch.stop_targets.numel()
        clips += zip(batch.token_lengths.tolist(), batch.mel_lengths.tolist(), strict=True)
        asked = time.perf_counter()
    waiting += time.perf_counter() - asked
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    return Pass(seconds, waiting, n_steps, n_padded, clips, (peak - held) / common.MIB)


def timing_row(
    name: str, config: Tacotron2Config, args: argparse.Namespace, passes: list[Pass], rate: float
) -> common.Row:
    """Make a line of the table."""
    one, times = passes[0], [p.seconds for p in passes]  # all are over the same clips
    n_frames, median = sum(n_mel for _, n_mel in one.clips), statistics.median(times)
    flops = sum(common.forward_flops(config, 1, n_text, n_mel) for n_text, n_mel in one.clips)
    floor = common.TRAINING_PASSES * flops / rate
    row = {
        "model": name,
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "steps": one.n_steps,
        "frames": n_frames,
        "frames_per_s": n_frames / median,
        "frames_per_s_min": n_frames / max(times),
        "frames_per_s_max": n_frames / min(times),
        "padded_frames_per_s": one.n_padded / median,
        "padding_share": 1.0 - n_frames / one.n_padded,
        "waiting_share": statistics.median(p.waiting / p.seconds for p in passes),
        "step_ms": 1e3 * median / one.n_steps,
        "floor_ms": 1e3 * floor / one.n_steps,
        "of_floor": floor / median,
    }
    if args.device.type == "cuda":
        row["peak_mib"] = max(p.peak_mib for p in passes)
    return row


def parse_args(argv: Sequence[str] | None) -> common.Flags:
    """Read the flags, and set args.audio_config; argparse ends the program on a mistake."""
    counts = {"n_clips": (LJSPEECH_CLIPS, "clips of noise"), "batch_size": (128, "clips")}
    parser = common.make_parser(__doc__, **counts, repeats=(3, "timed passes"))
    add = parser.add_argument
    add("--manifest", type=Path, help="CSV of prep_splits.py; noise if unset")
    add("--cache_mels", type=path_argument, help="folder of mels, as train_taco.py takes it")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of products (default: %(default)s)")
    n_workers = min((os.cpu_count() or 1) - 1, MOST_WORKERS)
    worker_count = partial(count_argument, least=0, most=MAX_WORKERS)
    add("--num_workers", type=worker_count, default=n_workers, help="processes (here %(default)s)")
    add("--seed", type=seed_argument, default=0, help="seed of the order (default: 0)")
    add("--steps", type=count_argument, help="steps of a pass; a whole epoch if unset")
    args, config = common.read_flags(parser, argv)
    args.audio_config = make_config(parser, args, AudioConfig)
    return args, config


def measure(args: argparse.Namespace, config: Tacotron2Config, manifest: Path) -> None:
    """Measure passes of both models in turn; print and write."""
    machine = common.print_device(args.device)
    dataset = TTSDataset(manifest, args.audio_config, Tokenizer(), cache_mels=args.cache_mels)
    batches = draw_batches(dataset, args.batch_size, args.seed, args.steps)
    print(f"{len(dataset):,} clips, {len(batches):,} steps to a pass")
    rate = common.matmul_rate(args.device, args.dtype)
    loader, runs = open_loader(dataset, batches, args.num_workers, args.device), {}
    for name in args.models:
        contender = make_contender(name, config, args.device, **TRAINING)
        runs[name] = partial(run_pass, contender, loader, DTYPES[args.dtype], args.device)
    common.in_turn(runs, 1)  # starts the workers, and shows all shapes to the libraries
    passes = common.in_turn(runs, args.repeats)
    rows = [timing_row(name, config, args, made, rate) for name, made in passes.items()]
    common.report(args.output_dir / "throughput.csv", rows, machine)
    if len(rows) == 2:
        fast, slow = ([p.seconds for p in made] for made in passes.values())
        print(common.ratio_line("frames per second, ours / torchaudio", slow, fast))


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure with these flags."""
    args, config = parse_args(argv)
    with open_corpus(args) as manifest:
        measure(args, config, manifest)


if __name__ == "__main__":
    main()
