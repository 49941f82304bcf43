"""One training step, this model and torchaudio's in turn: time, frames per second, peak memory.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --dtype bfloat16 --sweep 150x16 600x16 300x4 300x64

A step is forward, tacotron2_loss, backward, Adam, on one batch of utterances of equal length: the
same batch, loss, sizes and dtype for torchaudio.models.Tacotron2, of which every --repeats runs
one step of each, swapping who goes first; ratios are those of the medians. bfloat16 is the same
autocast around both forwards. --sweep N_MELxBATCH_SIZE ... times further sizes beside the first
and shows what a frame costs at each: flat over n_mel when a step is linear in the length. (All
frames of a clip share the cost of its --n_text characters, so short clips' frames are dearer by
that; the floor knows it, and "of_floor" with it.)

Beside each time stands its floor: the model's FLOPs, times 3 for training, over the rate of a
large matrix product of that dtype, measured in the same run. (A GPU's convolutions and LSTMs may
use TF32 in float32, its plain matrix products do not, unless torch is told so.)

Peak memory is measured in a fresh process for each model, over 2 steps after a warm-up of one
tiny step, which allocates Adam's state and whatever libraries keep. "peak_mib" is what the steps
add to what was held before them (activations, gradients, buffers), "total_mib" is all of it: on
CUDA from PyTorch's allocator, on a CPU the process's resident memory, Python and libraries
included. The CPU's peak is VmHWM of /proc/self/status; ru_maxrss, which stands in for it where
there is none, is inherited from the parent process on Linux and so would be too high.

Writes train_step.csv, train_step_flops.csv, train_step.png and, with --sweep,
train_step_sweep.csv to --output_dir.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Run as a script, only this folder is on the path; the flat modules are in the one above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import (
    COLOURS,
    MIB,
    MODELS,
    OURS,
    TORCHAUDIO,
    TRAINING_PASSES,
    add_common_arguments,
    chosen_models,
    describe_device,
    format_table,
    forward_flops,
    forward_macs,
    in_turn,
    make_parser,
    matmul_rate,
    model_config,
    positive,
    progress,
    ratio_line,
    shown,
    timed,
    torch_threads,
    write_csv,
)
from benchmarks.training import (
    Contender,
    TrainBatch,
    forward_and_backward,
    make_contender,
    to_device,
)
from dataset import Batch
from model import Tacotron2Config
from plotting import save_figure
from synthesize import DTYPES

WARM_UP_STEPS = {"cpu": 1, "cuda": 3}
MEMORY_STEPS = 2


class Size(NamedTuple):
    """One batch's shape."""

    batch_size: int
    n_text: int
    n_mel: int

    @property
    def n_frames(self) -> int:
        return self.batch_size * self.n_mel


def make_batch(config: Tacotron2Config, size: Size, device: torch.device) -> TrainBatch:
    """Random utterances, all of the same lengths."""
    batch_size, n_text, n_mel = size
    generator = torch.Generator().manual_seed(0)
    stop_targets = torch.zeros(batch_size, n_mel)
    stop_targets[:, -1] = 1.0
    batch = Batch(
        tokens=torch.randint(1, config.vocab_size, (batch_size, n_text), generator=generator),
        token_lengths=torch.full((batch_size,), n_text),
        mels=torch.randn(batch_size, n_mel, config.num_mels, generator=generator),
        mel_lengths=torch.full((batch_size,), n_mel),
        stop_targets=stop_targets,
        texts=[],
        paths=[],
    )
    return to_device(batch, device)


def train_step(contender: Contender, batch: TrainBatch, dtype: torch.dtype) -> Tensor:
    """What is timed; returns the loss."""
    loss = forward_and_backward(contender, batch, dtype)
    contender.optimizer.step()
    contender.optimizer.zero_grad()
    return loss


