"""Shared by the benchmarks: the peer model, counted FLOPs, the device's speed, timing, tables.

The floor of a time is the model's FLOPs over the rate of a large matrix product of that dtype,
measured on the device in the same run. The FLOPs are those of the paper's model: an implementation
that computes something twice, or computes padding, gets no credit for it.
"""

import argparse
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchaudio

from command_line.files import count_argument
from command_line.flags import FlagParser
from model import Tacotron2Config
from speech.voice import DTYPES, add_device_flag
from training.config import add_config_flags, make_config

OURS, PLAIN, TORCHAUDIO = "ours", "ours, plain loops", "torchaudio"
MODELS = (OURS, TORCHAUDIO)
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns: large enough for full speed
TRAINING_PASSES = 3  # backward: one product for the inputs' gradient, one for the weights'
MIB = 2**20
Row = dict[str, Any]  # a line of a table, by column
Flags = tuple[argparse.Namespace, Tacotron2Config]


def make_parser(description: str, **counts: tuple[int, str]) -> FlagParser:
    """Make a parser that shows a script's docstring; `counts` are flags, with default and help."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = FlagParser(description=description, formatter_class=formatter)
    folder = Path(__file__).resolve().parent / "results"
    parser.add_argument("--output_dir", type=Path, default=folder, help="folder for the CSVs")
    for name, (default, text) in counts.items():
        text += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=count_argument, default=default, help=text)
    return parser


def read_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Flags:
    """Add the flags of the models, their sizes and their device, and read all flags."""
    add = parser.add_argument
    add_device_flag(parser)
    add("--threads", type=count_argument, help="CPU threads of torch; torch's own if unset")
    add("--only", choices=(*MODELS, "both"), default="both", help="one of the models")
    add_config_flags(parser, "model", Tacotron2Config)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    args.device = torch.device(args.device)
    args.models = MODELS if args.only == "both" else (args.only,)
    config = make_config(parser, args, Tacotron2Config)
    is_peers = config.character_embed_dim == config.encoder_embed_dim
    if TORCHAUDIO in args.models and not (is_peers and config.decoder_prenet_depth == 2):
        needs = "--character_embed_dim equal to --encoder_embed_dim and --decoder_prenet_depth 2"
        parser.error(f"torchaudio.models.Tacotron2 needs {needs}")
    return args, config


def build_torchaudio(config: Tacotron2Config, **options: Any) -> torchaudio.models.Tacotron2:
    """Build torchaudio's model in our sizes; its dropout outside the decoder is always 0.5."""
    c = config
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
        attention_dropout=c.attention_dropout_p,
        attention_location_n_filter=c.attention_location_n_filters,
        attention_location_kernel_size=c.attention_location_kernel_size,
        prenet_dim=c.decoder_prenet_dim,
        postnet_n_convolution=c.decoder_postnet_num_convs,
        postnet_kernel_size=c.decoder_postnet_kernel_size,
        postnet_embedding_dim=c.decoder_postnet_n_filters,
        **options,
    )


def forward_macs(
    config: Tacotron2Config, batch_size: int, n_text: int, n_mel: int
) -> dict[str, int]:
    """Count the multiply-adds of products in one forward pass over n_mel frames, by part."""
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

    return {
        "encoder convolutions": text * c.encoder_kernel_size * products(encoder_widths),
        "encoder BiLSTM": text * 2 * 4 * (text_dim // 2) * (text_dim + text_dim // 2),
        "prenet": frames * products(prenet_widths),
        "attention LSTM": frames * 4 * rnn_dim * (c.decoder_prenet_dim + text_dim + rnn_dim),
        "attention keys": text * text_dim * dim,
        "attention query": frames * rnn_dim * dim,
        "attention location": pairs * n_filters * (n_taps + dim),
        "attention energies": pairs * dim,
        "attention context": pairs * text_dim,
        "decoder LSTM": frames * 4 * rnn_dim * (rnn_dim + text_dim + rnn_dim),
        "projections": frames * (rnn_dim + text_dim) * (c.num_mels + 1),
        "postnet": frames * c.decoder_postnet_kernel_size * products(postnet_widths),
    }


def forward_flops(config: Tacotron2Config, batch_size: int, n_text: int, n_mel: int) -> int:
    """Count the FLOPs of one forward pass; training takes TRAINING_PASSES times as many."""
    return 2 * sum(forward_macs(config, batch_size, n_text, n_mel).values())


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Measure the seconds until the device has finished the work of `function`."""
    wait = (torch.cpu if device.type == "cpu" else torch.accelerator).synchronize
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def matmul_rate(device: torch.device, dtype: str) -> float:
    """Measure and print the FLOP/s of a large matrix product, the best of 5."""
    size = MATMUL_SIZE.get(device.type, MATMUL_SIZE["cuda"])
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    rate = 2 * size**3 / min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(2 + 5))
    print(f"large matrix product, {dtype}: {rate / 1e9:,.0f} GFLOP/s")
    return rate


def print_device(device: torch.device) -> str:
    """Print and return a line about the machine and the version of PyTorch."""
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpus.read_text() if cpus.exists() else "")
    name = found[1] if found else platform.processor() or platform.machine()
    name = f"{name}, threads: {torch.get_num_threads()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    print(machine := f"{name}, torch {torch.__version__}, torchaudio {torchaudio.__version__}")
    return machine


def in_turn(runs: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, list]:
    """Call the runs in turn, so that a slow moment falls on all; return the results of each."""
    results: dict[Any, list] = {key: [] for key in runs}
    for repeat in range(repeats):
        for key in list(runs) if repeat % 2 == 0 else reversed(runs):
            start = time.perf_counter()
            results[key].append(runs[key]())
            seconds = time.perf_counter() - start
            print(f"{key}, repeat {repeat + 1}: {seconds:.3f} s", file=sys.stderr, flush=True)
    return results


def step_columns(ms: Sequence[float]) -> Row:
    """Make the columns of a step's time: the median and the range of the repeats."""
    return {"step_ms": statistics.median(ms), "step_ms_min": min(ms), "step_ms_max": max(ms)}


def ratio_line(label: str, slow: Sequence[float], fast: Sequence[float]) -> str:
    """Describe the ratio of the medians, and the range of the ratios of single repeats."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    ratio = statistics.median(slow) / statistics.median(fast)
    return f"{label}: {ratio:.2f} (repeats {min(ratios):.2f} to {max(ratios):.2f})"


def report(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Print a table, and write it as CSV with the machine that it was measured on."""
    table = pd.DataFrame(rows)
    print(f"\n{table.to_string(index=False, float_format='{:,.4g}'.format)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.assign(machine=machine).to_csv(path, index=False)
