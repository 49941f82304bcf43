"""What the parts of training share: the run, its batches and losses, how it agrees and stops.

`train_taco.py` makes a Run and takes its steps, `validation.py` judges it after each epoch.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from config import TrainConfig
from dataset import AudioConfig, Batch, BatchSampler, DataError, TTSCollator, TTSDataset, Utterance
from model import Tacotron2, Tacotron2Config, tacotron2_loss
from tokenizer import Tokenizer

LOSSES = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")
SECOND_SIGNAL_SECONDS = 2.0  # sooner, it is the launcher passing on the first


class Interrupt:
    """Remembers SIGTERM, SIGUSR1 (SLURM's warning), SIGHUP (the terminal was closed) and Ctrl-C.

    A second signal stops at once. SIGHUP stays ignored where nohup has it ignored.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None  # when the first signal came
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self.take_note)

    def take_note(self, number: int, _: object) -> None:
        """The signals' handler."""
        if number == signal.SIGHUP:
            self.leave_closed_terminals()
        if self.seconds is None:
            self.seconds = time.monotonic()
        elif time.monotonic() - self.seconds > SECOND_SIGNAL_SECONDS:
            os._exit(128 + number)

    def leave_closed_terminals(self) -> None:
        """Sends what is printed nowhere: on a closed terminal it would be an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self.terminals:
            if not os.isatty(descriptor):  # as a closed one answers
                os.dup2(nowhere, descriptor)
        os.close(nowhere)

    @property
    def pending(self) -> bool:
        """Whether a signal has come."""
        return self.seconds is not None


class Interrupted(Exception):
    """A signal has asked the run to stop; names the checkpoint, once that is written."""


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
    wandb: Any  # wandb's run on the main process with --log_wandb, else None
    interrupt: Interrupt | None = None  # None: nobody listens for signals

    @property
    def folder(self) -> Path:
        """Of the checkpoints."""
        return self.config.folder

    @property
    def sample(self) -> Utterance:
        """The validation clip that the pictures show: of middling length, longest come first."""
        return self.val_set[len(self.val_set) // 2]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, the last one perhaps of fewer clips."""
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
        except (DataError, RuntimeError, OSError, EOFError) as error:
            # A loader process sends its traceback along; the last line is the message.
            reason = str(error).strip().split("\n")[-1].removeprefix("dataset.DataError: ")
            if isinstance(error, ConnectionError | EOFError):  # it died handing over a batch
                reason = "a loader process exited unexpectedly"
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
    """Every process calls this, with its DataError or with anything else, which is no error.

    Raises:
        DataError: on every process, when one of them has one.
    """
    broken = isinstance(error, DataError)
    if agree(run, broken)[0]:
        raise error if broken else DataError("another process cannot go on; see its message")


def is_interrupted(run: Run) -> bool:
    """Whether a signal has come to this process."""
    return run.interrupt is not None and run.interrupt.pending


def stop_together(run: Run) -> None:
    """Every process calls this.

    Raises:
        Interrupted: on every process, when a signal has come to one of them.
    """
    if agree(run, is_interrupted(run))[0]:
        raise Interrupted


@contextmanager
def stop_within(run: Run, model: Tacotron2) -> Iterator[None]:
    """Leaves the block at the next decoder step when a signal comes to this process.

    For what only some processes do, or all without waiting for each other; `stop_together`
    follows. On a GPU only the first steps are looked at: the others are replayed, and take a
    second or two in all.
    """

    def look(*_: object) -> None:
        if is_interrupted(run):
            raise Interrupted

    hook = model.decoder.prenet.register_forward_pre_hook(look)
    try:
        yield
    except Interrupted:
        pass
    finally:
        hook.remove()


def count_frames(run: Run, batches: list[Batch]) -> Tensor:
    """Valid frames in these batches on all processes together; a tensor, so no wait."""
    count = float(sum(int(b.mel_lengths.sum()) for b in batches))
    # Filled on the device: a copy of one number waits for all that the device has to do.
    return run.accelerator.reduce(torch.full((), count, device=run.accelerator.device), "sum")


def forward_losses(
    run: Run, batch: Batch, n_frames: Tensor, guided_weight: float
) -> dict[str, Any]:
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


def remember(run: Run) -> Callable[[], None]:
    """What a step changes before its loss is known; calling the result puts it back.

    A forward pass on bad data also spoils the running means of the batch norms.
    """
    device = run.accelerator.device
    buffers = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    random_state = torch.get_rng_state()
    cuda_random_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def put_back() -> None:
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.set_rng_state(random_state)
        if cuda_random_state is not None:
            torch.cuda.set_rng_state(cuda_random_state, device)

    return put_back


def leave(accelerator: Accelerator) -> None:
    """Ends the process group, at the end of a run or when all have stopped for a signal.

    The pause is for gloo's thread, which needs Python's lock to let go of its last tensors, while
    the group's destructor holds that lock and waits for the thread.
    """
    accelerator.wait_for_everyone()
    time.sleep(0.2)
    accelerator.end_training()
