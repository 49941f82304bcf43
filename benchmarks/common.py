"""What the benchmarks share: the peer model, counted FLOPs, the device's own speed, tables.

The floor of a time is the model's FLOPs over the rate at which the device multiplies large
matrices of that dtype, measured in the same run: a device that did nothing but those products, at
its best speed, would need that long. FLOPs are those of the model as the paper has it, not of an
implementation: what is computed twice, or over padding, is no merit.
"""

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchaudio

from config import add_config_arguments
from model import Tacotron2Config

OURS, TORCHAUDIO = "ours", "torchaudio"
MODELS = (OURS, TORCHAUDIO)
COLOURS = {OURS: "#3b6fb6", TORCHAUDIO: "#e07b39", "floor": "#555555"}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns: large enough for full speed
TRAINING_PASSES = 3  # backward: one product for the inputs' gradient, one for the weights'
MIB = 2**20
DEFAULT_OUTPUT_DIR = Path(__file__).resolve().parent / "results"
Key, Result = TypeVar("Key", bound=Hashable), TypeVar("Result")


def make_parser(description: str) -> argparse.ArgumentParser:
    """Shows a script's docstring as it stands, and takes no abbreviated flags."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip


def add_common_arguments(parser: argparse.ArgumentParser, with_models: bool = True) -> None:
    """Flags of every benchmark; with_models adds device, and the model's sizes."""
    parser.add_argument(
        "--output_dir", type=Path, default=DEFAULT_OUTPUT_DIR, help="folder for CSV and PNG"
    )
    if not with_models:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=usable_device, default=device, help=f"default: {device}")
    parser.add_argument(
        "--threads", type=positive, help="CPU threads of torch; torch's own if unset"
    )
    parser.add_argument("--only", choices=(*MODELS, "both"), default="both", help="default: both")
    add_config_arguments(parser, Tacotron2Config)


def model_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Tacotron2Config:
    """The model's sizes out of the flags; a mistake ends the program with one sentence.

    What torchaudio's model cannot have is a mistake too, unless --only leaves it out.
    """
    values = vars(args)
    try:
        config = Tacotron2Config(
            **{f.name: values[f.name] for f in fields(Tacotron2Config) if f.name in values}
        )
        if args.only != OURS:
            with torch.device("meta"):
                build_torchaudio(config)
    except ValueError as error:
        parser.error(str(error))
    return config


def chosen_models(only: str) -> tuple[str, ...]:
    return MODELS if only == "both" else (only,)


