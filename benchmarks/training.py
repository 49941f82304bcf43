"""What train_step.py and throughput.py share: a model in training, its batch, forward and backward.

Both models get the same batch, the same loss and the same autocast.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import OURS, build_torchaudio
from dataset import Batch
from fast_decoder import speed_up
from model import Tacotron2, Tacotron2Config, Tacotron2Output, tacotron2_loss


class TrainBatch(NamedTuple):
    """One batch on the device, its lengths on the CPU too: each model has them where it likes."""

    tokens: Tensor  # (B, T_text)
    token_lengths: Tensor  # (B,), on the CPU
    token_lengths_on_device: Tensor
    mels: Tensor  # (B, T_mel, num_mels)
    mel_lengths: Tensor  # (B,), on the CPU
    mel_lengths_on_device: Tensor
    stop_targets: Tensor  # (B, T_mel)


class Contender(NamedTuple):
    """A model in training."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer


def make_contender(
    name: str, config: Tacotron2Config, device: torch.device, lr: float = 1e-4, **adam: Any
) -> Contender:
    torch.manual_seed(0)
    model = speed_up(Tacotron2(config)) if name == OURS else build_torchaudio(config)
    model = model.to(device).train()
    return Contender(name, model, torch.optim.Adam(model.parameters(), lr=lr, **adam))


def to_device(batch: Batch, device: torch.device) -> TrainBatch:
    """Waits for nothing where the batch lies in pinned memory."""
    tokens, token_lengths, mels, mel_lengths, stop_targets = (
        x.to(device, non_blocking=True) for x in batch[:5]
    )
    return TrainBatch(
        tokens, batch.token_lengths, token_lengths, mels, batch.mel_lengths, mel_lengths,
        stop_targets,
    )  # fmt: skip


def forward(contender: Contender, batch: TrainBatch) -> Tacotron2Output:
    """Teacher forcing; torchaudio's outputs in our order."""
    if contender.name == OURS:
        return contender.model(batch.tokens, batch.token_lengths, batch.mels, batch.mel_lengths)
    before, after, stop_logits, alignments = contender.model(
        batch.tokens, batch.token_lengths_on_device, batch.mels.mT, batch.mel_lengths_on_device
    )
    return Tacotron2Output(before.mT, after.mT, stop_logits, alignments)


def forward_and_backward(contender: Contender, batch: TrainBatch, dtype: torch.dtype) -> Tensor:
    """Adds to the gradients; returns the loss."""
    in_bfloat16 = dtype == torch.bfloat16
    with torch.autocast(batch.mels.device.type, torch.bfloat16, enabled=in_bfloat16):
        output = forward(contender, batch)
    loss = tacotron2_loss(
        output, batch.mels, batch.token_lengths_on_device, batch.mel_lengths_on_device,
        batch.stop_targets,
    )["loss"]  # fmt: skip
    loss.backward()
    return loss.detach()
