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

from checkpoints import RANDOM_STATES_FILE, TrainerState
from config import MAX_INT, MAX_WORKERS, TrainConfig
from dataset import AudioConfig, Batch, BatchSampler, DataError, TTSCollator, TTSDataset, Utterance
from model import Tacotron2, Tacotron2Config, tacotron2_loss
from tokenizer import Tokenizer

LOSSES = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")
SHARDING = {  # what accelerate's launcher sets in the environment, and for what
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
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
    train_set: TTSDataset
    val_set: TTSDataset
    train_loader: DataLoader  # its BatchSampler goes from epoch to epoch
    val_loader: DataLoader
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


def refuse_sharding() -> None:
    """Every process trains the whole model; called before an Accelerator sets anything else up.

    Raises:
        DataError: when the launcher asks for the model to be split.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise DataError(
                f"accelerate launch asks for {name} ({variable}), which splits a model among "
                "devices; here each holds all of it: launch with --multi_gpu instead"
            )


def synchronize_batch_norm(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """The model with the means and variances of batch norm taken over all GPUs together.

    Parameters, buffers and their names stay as they are.

    Raises:
        DataError: for several processes on a CPU, where torch cannot do it.
    """
    if accelerator.num_processes == 1:
        print("--sync_batch_norm: one process, whose batch norm sees the whole batch as it is")
        return model
    if accelerator.device.type != "cuda":
        raise DataError(
            f"--sync_batch_norm is for GPUs, found {accelerator.num_processes} processes on "
            f"{accelerator.device.type}"
        )
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def describe_batch(run: Run) -> str:
    """Devices, clips on each and clips of one optimizer step, as one line."""
    device, n = run.accelerator.device, run.accelerator.num_processes
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    size, accumulated = run.config.batch_size, run.config.gradient_accumulation_steps
    return (
        f"{n} {'process' if n == 1 else 'processes'} ({name}) x {size} clips a batch x "
        f"{accumulated} accumulated = {n * size * accumulated} clips a step"
    )


def make_loader(
    run: Run, dataset: TTSDataset, max_workers: int = MAX_WORKERS, **order: Any
) -> DataLoader:
    """Batches of this process, in the order that BatchSampler draws from `order`.

    Its processes start with the first iteration and live as long as the loader does.
    """
    sampler = BatchSampler(
        dataset.n_frames,
        run.config.batch_size,
        num_processes=run.accelerator.num_processes,
        process_index=run.accelerator.process_index,
        **order,
    )
    num_workers = min(run.config.num_workers, max_workers)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=TTSCollator(run.audio_config, run.tokenizer),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=run.accelerator.device.type == "cuda",
        # Its own generator: making a loader must not move the random numbers of training.
        generator=torch.Generator(),
    )


def enter_epoch(run: Run, state: TrainerState) -> TrainerState:
    """Sets the training loader to where the run stands, and notes the order that it reads in.

    An epoch that is begun with other batches over all processes than it goes on with keeps its
    order; the clips that are left of it are cut into batches of the new size.

    Raises:
        DataError: when the clips that are left cannot be dealt to the processes.
    """
    sampler = run.train_loader.batch_sampler
    size, begun = sampler.total_batch_size, state.epoch_clips > 0
    state = state._replace(
        order_batch_size=state.order_batch_size if begun else size,
        order_checksum=sampler.checksum,
        order_recut=begun and (state.order_recut or size != state.order_batch_size),
    )
    sampler.set_epoch(state.epoch, state.epoch_clips, state.order_batch_size, state.order_recut)
    return state


def check_place(run: Run, path: Path, state: TrainerState, saved_flags: dict) -> TrainerState:
    """The state of the checkpoint at `path`, its place in the epoch held to the manifest at hand.

    Older checkpoints count the steps of an epoch and not its clips; these follow from the flags
    and the number of processes that they were written with.

    Raises:
        DataError: when it stands within an epoch, and not of this manifest.
    """
    sampler, advice = run.train_loader.batch_sampler, "resume from the end of an epoch"
    if state.epoch_step == 0:
        return state
    if state.epoch_clips:
        if state.order_checksum != sampler.checksum:
            raise DataError(
                f"{path}: stands within an epoch that began with other clips than the "
                f"{len(run.train_set)} of {run.config.path_to_train_manifest} (their number, order "
                f"or durations differ); {advice}, or with the manifest of then"
            )
        return state
    n_processes = len(list(path.glob(RANDOM_STATES_FILE.format("*"))))
    batch_size, step_batches = (
        saved_flags.get(name) for name in ("batch_size", "gradient_accumulation_steps")
    )
    if not all(type(n) is int and 0 < n <= MAX_INT for n in (batch_size, step_batches)):
        raise DataError(f"{path}: does not say how many clips of its epoch were seen; {advice}")
    sizes = [len(batch) for batch in sampler.draw(state.epoch, batch_size * n_processes)]
    if (state.epoch_step - 1) * step_batches >= len(sizes):
        raise DataError(
            f"{path}: stands at step {state.epoch_step} of an epoch, and those of "
            f"{run.config.path_to_train_manifest} have {-(-len(sizes) // step_batches)}; {advice}"
        )
    return state._replace(
        epoch_clips=sum(sizes[: state.epoch_step * step_batches]),
        order_batch_size=batch_size * n_processes,
    )


def read_groups(loader: DataLoader, size: int) -> Iterator[list[Batch] | DataError]:
    """Lists of `size` batches, the last one perhaps shorter: one optimizer step each.

    A clip that cannot be read, or a loader process that died, comes as a DataError at the end.
    """
    group: list[Batch] = []
    batches: Iterator[Batch] | None = None
    while True:
        try:
            if batches is None:  # raises too, where a process died between two epochs
                batches = iter(loader)
                # torch has a loader process's death raised wherever the main thread is, in the
                # middle of an optimizer step or a checkpoint. Without its handler, a batch that
                # does not come raises it.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            batch = next(batches, None)
        except (DataError, RuntimeError, OSError, EOFError) as error:
            # A loader process sends its traceback along; the last line is the message.
            reason = str(error).strip().split("\n")[-1]
            reason = reason.removeprefix(f"{DataError.__module__}.DataError: ")
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
