"""Measure a training step, this model's and torchaudio's: time, frames per second, peak memory.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --dtype bfloat16 --sweep 150x16 600x16 300x4 300x64

A step is forward, tacotron2_loss, backward and Adam on one batch of utterances of equal length.
--sweep shows what a frame costs at other sizes. The floor is the model's FLOPs, times 3 for
training; see common.py. (A GPU's convolutions and LSTMs may use TF32 in float32.)

Peak memory is that of 2 steps in a fresh process: "peak_mib" is what they add, "total_mib" is all
of it; on CUDA it is the memory of PyTorch's allocator, on a CPU the resident memory.

Writes train_step.csv, train_step_flops.csv and train_step_sweep.csv to --output_dir.
"""

import argparse
import math
import re
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.common import MIB, OURS, PLAIN, TORCHAUDIO, TRAINING_PASSES, Row
from command_line.main import script
from dataset import AudioConfig, Batch, TTSCollator, Utterance
from fast.decoder import speed_up
from model import Tacotron2, Tacotron2Config, Tacotron2Output, tacotron2_loss
from speech.voice import DTYPES, inference_precision
from text.tokenizer import Tokenizer

WARM_UP_STEPS = 3  # on a GPU
MEMORY_STEPS = 2


class Size(NamedTuple):
    """One batch's shape."""

    batch_size: int
    n_text: int
    n_mel: int


class Contender(NamedTuple):
    """A model in training."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    max_grad_norm: float = math.inf  # infinity: gradients are not clipped


def make_contender(
    name: str,
    config: Tacotron2Config,
    device: torch.device,
    max_grad_norm: float = math.inf,
    **adam: Any,
) -> Contender:
    """Make a model with random weights and its Adam."""
    torch.manual_seed(0)
    model = common.build_torchaudio(config) if name == TORCHAUDIO else Tacotron2(config)
    model = (speed_up(model) if name == OURS else model).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), **{"lr": 1e-4, **adam})
    return Contender(name, model, optimizer, max_grad_norm)


def make_batch(config: Tacotron2Config, size: Size, device: torch.device) -> Batch:
    """Make a batch of random utterances, all of the same lengths."""
    torch.manual_seed(0)
    tokens = torch.randint(1, config.vocab_size, (size.batch_size, size.n_text))
    mels = torch.randn(size.batch_size, size.n_mel, config.num_mels)
    utterances = [Utterance(*pair, "", "") for pair in zip(tokens, mels, strict=True)]
    return TTSCollator(AudioConfig(), Tokenizer())(utterances).to(device)


def forward(contender: Contender, batch: Batch) -> Tacotron2Output:
    """Run teacher forcing; put torchaudio's outputs in our order."""
    if contender.name != TORCHAUDIO:
        return contender.model(*batch[:4])  # tokens, token_lengths, mels, mel_lengths
    lengths = [x.to(batch.mels.device, non_blocking=True) for x in batch[1:4:2]]
    outputs = contender.model(batch.tokens, lengths[0], batch.mels.mT, lengths[1])
    return Tacotron2Output(outputs[0].mT, outputs[1].mT, *outputs[2:])