def positive(text: str) -> int:
    """argparse type of counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def usable_device(text: str) -> torch.device:
    """argparse type of --device: cpu, cuda or cuda:N, which must be there."""
    name, _, index = text.partition(":")
    if name not in MATMUL_SIZE or (index and not index.isdigit()):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, found {text!r}")
    if name == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: PyTorch sees no such GPU")
    return torch.device(text)


def build_torchaudio(config: Tacotron2Config, **options: Any) -> torchaudio.models.Tacotron2:
    """torchaudio's model in our sizes; its dropout outside the decoder is always 0.5.

    Raises:
        ValueError: for sizes that torchaudio's model cannot have.
    """
    c = config
    if c.character_embed_dim != c.encoder_embed_dim:
        raise ValueError(
            "torchaudio.models.Tacotron2 needs --character_embed_dim equal to "
            f"--encoder_embed_dim, found {c.character_embed_dim} and {c.encoder_embed_dim}"
        )
    if c.decoder_prenet_depth != 2:
        raise ValueError(
            "torchaudio.models.Tacotron2 needs --decoder_prenet_depth 2, "
            f"found {c.decoder_prenet_depth}"
        )
    return torchaudio.models.Tacotron2(
        n_mels=c.num_mels,
        n_symbol=c.vocab_size,
        symbol_embedding_dim=c.character_embed_dim,
        encoder_embedding_dim=c.encoder_embed_dim,
        encoder_n_convolution=c.encoder_n_convolutions,
        encoder_kernel_size=c.encoder_kernel_size,
        decoder_rnn_dim=c.decoder_rnn_embed_dim,
        decoder_dropout=c.decoder_dropout_p,
        attention_rnn_dim=c.decoder_rnn_embed_dim,
        attention_hidden_dim=c.attention_dim,
        attention_location_n_filter=c.attention_location_n_filters,
        attention_location_kernel_size=c.attention_location_kernel_size,
        attention_dropout=c.attention_dropout_p,
        prenet_dim=c.decoder_prenet_dim,
        postnet_n_convolution=c.decoder_postnet_num_convs,
        postnet_kernel_size=c.decoder_postnet_kernel_size,
        postnet_embedding_dim=c.decoder_postnet_n_filters,
        **options,
    )


def forward_macs(
    config: Tacotron2Config, batch_size: int, n_text: int, n_mel: int, folded: bool = False
) -> dict[str, int]:
    """Multiply-adds of one forward pass over n_mel frames, by part of the model.

    A multiply-add is 2 FLOPs, and training needs TRAINING_PASSES times the forward's. Products
    only: activations, softmax and batch norm are small beside them. `folded` counts the location
    convolution and the linear layer after it as the one convolution that fast_decoder.py runs;
    at the default sizes that is a third more multiply-adds, in one product instead of two.
    """
    c = config
    text, frames = batch_size * n_text, batch_size * n_mel
    pairs = frames * n_text  # every frame looks at every character
    rnn_dim, text_dim, dim = c.decoder_rnn_embed_dim, c.encoder_embed_dim, c.attention_dim
    n_filters, n_taps = c.attention_location_n_filters, 2 * c.attention_location_kernel_size
    encoder_widths = [c.character_embed_dim] + [text_dim] * c.encoder_n_convolutions
    postnet_widths = [c.decoder_postnet_n_filters] * (c.decoder_postnet_num_convs - 1)
    postnet_widths = [c.num_mels, *postnet_widths, c.num_mels]
    prenet_widths = [c.num_mels] + [c.decoder_prenet_dim] * c.decoder_prenet_depth

    def products(widths: list[int]) -> int:
        return sum(n_in * n_out for n_in, n_out in pairwise(widths))

    location = n_taps * dim if folded else n_taps * n_filters + n_filters * dim
    return {
        "encoder convolutions": text * c.encoder_kernel_size * products(encoder_widths),
        "encoder BiLSTM": text * 2 * 4 * (text_dim // 2) * (text_dim + text_dim // 2),
        "prenet": frames * products(prenet_widths),
        "attention LSTM": frames * 4 * rnn_dim * (c.decoder_prenet_dim + text_dim + rnn_dim),
        "attention keys": text * text_dim * dim,
        "attention query": frames * rnn_dim * dim,
        "attention location": pairs * location,
        "attention energies": pairs * dim,
        "attention context": pairs * text_dim,
        "decoder LSTM": frames * 4 * rnn_dim * (rnn_dim + text_dim + rnn_dim),
        "projections": frames * (rnn_dim + text_dim) * (c.num_mels + 1),
        "postnet": frames * c.decoder_postnet_kernel_size * products(postnet_widths),
    }


def forward_flops(config: Tacotron2Config, batch_size: int, n_text: int, n_mel: int) -> int:
    return 2 * sum(forward_macs(config, batch_size, n_text, n_mel).values())


def decoder_step_weights(config: Tacotron2Config) -> int:
    """Weights that one decoder step has to read, whatever the batch size."""
    one = forward_macs(config, batch_size=1, n_text=1, n_mel=1)
    parts = ("prenet", "attention LSTM", "attention query", "decoder LSTM", "projections")
    return sum(one[part] for part in parts)  # one multiply-add each


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done what `function` asked of it."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of 5."""
    size = MATMUL_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [timed(lambda: torch.mm(a, b, out=out), device) for _ in range(2 + 5)]
    return 2 * size**3 / min(seconds)


def read_rate(device: torch.device, n_bytes: int) -> float:
    """Bytes/s of reading the same n_bytes again and again, caches included; the best of 5."""
    x = torch.randn(max(n_bytes // 4, 1), device=device)
    passes = 10

    def read() -> None:
        for _ in range(passes):
            torch.dot(x, x)

    return 4 * len(x) * passes / min(timed(read, device) for _ in range(1 + 5))


@contextmanager
def torch_threads(n_threads: int | None) -> Iterator[None]:
    """Runs the block with that many CPU threads; None leaves torch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_device(device: torch.device) -> str:
    """One line: what ran, on what, with which PyTorch."""
    versions = f"torch {torch.__version__}, torchaudio {torchaudio.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if "model name" in line), name)
    n_threads = torch.get_num_threads()
    return f"{name}, {n_threads} thread{'s' if n_threads > 1 else ''}, {versions}"


def in_turn(
    runs: dict[Key, Callable[[], Result]], repeats: int, show: Callable[[Key, Result], str]
) -> dict[Key, list[Result]]:
    """What each run gave, one of each per repeat, in an order that is turned round every time.

    A slow moment of the machine then falls on all of them.
    """
    results: dict[Key, list[Result]] = {key: [] for key in runs}
    for repeat in range(repeats):
        for key in list(runs) if repeat % 2 == 0 else reversed(runs):
            results[key].append(runs[key]())
        latest = "  ".join(show(key, found[-1]) for key, found in results.items())
        progress(f"repeat {repeat + 1} of {repeats}: {latest}")
    return results


def ratio_line(label: str, slow: Sequence[float], fast: Sequence[float]) -> str:
    """The ratio of medians, and how far the ratios of single repeats lie apart."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    ratio = statistics.median(slow) / statistics.median(fast)
    return f"{label}: {ratio:.2f} (repeats {min(ratios):.2f} to {max(ratios):.2f})"


def shown(value: Any) -> str:
    """A table cell: numbers with three significant digits or so."""
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Columns with a header; text to the left, numbers to the right."""
    cells = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [isinstance(value, str) for value in rows[0].values()]
    lines = [
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[dict[str, Any]], machine: str) -> None:
    """The rows as they are, each with the machine it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine"])
        writer.writeheader()
        writer.writerows({**row, "machine": machine} for row in rows)


def progress(line: str) -> None:
    """To stderr: stdout is for the tables."""
    print(line, file=sys.stderr, flush=True)
