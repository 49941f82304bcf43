"""What the parts of training share: the run, its batches, its losses, how its processes agree.

`train_taco.py` makes a Run and takes its steps, `validation.py` judges it after each epoch.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from config import TrainConfig
from dataset import AudioConfig, Batch, BatchSampler, DataError, TTSCollator, TTSDataset, Utterance
from model import Tacotron2Config, tacotron2_loss
from tokenizer import Tokenizer

LOSSES = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainConfig
    audio_config: AudioConfig
    model_config: Tacotron2Config
    tokenizer: Tokenizer
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    train_set: TTSDataset
    val_set: TTSDataset
    folder: Path  # of the checkpoints
    wandb: Any  # wandb's run on the main process with --log_wandb, else None

    @property
    def sample(self) -> Utterance:
        """The validation clip that the pictures show: of middling length, longest come first."""
        return self.val_set[len(self.val_set) // 2]

    @property
    def steps_per_epoch(self) -> int:
        clips = self.config.batch_size * self.accelerator.num_processes
        n_batches = -(-len(self.train_set) // clips)
        return -(-n_batches // self.config.gradient_accumulation_steps)


def make_loader(run: Run, dataset: TTSDataset, **order: Any) -> DataLoader:
    """Batches of this process, in the order that BatchSampler draws from `order`."""
    sampler = BatchSampler(
        dataset.n_frames,
        run.config.batch_size,
        num_processes=run.accelerator.num_processes,
        process_index=run.accelerator.process_index,
        **order,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=TTSCollator(run.audio_config, run.tokenizer),
        num_workers=run.config.num_workers,
        pin_memory=run.accelerator.device.type == "cuda",
        # Its own generator: making a loader must not move the random numbers of training.
        generator=torch.Generator(),
    )


def read_groups(loader: DataLoader, size: int) -> Iterator[list[Batch] | DataError]:
    """Lists of `size` batches, the last one perhaps shorter: one optimizer step each.

    A clip that cannot be read, or a loader process that died, comes as a DataError at the end.
    """
    group: list[Batch] = []
    batches = iter(loader)
    # torch has a loader process's death raised wherever the main thread is, in the middle of an
    # optimizer step or a checkpoint. Without its handler, a batch that does not come raises it.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        try:
            batch = next(batches, None)
        except (DataError, RuntimeError, OSError) as error:
            # A loader process sends its traceback along; the last line is the message.
            reason = str(error).strip().split("\n")[-1].removeprefix("dataset.DataError: ")
            if reason.endswith("exited unexpectedly"):
                reason += "; it was killed, or memory ran out"
            yield DataError(reason)
            return
        if batch is not None:
            group.append(batch)
        if group and (batch is None or len(group) == size):
            yield group
            group = []
        if batch is None:
            return


def agree(run: Run, *votes: bool) -> list[bool]:
    """For each vote, whether any process says yes; all processes get the same answer."""
    if run.accelerator.num_processes == 1:
        return list(votes)
    counts = torch.tensor([float(vote) for vote in votes], device=run.accelerator.device)
    return (run.accelerator.reduce(counts, "sum") > 0).tolist()


def raise_together(run: Run, error: Any) -> None:
    """Every process calls this. When `error` is a DataError on any of them, all raise one."""
    broken = isinstance(error, DataError)
    if agree(run, broken)[0]:
        raise error if broken else DataError("another process cannot go on; see its message")


def forward_losses(run: Run, batch: Batch, n_frames: Tensor, guided_weight: float) -> dict:
    """Teacher-forced losses of a batch, and its output under "output"."""
    device = run.accelerator.device
    mels = batch.mels.to(device, non_blocking=True)
    output = run.model(
        batch.tokens.to(device, non_blocking=True), batch.token_lengths, mels, batch.mel_lengths
    )
    losses = tacotron2_loss(
        output,
        mels,
        batch.token_lengths,
        batch.mel_lengths,
        batch.stop_targets.to(device, non_blocking=True),
        guided_weight,
        run.config.guided_attention_sigma,
        n_frames,
    )
    return {"output": output, **losses}
