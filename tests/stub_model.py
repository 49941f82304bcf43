"""A model whose outputs are given, so that what is made of them can be told from each other."""

import torch

from model import InferenceOutput, Tacotron2Config, Tacotron2Output


class StubModel(torch.nn.Module):
    """Gives these outputs whatever it is asked, and notes what it was asked in `calls`."""

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
    """What free running gives for one item of mels (T_mel, num_mels)."""
    lengths, stop_logits = torch.tensor([len(mels)]), torch.zeros(1, len(mels))
    return InferenceOutput(
        mels[None], lengths, stop_logits, alignments[None], torch.tensor([not stopped])
    )
