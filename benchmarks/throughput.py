"""Mel frames per second of training, this model and torchaudio's in turn: loader to optimizer.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --batch_size 16 --steps 4    # on a CPU
    python benchmarks/throughput.py --manifest data/train_metadata.csv --batch_size 64 --steps 50

A pass takes an epoch's batches, or the first --steps of them, through torch's DataLoader, as
train_taco.py does: BatchSampler's batches, collated by workers, from pinned memory to the GPU, and
for each batch the forward (under autocast with bfloat16), tacotron2_loss, backward, gradients
clipped, train_taco.py's Adam. The host waits for the device once in a step, to read the norm of
the gradients before it goes on, where train_taco.py reads norm and losses. Guided attention, which
ends after a few hundred steps, is left out, and so are checkpoints, logs and what lets
train_taco.py take back a step that is not finite.

Without --manifest the clips are noise with the lengths of LJSpeech, and as many: fewer --n_clips
make batches of less equal lengths, hence more padding (7.8 % of 1,280 clips at batch 128, 3.2 % of
13,100). Both models see the same batches in the same order. In each batch the longest text comes
first, since torchaudio's encoder takes no other order.

Every model makes one pass that does not count: it starts the workers, which live on, and shows all
shapes to the libraries. Then a pass of each per repeat, swapping who goes first. The clock runs
from before the first batch is asked for until the device is done with the last, so that all of the
loader's work for a pass lies within it; the wait for the first batch weighs the less the longer
the pass. "waiting_share" is the time in which the loop waited for a batch, that one included.

Frames are valid ones; "padded_frames_per_s" counts the padding too. The floor is the model's FLOPs
for every clip's own characters and frames, times 3 for training, over the rate of a large matrix
product of that dtype, measured in the same run: padding is above it. On CUDA, "peak_mib" is what a
pass adds to the memory held before it, which is both models' weights and Adam states.

Writes throughput.csv and throughput.png to --output_dir.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

# Run as a script, only this folder is on the path; the flat modules are in the one above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import (
    COLOURS,
    MIB,
    OURS,
    TORCHAUDIO,
    TRAINING_PASSES,
    add_common_arguments,
    chosen_models,
    describe_device,
    format_table,
    forward_flops,
    in_turn,
    make_parser,
    matmul_rate,
    model_config,
    positive,
    progress,
    ratio_line,
    shown,
    synchronize,
    torch_threads,
    write_csv,
)
from benchmarks.loader import LJSPEECH_CLIPS, make_loader, write_corpus
from benchmarks.training import (
    Contender,
    TrainBatch,
    forward_and_backward,
    make_contender,
    to_device,
)
from config import MAX_WORKERS, TrainConfig
from dataset import AudioConfig, BatchSampler, TTSDataset
from files import DataError, seed_argument
from model import Tacotron2Config
from plotting import save_figure
from processes import read_groups
from synthesize import DTYPES
from tokenizer import Tokenizer

ADAM = {
    "lr": TrainConfig.learning_rate,
    "eps": TrainConfig.adam_eps,
    "weight_decay": TrainConfig.weight_decay,
}
MOST_WORKERS = 16  # by default


class Pass(NamedTuple):
    """One model's way through the batches."""

    seconds: float
    waiting: float  # seconds of them, for the loader
    n_steps: int
    n_padded: int  # frames, padding included
    clips: list[tuple[int, int]]  # characters and frames of each, in the order of training
    peak_mib: float  # 0 on a CPU

    @property
    def n_frames(self) -> int:
        return sum(n_mel for _, n_mel in self.clips)


def draw_batches(
    dataset: TTSDataset, batch_size: int, seed: int, n_steps: int | None
) -> list[list[int]]:
    """The clips of each step: BatchSampler's batches, in each the longest text first.

    Raises:
        DataError: when there are fewer clips or batches than asked for.
    """
    if len(dataset) < batch_size:
        raise DataError(f"{len(dataset)} clips do not fill a batch of --batch_size {batch_size}")
    n_tokens = [len(dataset.tokenizer.encode(text)) for text in dataset.texts]
    batches = BatchSampler(dataset.n_frames, batch_size, seed=seed).batches
    if n_steps and n_steps > len(batches):
        raise DataError(f"--steps {n_steps} is more than the {len(batches)} batches of an epoch")
    return [sorted(batch, key=n_tokens.__getitem__, reverse=True) for batch in batches[:n_steps]]


