"""Not a test: how the tests train. In this process, or as a user does, through the launcher."""

import os
import random
import subprocess
import sys

import numpy as np
import torch

import train_taco
import training.checkpoints as checkpoints
import training.validation as validation
from conftest import REPO
from training.config import make_parser
from training.processes import make_accelerator
from training.run import Run
from training.state import TrainerState

TINY_MODEL = [
    "--character_embed_dim=16",
    "--encoder_embed_dim=16",
    "--decoder_rnn_embed_dim=24",
    "--decoder_prenet_dim=8",
    "--decoder_postnet_n_filters=8",
    "--attention_dim=8",
    "--attention_location_n_filters=4",
]
ON_CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def run_flags(corpus, folder, *extra) -> list[str]:
    """The flags of a tiny run: 9 clips in batches of 2, two epochs of five steps."""
    flags = {
        "working_directory": folder / "work",
        "save_audio_gen": folder / "samples",
        "path_to_train_manifest": corpus.train_manifest,
        "path_to_val_manifest": corpus.test_manifest,
        "experiment_name": "tiny",
        "batch_size": 2,
        "num_workers": 0,
        "console_out_iters": 2,
        "checkpoint_epochs": 1,
        "training_epochs": 2,
        "warmup_steps": 0,
        "short_first_epochs": 0,
        "guided_attention_steps": 3,
    }
    return [*(f"--{name}={x}" for name, x in flags.items()), *TINY_MODEL, *map(str, extra)]


def set_up(flags: list[str]) -> tuple[Run, TrainerState]:
    """A run in this process before its first step."""
    return train_taco.set_up(make_accelerator(), make_parser(""), flags)


def draw_nothing(set_attribute=setattr) -> None:
    """From now on, runs in this process write no pictures, sounds or films.

    A test that trains in its own process gives monkeypatch.setattr, which is undone.
    """
    set_attribute(validation, "draw_sample", lambda *_: {})
    for name in ("loss_figure", "save_figure"):
        set_attribute(validation, name, lambda *_: None)
    set_attribute(train_taco, "film_first_epoch", lambda *_: None)
    for module in (train_taco, checkpoints):
        set_attribute(module, "finish_pictures", lambda *_: None)


class StopAt:
    """An Interrupt that is pending once a run's state stands at this step."""

    def __init__(self, state: TrainerState, step: int) -> None:
        self.state, self.step = state, step

    @property
    def pending(self) -> bool:
        return self.state.step >= self.step


def random_states() -> list:
    numpy_state = np.random.get_state()[1]  # noqa: NPY002
    return [torch.get_rng_state().tolist(), numpy_state.tolist(), random.getstate()]


def launcher_words(processes: int, mixed_precision: str = "no") -> list[str]:
    """accelerate's launcher, between python and the script."""
    # It starts several processes only with --multi_gpu, also where they are on the CPU.
    kind = "--cpu" if processes == 1 else "--multi_gpu"
    return [
        "-m", "accelerate.commands.launch", "--quiet", kind, "--num_machines", "1",
        "--num_processes", str(processes), "--mixed_precision", mixed_precision,
        "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip


def launch(flags, mixed_precision="no"):
    """train_taco.py by accelerate's launcher, in a Python of its own."""
    words = launcher_words(1, mixed_precision)
    command = [sys.executable, *words, str(REPO / "train_taco.py"), *flags]
    environment = os.environ | ON_CPU
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done
