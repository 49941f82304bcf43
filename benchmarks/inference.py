"""Free running, this model and torchaudio's in turn: time per decoder step, real-time factor.

    python benchmarks/inference.py
    python benchmarks/inference.py --batch_size 1 4 16 64 --dtype bfloat16 --n_steps 400

Random weights, and a stop token that is never believed: every run makes exactly --n_steps frames.
The time is that of the whole call, encoder and postnet included, divided by --n_steps.
"x_real_time" is seconds of audio (of all the batch, at 256 samples a frame and 22050 a second)
over seconds of computing: above 1 is faster than speech. Both models run once per repeat and
dtype, in an order that is turned round every time, so that a slow moment of the machine falls on
all of them. A ratio is one of medians; torchaudio's float32 is what bfloat16 is measured
against, beside torchaudio's own bfloat16.

A step has two floors, both measured on the device in the same run; the higher one is shown:
"compute", the FLOPs of the whole call over the rate of a large matrix product, per step; and
"weights", the bytes of the weights that a step must read, whatever the batch, over the rate at
which the device reads an array of that size again and again (from its caches, if it fits).

Writes inference.csv and inference.png to --output_dir.
"""

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Run as a script, only this folder is on the path; the flat modules are in the one above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import (
    COLOURS,
    OURS,
    TORCHAUDIO,
    add_common_arguments,
    build_torchaudio,
    chosen_models,
    decoder_step_weights,
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
    read_rate,
    timed,
    torch_threads,
    write_csv,
)
from dataset import AudioConfig
from fast_decoder import speed_up
from model import Tacotron2, Tacotron2Config
from plotting import save_figure
from synthesize import DTYPES, inference_precision

WARM_UP_RUNS = 1
Run = tuple[str, str]  # model, dtype


def make_speakers(
    names: Sequence[str], config: Tacotron2Config, n_steps: int, device: torch.device
) -> dict[str, Callable[[Tensor], Tensor]]:
    """tokens (B, T_text) -> mels of n_steps frames, whatever the stop token says, by model."""
    speakers: dict[str, Callable[[Tensor], Tensor]] = {}
    torch.manual_seed(0)
    if OURS in names:
        ours = speed_up(Tacotron2(config)).to(device).eval()
        speakers[OURS] = lambda tokens: ours.infer(tokens, None, n_steps, stop_threshold=1.0).mels
    if TORCHAUDIO in names:
        options = {"decoder_max_step": n_steps, "decoder_early_stopping": False}
        peer = build_torchaudio(config, **options, gate_threshold=1.0).to(device).eval()
        speakers[TORCHAUDIO] = lambda tokens: peer.infer(tokens)[0].mT
    return speakers


