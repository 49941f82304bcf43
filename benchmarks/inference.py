"""Time free running of this model and torchaudio's in turn, per decoder step and second of audio.

    python benchmarks/inference.py
    python benchmarks/inference.py --batch_size 1 4 16 64 --dtype bfloat16 --n_steps 400

The weights are random and the stop token is ignored: every run makes --n_steps frames. The time is
that of the whole call, encoder and postnet included, divided by --n_steps. "x_real_time" is seconds
of audio over seconds of computing.

Writes inference.csv to --output_dir.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.common import OURS, TORCHAUDIO
from command_line.files import count_argument
from command_line.main import script
from dataset import AudioConfig
from fast.decoder import speed_up
from model import Tacotron2, Tacotron2Config
from speech.voice import DTYPES, inference_precision

Speaker = Callable[[Tensor], Tensor]  # tokens (B, T_text) -> mels (B, n_steps, num_mels)


def make_speaker(name: str, config: Tacotron2Config, n_steps: int, device: torch.device) -> Speaker:
    """Make a function that speaks n_steps frames and ignores the stop token."""
    torch.manual_seed(0)
    if name == OURS:
        ours = speed_up(Tacotron2(config)).to(device).eval()
        return lambda tokens: ours.infer(tokens, None, n_steps, stop_threshold=1.0).mels
    options = {"decoder_max_step": n_steps, "decoder_early_stopping": False, "gate_threshold": 1.0}
    peer = common.build_torchaudio(config, **options).to(device).eval()
    return lambda tokens: peer.infer(tokens)[0].mT


@torch.no_grad()
def speak(speaker: Speaker, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Speak once; this is timed."""
    with inference_precision(tokens.device, dtype), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Reached max decoder steps")
        return speaker(tokens)


def time_runs(
    speakers: dict[str, Speaker], tokens: Tensor, n_steps: int, dtypes: Sequence[str], repeats: int
) -> dict[tuple[str, str], list[float]]:
    """Time each model in each dtype in turn; return the seconds of each repeat."""
    runs = {}
    for name, dtype in [(name, dtype) for dtype in dtypes for name in speakers]:
        run = partial(speak, speakers[name], tokens, DTYPES[dtype])
        mels = run()  # also warms up
        if mels.shape[:2] != (len(tokens), n_steps) or not mels.isfinite().all():
            raise RuntimeError(f"{name}: made {tuple(mels.shape)} frames, or not finite ones")
        runs[name, dtype] = partial(common.timed, run, tokens.device)
    return common.in_turn(runs, repeats)


def measure(args: argparse.Namespace, config: Tacotron2Config) -> None:
    """Measure every batch size; print and write."""
    n_text, n_steps, device = args.n_text, args.n_steps, args.device
    machine, rows, lines = common.print_device(device), [], []
    speakers = {name: make_speaker(name, config, n_steps, device) for name in args.models}
    for batch_size in dict.fromkeys(args.batch_size):
        tokens = torch.randint(1, config.vocab_size, (batch_size, n_text), device=device)
        seconds = time_runs(speakers, tokens, n_steps, args.dtype, args.repeats)
        for (name, dtype), times in seconds.items():
            row = {"model": name, "dtype": dtype, "batch_size": batch_size}
            row |= {"n_text": n_text, "n_steps": n_steps}
            row |= common.step_columns([1e3 * time / n_steps for time in times])
            row["x_real_time"] = 1e3 * batch_size * AudioConfig().hop_seconds / row["step_ms"]
            rows.append(row)
            for peer_dtype in dict.fromkeys([dtype, "float32"]) if name == OURS else []:
                if peer := seconds.get((TORCHAUDIO, peer_dtype)):
                    label = f"batch {batch_size}: torchaudio {peer_dtype} / ours {dtype}"
                    lines.append(common.ratio_line(label, peer, times))
    common.report(args.output_dir / "inference.csv", rows, machine)
    print(*lines, sep="\n")


@script
def main(argv: Sequence[str] | None = None) -> None:
    """Measure with these flags."""
    parser = common.make_parser(
        __doc__, n_text=(80, "characters"), n_steps=(200, "frames"), repeats=(5, "timed runs")
    )
    add = parser.add_argument
    add("--batch_size", type=count_argument, nargs="+", default=[1, 16], help="texts (1 and 16)")
    add("--dtype", choices=DTYPES, nargs="+", default=[*DTYPES], help="of products (both)")
    measure(*common.read_flags(parser, argv))


if __name__ == "__main__":
    main()