def train_step(contender: Contender, batch: TrainBatch, dtype: torch.dtype) -> None:
    """One optimizer step.

    Raises:
        RuntimeError: when the gradients are not finite.
    """
    forward_and_backward(contender, batch, dtype)
    parameters = contender.model.parameters()
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, TrainConfig.max_grad_norm)
    if not math.isfinite(grad_norm.item()):  # the one place where the host waits for the device
        raise RuntimeError(f"{contender.name}: the norm of the gradients is {grad_norm.item()}")
    contender.optimizer.step()
    contender.optimizer.zero_grad()


def run_pass(
    contender: Contender, loader: DataLoader, dtype: torch.dtype, device: torch.device
) -> Pass:
    """One step for each batch of the loader.

    Raises:
        DataError: when a clip cannot be read.
    """
    cuda = device.type == "cuda"
    clips: list[tuple[int, int]] = []
    n_steps, n_padded, waiting = 0, 0, 0.0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if cuda else 0
    synchronize(device)
    start = time.perf_counter()
    groups = read_groups(loader, 1)
    while True:
        asked = time.perf_counter()
        group = next(groups, None)
        waiting += time.perf_counter() - asked
        if group is None:
            break
        if isinstance(group, DataError):
            raise group
        batch = to_device(group[0], device)
        train_step(contender, batch, dtype)
        n_steps += 1
        n_padded += batch.stop_targets.numel()
        clips += zip(batch.token_lengths.tolist(), batch.mel_lengths.tolist(), strict=True)
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    return Pass(seconds, waiting, n_steps, n_padded, clips, (peak - held) / MIB)


def time_passes(
    contenders: Sequence[Contender],
    loader: DataLoader,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
) -> dict[str, list[Pass]]:
    """The passes that count, by model."""
    passes = {c.name: partial(run_pass, c, loader, dtype, device) for c in contenders}
    for name, warm_up in passes.items():
        progress(f"{name}: warm-up, {warm_up().seconds:.2f} s")
    return in_turn(
        passes,
        repeats,
        lambda name, p: f"{name} {p.seconds:.2f} s, of which {p.waiting:.2f} s waiting",
    )


def timing_row(
    name: str, config: Tacotron2Config, args: argparse.Namespace, passes: list[Pass], rate: float
) -> dict[str, Any]:
    """One line of the table and of the CSV."""
    one = passes[0]  # all are over the same clips
    n_frames, times = one.n_frames, [p.seconds for p in passes]
    median = statistics.median(times)
    flops = sum(forward_flops(config, 1, n_text, n_mel) for n_text, n_mel in one.clips)
    floor = TRAINING_PASSES * flops / rate
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


def draw_rates(axes: Axes, rows: list[dict], passes: dict[str, list[Pass]]) -> None:
    """Frames per second: the median and every pass."""
    for x, row in enumerate(rows):
        axes.bar(x, row["frames_per_s"], width=0.6, color=COLOURS[row["model"]])
        rates = [p.n_frames / p.seconds for p in passes[row["model"]]]
        axes.plot([x] * len(rates), rates, "o", color="black", markersize=3, alpha=0.6)
        axes.annotate(
            shown(row["frames_per_s"]), (x, max(rates)), (0, 4), textcoords="offset points",
            ha="center",
        )  # fmt: skip
    axes.set_ylim(0, 1.2 * max(row["frames_per_s_max"] for row in rows))
    axes.set(ylabel="mel frames per second", title="training, loader included")


def draw_steps(axes: Axes, rows: list[dict]) -> None:
    """Milliseconds of a step: computing, waiting for the loader on top, and the floor."""
    for x, row in enumerate(rows):
        waiting = row["waiting_share"] * row["step_ms"]
        axes.bar(x, row["step_ms"] - waiting, width=0.6, color=COLOURS[row["model"]])
        axes.bar(
            x, waiting, width=0.6, bottom=row["step_ms"] - waiting, color="#dddddd", hatch="////",
            edgecolor=COLOURS["floor"], linewidth=0,
            label="waiting for the loader" if x == 0 else None,
        )  # fmt: skip
        axes.annotate(
            f"{shown(row['step_ms'])} ms", (x, row["step_ms"]), (0, 4),
            textcoords="offset points", ha="center",
        )  # fmt: skip
    floor = rows[0]["floor_ms"]
    label = f"floor, {shown(floor)} ms"
    axes.axhline(floor, color=COLOURS["floor"], linestyle="--", label=label)
    axes.set_ylim(0, 1.4 * max(row["step_ms"] for row in rows))  # room for the legend
    axes.set(ylabel="milliseconds", title="a step")
    axes.legend(loc="upper left", frameon=False)