@torch.no_grad()
def speak(speaker: Callable[[Tensor], Tensor], tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """What is timed."""
    with inference_precision(tokens.device, dtype), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Reached max decoder steps")
        return speaker(tokens)


def time_runs(
    speakers: dict[str, Callable[[Tensor], Tensor]],
    tokens: Tensor,
    n_steps: int,
    dtypes: Sequence[str],
    repeats: int,
) -> dict[Run, list[float]]:
    """Seconds of each repeat by model and dtype, one run of each in turn."""
    runs = {
        (name, dtype): partial(speak, speaker, tokens, DTYPES[dtype])
        for dtype in dtypes
        for name, speaker in speakers.items()
    }
    for (name, _), run in runs.items():
        for _ in range(WARM_UP_RUNS):
            mels = run()
        if mels.shape[:2] != (len(tokens), n_steps) or not mels.isfinite().all():
            raise RuntimeError(f"{name}: made {tuple(mels.shape)} frames, or not finite ones")
    progress(f"batch {len(tokens)}")
    timed_runs = {key: partial(timed, run, tokens.device) for key, run in runs.items()}
    return in_turn(timed_runs, repeats, lambda key, time: f"{' '.join(key)} {time:.3f} s")


def floors_ms(
    config: Tacotron2Config, batch_size: int, n_text: int, n_steps: int, dtype: str,
    device: torch.device, matmul_rates: dict[str, float],
) -> dict[str, float]:  # fmt: skip
    """Least milliseconds per decoder step, by what limits it."""
    flops = forward_flops(config, batch_size, n_text, n_steps) / n_steps
    n_bytes = decoder_step_weights(config) * DTYPES[dtype].itemsize
    return {
        "compute": 1e3 * flops / matmul_rates[dtype],
        "weights": 1e3 * n_bytes / read_rate(device, n_bytes),
    }


def timing_row(
    run: Run, batch_size: int, n_text: int, n_steps: int, times: list[float],
    floors: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """One line of the table and of the CSV."""
    per_step = [1e3 * time / n_steps for time in times]
    limit = max(floors, key=floors.get)
    audio_seconds = batch_size * n_steps * AudioConfig().hop_seconds
    return {
        "model": run[0],
        "dtype": run[1],
        "batch_size": batch_size,
        "n_text": n_text,
        "n_steps": n_steps,
        "step_ms": statistics.median(per_step),
        "step_ms_min": min(per_step),
        "step_ms_max": max(per_step),
        "x_real_time": audio_seconds / statistics.median(times),
        "floor_ms": floors[limit],
        "floor_is": limit,
        "of_floor": floors[limit] / statistics.median(per_step),
    }


def ratio_lines(batch_size: int, seconds: dict[Run, list[float]]) -> list[str]:
    """torchaudio's time over ours, in the same dtype and from its float32."""
    lines = []
    for (name, dtype), times in seconds.items():
        for peer_dtype in dict.fromkeys([dtype, "float32"]):
            peer = seconds.get((TORCHAUDIO, peer_dtype))
            if name == OURS and peer:
                label = f"batch {batch_size}: torchaudio {peer_dtype} / ours {dtype}"
                lines.append(ratio_line(label, peer, times))
    return lines


def draw_batch(axes: Axes, rows: list[dict]) -> None:
    """Bars for one batch size, with the range of the repeats and the floor of each."""
    for x, row in enumerate(rows):
        median = row["step_ms"]
        spread = [[median - row["step_ms_min"]], [row["step_ms_max"] - median]]
        axes.bar(x, median, 0.7, yerr=spread, capsize=3, color=COLOURS[row["model"]])
        axes.annotate(
            f"{median:.3g} ms\n{row['x_real_time']:.3g}x", (x, row["step_ms_max"]), (0, 4),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
        label = "floor" if x == 0 else None
        axes.plot(
            [x - 0.4, x + 0.4], [row["floor_ms"]] * 2, "--", color=COLOURS["floor"], label=label
        )
    labels = [f"{row['model']}\n{row['dtype']}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(0, 1.3 * max(row["step_ms_max"] for row in rows))
    axes.set(ylabel="milliseconds per decoder step", title=f"batch {rows[0]['batch_size']}")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def make_figure(rows: list[dict], machine: str) -> Figure:
    batch_sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    n_bars = len(rows) // len(batch_sizes)
    width = max(1.1 * n_bars, 3.0) * len(batch_sizes) + 0.8
    figure = Figure(figsize=(max(width, 6.4), 3.8), layout="constrained")
    panels = figure.subplots(1, len(batch_sizes), squeeze=False)[0]
    for axes, batch_size in zip(panels, batch_sizes, strict=True):
        draw_batch(axes, [row for row in rows if row["batch_size"] == batch_size])
    figure.suptitle(
        f"free running, {rows[0]['n_text']} characters, {rows[0]['n_steps']} frames; "
        f"3x is three times as fast as speech\n{machine}",
        fontsize=8,
    )
    return figure


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Tacotron2Config]:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--batch_size", type=positive, nargs="+", default=[1, 16], help="default: 1 16"
    )
    parser.add_argument("--n_text", type=positive, default=80, help="characters (default: 80)")
    parser.add_argument("--n_steps", type=positive, default=200, help="frames (default: 200)")
    parser.add_argument(
        "--dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help="default: both"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="timed runs (default: 5)")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    args.batch_size, args.dtype = (list(dict.fromkeys(x)) for x in (args.batch_size, args.dtype))
    return args, model_config(parser, args)


def measure(args: argparse.Namespace, config: Tacotron2Config) -> None:
    """Every batch size in turn; prints and writes."""
    machine = describe_device(args.device)
    print(machine)
    rates = {dtype: matmul_rate(args.device, DTYPES[dtype]) for dtype in args.dtype}
    for dtype, rate in rates.items():
        print(f"large matrix product, {dtype}: {rate / 1e9:,.0f} GFLOP/s")
    speakers = make_speakers(chosen_models(args.only), config, args.n_steps, args.device)
    rows, lines = [], []
    for batch_size in args.batch_size:
        tokens = torch.randint(1, config.vocab_size, (batch_size, args.n_text), device=args.device)
        seconds = time_runs(speakers, tokens, args.n_steps, args.dtype, args.repeats)
        floors = {
            dtype: floors_ms(
                config, batch_size, args.n_text, args.n_steps, dtype, args.device, rates
            )
            for dtype in args.dtype
        }
        rows += [
            timing_row(run, batch_size, args.n_text, args.n_steps, times, floors[run[1]])
            for run, times in seconds.items()
        ]
        lines += ratio_lines(batch_size, seconds)
    print(f"\n{format_table(rows)}", *lines, sep="\n")
    write_csv(args.output_dir / "inference.csv", rows, machine)
    save_figure(make_figure(rows, machine), args.output_dir / "inference.png")
    print(f"\nCSV and PNG: {args.output_dir}")


def main(argv: Sequence[str] | None = None) -> None:
    args, config = parse_args(argv)
    with torch_threads(args.threads):
        measure(args, config)


if __name__ == "__main__":
    main()
