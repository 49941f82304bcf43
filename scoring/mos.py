"""Predict the mean opinion score (MOS) that listeners would give a voice: evaluate.py --mos.

    predict_mos = load_mos_predictor("cpu")
    predict_mos(wav)                          # (n_samples,) at SAMPLING_RATE -> 1 (bad) to 5

DistillMOS (Stahl and Gamper 2025) comes with its weights in the package distillmos, both under the
MIT licence. It hears how natural and clean a voice is, not what it says. Needs
requirements/mos.txt.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor

from command_line.files import import_extra
from scoring.recognition import SOUNDS

PredictMos = Callable[[Tensor], float]


def load_mos_predictor(device: str) -> PredictMos:
    """Load DistillMOS, as a function of a sound (n_samples,) at SAMPLING_RATE."""
    distillmos = import_extra("distillmos", "--mos", "requirements/mos.txt")
    with redirect_stdout(io.StringIO()):  # it prints the path of its weights
        model = distillmos.ConvTransformerSQAModel().to(device).eval()
    return torch.no_grad()(lambda wav: model(wav[None].float().to(device)).item())


def mos_table(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Format the report's predicted MOS as lines of evaluate.py's table: label, value."""
    lines = []
    for name, label in SOUNDS.items():
        low, high = report["intervals"][f"{name}_mos"]
        value = f"{report[f'{name}_mos']:.2f} ({low:.2f} to {high:.2f})"
        lines.append((f"predicted MOS (95 % interval), {label}", value))
    return lines