def make_figure(rows: list[dict], passes: dict[str, list[Pass]], machine: str) -> Figure:
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_rates(left, rows, passes)
    draw_steps(right, rows)
    for axes in (left, right):
        axes.set_xticks(range(len(rows)), [row["model"] for row in rows])
        axes.spines[["top", "right"]].set_visible(False)
    row = rows[0]
    figure.suptitle(
        f"{row['dtype']}, batch {row['batch_size']}, steps to a pass: {row['steps']}, "
        f"padding: {100 * row['padding_share']:.1f} %, workers: {row['num_workers']}\n{machine}",
        fontsize=8,
    )
    return figure


def worker_count(text: str) -> int:
    """argparse type of --num_workers."""
    value = int(text)
    if not 0 <= value <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be 0 to {MAX_WORKERS}, found {value}")
    return value


def default_workers() -> int:
    """As many as there are cores beside the one that trains, within reason."""
    of_process = getattr(os, "sched_getaffinity", None)
    n_cores = len(of_process(0)) if of_process else os.cpu_count() or 1
    return min(n_cores - 1, MOST_WORKERS)


def parse_args(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, Tacotron2Config, AudioConfig]:
    parser = make_parser(__doc__)
    parser.add_argument("--manifest", type=Path, help="CSV of prep_splits.py; noise if unset")
    parser.add_argument(
        "--n_clips", type=positive, default=LJSPEECH_CLIPS,
        help="of noise (default: LJSpeech's %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=positive, default=128, help="clips (default: 128)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: bfloat16")
    parser.add_argument(
        "--num_workers", type=worker_count, default=default_workers(),
        help=f"processes that load data (default: a core each, up to {MOST_WORKERS}; "
        "here %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed_argument, default=0, help="of the order (default: 0)")
    parser.add_argument("--repeats", type=positive, default=3, help="timed passes (default: 3)")
    parser.add_argument("--steps", type=positive, help="of a pass; a whole epoch if unset")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    config = replace(model_config(parser, args), vocab_size=Tokenizer().vocab_size)
    try:
        audio_config = AudioConfig(num_mels=config.num_mels)
    except ValueError as error:
        parser.error(str(error))
    return args, config, audio_config


def measure(
    args: argparse.Namespace, config: Tacotron2Config, audio_config: AudioConfig, manifest: Path
) -> None:
    """The passes of both models; prints and writes.

    Raises:
        DataError: when the clips cannot be used.
    """
    dtype, machine = DTYPES[args.dtype], describe_device(args.device)
    dataset = TTSDataset(manifest, audio_config, Tokenizer())
    batches = draw_batches(dataset, args.batch_size, args.seed, args.steps)
    print(f"{machine}\n{len(dataset):,} clips, {len(batches):,} steps to a pass")
    rate = matmul_rate(args.device, dtype)
    print(f"large matrix product, {args.dtype}: {rate / 1e9:,.0f} GFLOP/s\n")
    loader = make_loader(dataset, batches, args.num_workers, args.device)
    contenders = [
        make_contender(name, config, args.device, **ADAM) for name in chosen_models(args.only)
    ]
    passes = time_passes(contenders, loader, dtype, args.device, args.repeats)
    rows = [timing_row(name, config, args, made, rate) for name, made in passes.items()]
    print(format_table(rows))
    if len(rows) == 2:
        slow, fast = ([p.seconds for p in passes[name]] for name in (TORCHAUDIO, OURS))
        print(ratio_line("frames per second, ours / torchaudio", slow, fast))
    write_csv(args.output_dir / "throughput.csv", rows, machine)
    save_figure(make_figure(rows, passes, machine), args.output_dir / "throughput.png")
    print(f"\nCSV and PNG: {args.output_dir}")


def main(argv: Sequence[str] | None = None) -> None:
    args, config, audio_config = parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder, torch_threads(args.threads):
            manifest = args.manifest or write_corpus(Path(folder), args.n_clips, audio_config)
            measure(args, config, audio_config, manifest)
    except DataError as error:
        sys.exit(f"throughput.py: {error}")


if __name__ == "__main__":
    main()