def time_steps(
    contenders: Sequence[Contender], batch: TrainBatch, dtype: torch.dtype, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each repeat by model, one step of each model in turn."""
    device = batch.mels.device
    for contender in contenders:
        for _ in range(WARM_UP_STEPS[device.type]):
            loss = train_step(contender, batch, dtype)
        if not torch.isfinite(loss):
            raise RuntimeError(f"{contender.name}: the loss is {loss.item()}")
    steps = {
        contender.name: partial(timed, partial(train_step, contender, batch, dtype), device)
        for contender in contenders
    }
    return in_turn(steps, repeats, lambda name, time: f"{name} {time:.3f} s")


def resident_bytes(peak: bool) -> int:
    """This process's resident memory, now or at its peak."""
    status = Path("/proc/self/status")
    key = "VmHWM:" if peak else "VmRSS:"
    lines = status.read_text().splitlines() if status.exists() else []
    found = next((line for line in lines if line.startswith(key)), None)
    if found:
        return int(found.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(
    name: str, config: Tacotron2Config, size: Size, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Peak of MEMORY_STEPS steps: above what was held before them, and in all. In MiB.

    Only right in a process that has done nothing else; see the module's docstring.
    """
    contender = make_contender(name, config, device)
    tiny = Size(batch_size=2, n_text=4, n_mel=4)
    train_step(contender, make_batch(config, tiny, device), dtype)
    batch = make_batch(config, size, device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else resident_bytes(peak=False)
    for _ in range(MEMORY_STEPS):
        train_step(contender, batch, dtype)
    peak = torch.cuda.max_memory_allocated(device) if cuda else resident_bytes(peak=True)
    return {"peak_mib": (peak - before) / MIB, "total_mib": peak / MIB}


def peak_memory_in_child(name: str, argv: Sequence[str]) -> dict[str, float]:
    """peak_memory in a fresh process of this script."""
    command = [sys.executable, __file__, *argv, "--memory_child", name]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    if result.returncode:
        raise RuntimeError(f"{name}: the process that measures memory failed, see above")
    return json.loads(result.stdout.splitlines()[-1])


def timing_row(
    name: str, config: Tacotron2Config, size: Size, dtype: str, times: list[float], rate: float
) -> dict[str, Any]:
    """One line of the table and of the CSV."""
    floor = TRAINING_PASSES * forward_flops(config, *size) / rate
    median = statistics.median(times)
    return {
        "model": name,
        "dtype": dtype,
        **size._asdict(),
        "step_ms": 1e3 * median,
        "step_ms_min": 1e3 * min(times),
        "step_ms_max": 1e3 * max(times),
        "frames_per_s": size.n_frames / median,
        "us_per_frame": 1e6 * median / size.n_frames,
        "floor_ms": 1e3 * floor,
        "of_floor": floor / median,
    }


def flops_rows(config: Tacotron2Config, size: Size) -> list[dict[str, Any]]:
    """MFLOP that one frame of this batch costs, by part; the text's share is in it."""
    per_frame = 2 / size.n_frames / 1e6
    macs = forward_macs(config, *size)
    rows = [
        {
            "part": part,
            "forward_mflop_per_frame": n * per_frame,
            "training_mflop_per_frame": TRAINING_PASSES * n * per_frame,
            "share": n / sum(macs.values()),
        }
        for part, n in {**macs, "all": sum(macs.values())}.items()
    ]
    folded = forward_macs(config, *size, folded=True)["attention location"]
    n = {"part": "(location, folded)", "forward_mflop_per_frame": folded * per_frame}
    n["training_mflop_per_frame"] = TRAINING_PASSES * folded * per_frame
    return [*rows, {**n, "share": folded / sum(macs.values())}]


def draw_steps(axes: Axes, rows: list[dict], seconds: dict[str, list[float]]) -> None:
    """Median, every repeat and the floor."""
    for x, row in enumerate(rows):
        axes.bar(x, row["step_ms"], width=0.6, color=COLOURS[row["model"]])
        times = [1e3 * time for time in seconds[row["model"]]]
        axes.plot([x] * len(times), times, "o", color="black", markersize=3, alpha=0.6)
        axes.annotate(
            f"{shown(row['step_ms'])} ms", (x, max(times)), (0, 4), textcoords="offset points",
            ha="center",
        )  # fmt: skip
    floor = rows[0]["floor_ms"]
    label = f"floor, {shown(floor)} ms"
    axes.axhline(floor, color=COLOURS["floor"], linestyle="--", label=label)
    axes.set_xticks(range(len(rows)), [row["model"] for row in rows])
    axes.set_ylim(0, 1.25 * max(row["step_ms_max"] for row in rows))
    axes.set(ylabel="milliseconds", title="training step")
    axes.legend(loc="upper left", frameon=False)


def draw_memory(axes: Axes, rows: list[dict]) -> None:
    for x, row in enumerate(rows):
        axes.bar(x, row["peak_mib"], width=0.6, color=COLOURS[row["model"]])
        axes.annotate(
            f"{shown(row['peak_mib'])} MiB", (x, row["peak_mib"]), (0, 4),
            textcoords="offset points", ha="center",
        )  # fmt: skip
    axes.set_xticks(range(len(rows)), [row["model"] for row in rows])
    axes.set_ylim(0, 1.2 * max(row["peak_mib"] for row in rows))
    axes.set(ylabel="MiB above weights and Adam's state", title="peak memory of a step")


def draw_sweep(axes: Axes, rows: list[dict]) -> None:
    """Cost per frame over the length, one line for each model and batch size."""
    styles = ("-", "--", "-.", ":")
    batch_sizes = sorted({row["batch_size"] for row in rows})
    for name in dict.fromkeys(row["model"] for row in rows):
        for batch_size, style in zip(batch_sizes, styles * len(batch_sizes), strict=False):
            line = [r for r in rows if r["model"] == name and r["batch_size"] == batch_size]
            line.sort(key=lambda row: row["n_mel"])
            axes.plot(
                [row["n_mel"] for row in line], [row["us_per_frame"] for row in line], style,
                marker="o", markersize=4, color=COLOURS[name], label=f"{name}, batch {batch_size}",
            )  # fmt: skip
    axes.set_ylim(0, 1.35 * max(row["us_per_frame"] for row in rows))  # room for the legend
    axes.set_xlim(0)
    axes.set(xlabel="frames per clip (n_mel)", ylabel="microseconds per frame")
    axes.set_title("what a frame costs")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")


def make_figure(
    rows: list[dict], seconds: dict[str, list[float]], sweep: list[dict], machine: str
) -> Figure:
    n_panels = 3 if sweep else 2
    figure = Figure(figsize=(3.2 * n_panels + (1.6 if sweep else 0), 3.8), layout="constrained")
    widths = [1, 1, 1.5][:n_panels]
    panels = figure.subplots(1, n_panels, width_ratios=widths)
    draw_steps(panels[0], rows, seconds)
    draw_memory(panels[1], rows)
    if sweep:
        draw_sweep(panels[2], sweep)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    row = rows[0]
    figure.suptitle(
        f"{row['dtype']}, batch {row['batch_size']}, {row['n_text']} characters, "
        f"{row['n_mel']} frames\n{machine}",
        fontsize=8,
    )
    return figure


def sweep_size(text: str) -> tuple[int, int]:
    """argparse type: "300x16" -> (300, 16), frames and clips."""
    try:
        n_mel, batch_size = map(positive, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be N_MELxBATCH_SIZE, such as 300x16, found {text!r}"
        ) from None
    return n_mel, batch_size


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, Tacotron2Config]:
    parser = make_parser(__doc__)
    parser.add_argument("--batch_size", type=positive, default=16, help="clips (default: 16)")
    parser.add_argument("--n_text", type=positive, default=80, help="characters (default: 80)")
    parser.add_argument("--n_mel", type=positive, default=300, help="frames (default: 300)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument("--repeats", type=positive, default=5, help="timed steps (default: 5)")
    parser.add_argument(
        "--sweep", type=sweep_size, nargs="+", default=[], metavar="N_MELxBATCH_SIZE",
        help="further sizes, to see what a frame costs at each",
    )  # fmt: skip
    parser.add_argument(
        "--sweep_repeats", type=positive, default=2, help="timed steps for each (default: 2)"
    )
    parser.add_argument("--memory_child", choices=MODELS, help=argparse.SUPPRESS)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    return args, model_config(parser, args)


def measure(args: argparse.Namespace, config: Tacotron2Config, argv: Sequence[str]) -> None:
    """Memory, then time, then the sweep; prints and writes each."""
    names = chosen_models(args.only)
    dtype, machine = DTYPES[args.dtype], describe_device(args.device)
    size = Size(args.batch_size, args.n_text, args.n_mel)
    print(machine)
    memory = {name: peak_memory_in_child(name, argv) for name in names}
    rate = matmul_rate(args.device, dtype)
    print(f"large matrix product, {args.dtype}: {rate / 1e9:,.0f} GFLOP/s\n")
    parts = flops_rows(config, size)
    print(format_table(parts), end="\n\n")
    write_csv(args.output_dir / "train_step_flops.csv", parts, machine)

    contenders = [make_contender(name, config, args.device) for name in names]
    batch = make_batch(config, size, args.device)
    seconds = time_steps(contenders, batch, dtype, args.repeats)
    timings = [
        timing_row(name, config, size, args.dtype, times, rate) for name, times in seconds.items()
    ]
    rows = [row | memory[row["model"]] for row in timings]
    print(format_table(rows))
    write_csv(args.output_dir / "train_step.csv", rows, machine)
    if len(names) == 2:
        print(ratio_line("time, torchaudio / ours", seconds[TORCHAUDIO], seconds[OURS]))
        ratio = memory[TORCHAUDIO]["peak_mib"] / memory[OURS]["peak_mib"]
        print(f"peak memory, torchaudio / ours: {ratio:.2f}")

    sweep = run_sweep(args, config, contenders, rate)
    if sweep:
        sweep = timings + sweep
        print(f"\n{format_table(sweep)}\n{flatness(sweep)}")
        write_csv(args.output_dir / "train_step_sweep.csv", sweep, machine)
    save_figure(make_figure(rows, seconds, sweep, machine), args.output_dir / "train_step.png")
    print(f"\nCSV and PNG: {args.output_dir}")


def run_sweep(
    args: argparse.Namespace,
    config: Tacotron2Config,
    contenders: Sequence[Contender],
    rate: float,
) -> list[dict[str, Any]]:
    """Rows of all the further sizes."""
    rows = []
    for n_mel, batch_size in args.sweep:
        size = Size(batch_size, args.n_text, n_mel)
        progress(f"sweep: {n_mel} frames, batch {batch_size}")
        batch = make_batch(config, size, args.device)
        seconds = time_steps(contenders, batch, DTYPES[args.dtype], args.sweep_repeats)
        rows += [
            timing_row(name, config, size, args.dtype, times, rate)
            for name, times in seconds.items()
        ]
    return rows


def flatness(rows: list[dict[str, Any]]) -> str:
    """For each model and batch size: dearest frame over cheapest, as n_mel changes."""
    lines = []
    for name, batch_size in dict.fromkeys((row["model"], row["batch_size"]) for row in rows):
        line = [r for r in rows if (r["model"], r["batch_size"]) == (name, batch_size)]
        lengths = [row["n_mel"] for row in line]
        costs = [row["us_per_frame"] for row in line]
        if len(set(lengths)) > 1:
            lines.append(
                f"{name}, batch {batch_size}: {max(costs) / min(costs):.2f} from the cheapest to "
                f"the dearest frame, {min(lengths)} to {max(lengths)} frames a clip"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args, config = parse_args(argv)
    with torch_threads(args.threads):
        if args.memory_child:
            size = Size(args.batch_size, args.n_text, args.n_mel)
            dtype = DTYPES[args.dtype]
            print(json.dumps(peak_memory(args.memory_child, config, size, dtype, args.device)))
            return
        measure(args, config, argv)


if __name__ == "__main__":
    main()
