"""A model whose outputs are given, for tests of what others do with them."""

import torch

from model import InferenceOutput, Tacotron2Config, Tacotron2Output


class StubModel(torch.nn.Module):
    """Returns these outputs for any arguments, and notes the arguments in `calls`."""

    def __init__(self, forced: Tacotron2Output | None, free: InferenceOutput) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # whose device is the model's
        self.forced, self.free, self.calls = forced, free, []
        self.config = Tacotron2Config()

    def forward(self, *arguments):
        self.calls.append(("forward", arguments))
        return self.forced

    def infer(self, *arguments):
        self.calls.append(("infer", arguments))
        return self.free


def free_running(mels, alignments, stopped=True) -> InferenceOutput:
    """Make the result of free running for one clip of mels (T_mel, num_mels)."""
    lengths, stop_logits = torch.tensor([len(mels)]), torch.zeros(1, len(mels))
    return InferenceOutput(
        mels[None], lengths, stop_logits, alignments[None], torch.tensor([not stopped])
    )