def train_step(contender: Contender, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Take one optimizer step; return the loss."""
    with inference_precision(batch.mels.device, dtype):
        output = forward(contender, batch)
    targets = batch.mels, batch.token_lengths, batch.mel_lengths, batch.stop_targets
    loss = tacotron2_loss(output, *targets)["loss"]
    loss.backward()
    if contender.max_grad_norm < math.inf:
        parameters = contender.model.parameters()
        norm = nn.utils.clip_grad_norm_(parameters, contender.max_grad_norm).item()
        if not math.isfinite(norm):
            raise RuntimeError(f"{contender.name}: the norm of the gradients is {norm}")
    contender.optimizer.step()
    contender.optimizer.zero_grad()
    return loss.detach()


def time_steps(
    contenders: Sequence[Contender], batch: Batch, dtype: torch.dtype, repeats: int
) -> dict[str, list[float]]:
    """Time steps of each model in turn; return the seconds of each repeat."""
    device, steps = batch.mels.device, {}
    for contender in contenders:
        step = partial(train_step, contender, batch, dtype)
        losses = [step() for _ in range(1 if device.type == "cpu" else WARM_UP_STEPS)]
        if not torch.isfinite(losses[-1]):
            raise RuntimeError(f"{contender.name}: the loss is {losses[-1].item()}")
        steps[contender.name] = partial(common.timed, step, device)
    return common.in_turn(steps, repeats)


def resident_bytes(key: str) -> int:
    """Return this process's resident memory: VmRSS is that of now, VmHWM the peak."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, which counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(re.search(rf"{key}:\s*(\d+)", status.read_text())[1])


def peak_memory(
    name: str, config: Tacotron2Config, size: Size, dtype: torch.dtype, device: torch.device
) -> Row:
    """Measure the MiB at the peak of MEMORY_STEPS steps, above those before, and in all."""
    # A tiny step first makes Adam's state and what libraries keep.
    contender, cuda = make_contender(name, config, device), device.type == "cuda"
    train_step(contender, make_batch(config, Size(2, 4, 4), device), dtype)
    batch = make_batch(config, size, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else resident_bytes("VmRSS")
    for _ in range(MEMORY_STEPS):
        train_step(contender, batch, dtype)
    peak = torch.cuda.max_memory_allocated(device) if cuda else resident_bytes("VmHWM")
    return {"peak_mib": (peak - before) / MIB, "total_mib": peak / MIB}


def peak_memory_in_child(*arguments: Any) -> Row:
    """Call peak_memory in a fresh process, with as many threads."""
    context, n_threads = get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (n_threads,)) as pool:
        return pool.submit(peak_memory, *arguments).result()


def flops_rows(config: Tacotron2Config, size: Size) -> list[Row]:
    """Compute the MFLOP that a frame of this batch costs, by part, with its share of the text."""
    macs = common.forward_macs(config, *size)
    total, rows = sum(macs.values()), []
    for part, n in {**macs, "all": total}.items():
        mflop = 2e-6 * n / (size.batch_size * size.n_mel)
        row = {"part": part, "forward_mflop_per_frame": mflop}
        row["training_mflop_per_frame"] = TRAINING_PASSES * mflop
        rows.append(row | {"share": n / total})
    return rows


def sweep_size(text: str) -> tuple[int, int]:
    """Parse "300x16" as (300, 16), frames and clips (an argparse type)."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be N_MELxBATCH_SIZE, as 300x16 is, found {text!r}")
    n_mel, batch_size = map(int, text.split("x"))
    return n_mel, batch_size


def parse_args(argv: Sequence[str] | None) -> common.Flags:
    """Read the flags; argparse ends the program on a mistake."""
    parser = common.make_parser(
        __doc__,
        batch_size=(16, "clips"),
        n_text=(80, "characters"),
        n_mel=(300, "frames"),
        repeats=(5, "timed steps"),
        sweep_repeats=(2, "timed steps for each size of --sweep"),
    )
    add = parser.add_argument
    add("--dtype", choices=DTYPES, default="float32", help="of products (default: %(default)s)")
    add("--sweep", type=sweep_size, nargs="+", default=[], help="other sizes, N_MELxBATCH_SIZE")
    add("--plain", action="store_true", help="time this model without fast/decoder.py as well")
    return common.read_flags(parser, argv)


def measure(args: argparse.Namespace, config: Tacotron2Config) -> None:
    """Measure memory, then time, then the sweep; print and write each."""
    names = args.models + (PLAIN,) * args.plain
    size, dtype = Size(args.batch_size, args.n_text, args.n_mel), DTYPES[args.dtype]
    machine = common.print_device(args.device)
    memory = {name: peak_memory_in_child(name, config, size, dtype, args.device) for name in names}
    rate = common.matmul_rate(args.device, args.dtype)
    common.report(args.output_dir / "train_step_flops.csv", flops_rows(config, size), machine)
    contenders = [make_contender(name, config, args.device) for name in names]

    def time_size(size: Size, repeats: int) -> tuple[dict[str, list[float]], list[Row]]:
        batch, n_frames = make_batch(config, size, args.device), size.batch_size * size.n_mel
        floor_ms = 1e3 * TRAINING_PASSES * common.forward_flops(config, *size) / rate
        seconds, rows = time_steps(contenders, batch, dtype, repeats), []
        for name, times in seconds.items():
            row = {"model": name, "dtype": args.dtype, **size._asdict()}
            row |= common.step_columns([1e3 * time for time in times])
            ms = row["step_ms"]
            row |= {"frames_per_s": 1e3 * n_frames / ms, "us_per_frame": 1e3 * ms / n_frames}
            rows.append(row | {"floor_ms": floor_ms, "of_floor": floor_ms / ms})
        return seconds, rows

    seconds, timings = time_size(size, args.repeats)
    rows = [row | memory[row["model"]] for row in timings]
    common.report(args.output_dir / "train_step.csv", rows, machine)
    for slower in names[1:] if names[0] == OURS else ():
        print(common.ratio_line(f"time, {slower} / ours", seconds[slower], seconds[OURS]))
        ratio = memory[slower]["peak_mib"] / memory[OURS]["peak_mib"]
        print(f"peak memory, {slower} / ours: {ratio:.2f}")
    for n_mel, batch_size in args.sweep:
        timings += time_size(Size(batch_size, args.n_text, n_mel), args.sweep_repeats)[1]
    if args.sweep:
        common.report(args.output_dir / "train_step_sweep.csv", timings, machine)


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure with these flags."""
    measure(*parse_args(argv))


if __name__ == "__main__":
    main()
