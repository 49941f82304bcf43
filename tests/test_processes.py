"""Several processes and accumulated batches all take the same step."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

import one_step
from conftest import REPO
from runs import ON_CPU, launcher_words, run_flags

N_CLIPS = 5  # uneven for two processes, and for two accumulated batches
NO_DROPOUT = [
    f"--{name}=0"
    for name in ("encoder_dropout_p", "decoder_dropout_p", "decoder_prenet_dropout_p",
                 "decoder_postnet_dropout_p", "attention_dropout_p")
]  # fmt: skip


@pytest.fixture(scope="module")
def one_batch(tiny_corpus, tmp_path_factory):
    """A manifest that is one batch, and how to take a step on it."""
    folder = tmp_path_factory.mktemp("one_batch")
    frame = pd.read_csv(tiny_corpus.train_manifest)[:N_CLIPS]
    frame.to_csv(folder / "train.csv", index=False)
    corpus = tiny_corpus._replace(train_manifest=folder / "train.csv")
    environment = {**os.environ, **ON_CPU, "GLOO_SOCKET_IFNAME": "lo"}

    def take_step(name, batch_size, accumulated=1, processes=1):
        output = folder / f"{name}.pt"
        flags = [str(output), *run_flags(corpus, folder / name), *NO_DROPOUT,
                 "--batch_size", str(batch_size),
                 "--gradient_accumulation_steps", str(accumulated)]  # fmt: skip
        if processes == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ACCELERATE_USE_CPU", "true")
                one_step.main(*flags)
        else:
            script = str(REPO / "tests/one_step.py")
            command = [sys.executable, *launcher_words(processes), script, *flags]
            done = subprocess.run(
                command, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(output, weights_only=True)

    return take_step


@pytest.fixture(scope="module")
def alone(one_batch):
    """One process, one batch of all clips."""
    return one_batch("alone", N_CLIPS)


def assert_same_step(step, reference):
    assert step["step"] == pytest.approx(reference["step"], rel=1e-4)  # losses, norm, frames
    assert step["validation"] == pytest.approx(reference["validation"], rel=1e-5, abs=1e-4)
    assert step["gradients"].keys() == reference["gradients"].keys()
    for name, gradient in reference["gradients"].items():
        torch.testing.assert_close(step["gradients"][name], gradient, atol=1e-6, rtol=0, msg=name)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(one_batch, alone):
    assert_same_step(one_batch("two_processes", 3, processes=2), alone)


def test_accumulated_batches_are_one_large_batch(one_batch, alone):
    assert_same_step(one_batch("accumulated", 3, accumulated=2), alone)
