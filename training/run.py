"""A training run: everything that stays the same from its first step to its last."""

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from dataset import AudioConfig, TTSDataset
from model import Tacotron2Config
from speech.contrast import Contrast
from speech.vocoder import Vocoder
from text.tokenizer import Tokenizer
from training.config import TrainConfig
from training.processes import Interrupt
from training.progress import Progress


@dataclass
class Run:
    """Everything that a training step, an epoch and a validation need."""

    config: TrainConfig
    audio_config: AudioConfig
    model_config: Tacotron2Config
    tokenizer: Tokenizer
    accelerator: Accelerator
    model: torch.nn.Module  # as accelerate has wrapped it
    optimizer: torch.optim.Optimizer
    train_loader: DataLoader
    val_loader: DataLoader
    interrupt: Interrupt
    progress: Progress
    vocoder: Vocoder | None = None  # for the sounds of validations; None for Griffin-Lim
    contrast: Contrast | None = None  # that the voice lacked in the last validation
    saved_at: float = field(default_factory=time.monotonic)  # when the last checkpoint was written

    @property
    def is_main(self) -> bool:
        """True on the process that writes and prints."""
        return self.accelerator.is_main_process

    @property
    def train_set(self) -> TTSDataset:
        """The clips to train on."""
        return self.train_loader.dataset

    @property
    def val_set(self) -> TTSDataset:
        """The clips to validate on."""
        return self.val_loader.dataset

    @property
    def val_clips(self) -> int:
        """A checksum of the validation clips' texts; never 0."""
        return zlib.crc32("\n".join(self.val_set.texts).encode()) + 1

    @property
    def bare_model(self) -> torch.nn.Module:
        """The model without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def folder(self) -> Path:
        """The folder of this run's checkpoints."""
        return self.config.folder

    @property
    def flags(self) -> dict[str, Any]:
        """The flags of the run, and the launcher's settings that change its numbers."""
        launcher = {
            "mixed_precision": self.accelerator.mixed_precision,
            "num_processes": self.accelerator.num_processes,
        }
        return {**asdict(self.config), **launcher}

    @property
    def pictures(self) -> Path:
        """The folder of this run's pictures and sounds."""
        return Path(self.config.save_audio_gen) / self.config.experiment_name

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluate in the block: no gradients, no dropout but the prenet's, the same every time.

        The block does not change the random numbers that training draws after it.
        """
        device = self.accelerator.device
        self.model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(self.config.seed)
                yield
        finally:
            self.model.train()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one may have fewer clips."""
        return -(-len(self.train_loader) // self.config.gradient_accumulation_steps)

    @property
    def layout(self) -> dict[str, int]:
        """Everything that decides which clips the steps of an epoch get, and in which order.

        A run resumes in the middle of an epoch only if none of this has changed.
        """
        return {
            "num_processes": self.accelerator.num_processes,
            "batch_size": self.config.batch_size,
            "gradient_accumulation_steps": self.config.gradient_accumulation_steps,
            "seed": self.config.seed,
            "short_first_epochs": self.config.short_first_epochs,
            "clips": self.train_loader.batch_sampler.checksum,
        }
