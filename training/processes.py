"""Coordinate the processes of a run: stop on a signal, vote, and lock the run's folder."""

import ctypes
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, gather_object
from filelock import FileLock, Timeout

from command_line.files import DataError, check_writable
from command_line.main import warn

SHARDING = {  # variables that accelerate's launcher sets, and what they ask for
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # Windows lacks the last two
SECOND_SIGNAL_SECONDS = 2.0  # a second signal so soon is the launcher passing on the first
LOCK_FILE = ".lock"
TRIM_STEPS = 10


class Interrupt:
    """Remembers a signal: SIGTERM, Ctrl-C, SLURM's SIGUSR1 or a closed terminal's SIGHUP.

    A second signal ends the process at once. SIGHUP stays ignored where nohup ignores it.
    """

    def __init__(self) -> None:
        self.signalled_at: float | None = None
        for name in SIGNALS:
            number = getattr(signal, name, None)
            under_nohup = name == "SIGHUP" and number and signal.getsignal(number) == signal.SIG_IGN
            if number and not under_nohup:
                signal.signal(number, self.remember)

    def remember(self, number: int, _: object) -> None:
        """Remember the first signal, and end the process on a second one."""
        if self.signalled_at is None:
            self.signalled_at = time.monotonic()
        elif time.monotonic() - self.signalled_at > SECOND_SIGNAL_SECONDS:
            os._exit(128 + number)

    @property
    def pending(self) -> bool:
        """True once a signal has come to this process."""
        return self.signalled_at is not None


def leave_process_group(_: int) -> None:
    """Keep a signal to all of a run's processes from a loader process, whose batches it needs.

    torch's launcher sends signals to whole process groups.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def make_accelerator() -> Accelerator:
    """Set up accelerate with the devices and the precision that the launcher chose.

    Raises:
        DataError: when the launcher asks for something that this training cannot do.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise DataError(
                f"accelerate launch asks for {name} ({variable}), which splits a model among "
                "devices; here each device holds the whole model: launch with --multi_gpu instead"
            )
    # 1, whatever the environment says, because train_step accumulates the gradients itself.
    accelerator = Accelerator(gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise DataError(
            "--mixed_precision fp16 needs a GPU: on a CPU nothing scales the loss, and gradients "
            "are lost; use --mixed_precision bf16 or no"
        )
    return accelerator


def any_process(accelerator: Accelerator, vote: bool) -> bool:
    """Ask all processes; return True on each of them if one votes yes."""
    if accelerator.num_processes == 1:
        return vote  # does not wait for the device
    if vote:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def on_main(accelerator: Accelerator, call: Callable[[], Any]) -> Any:
    """Run `call` on the main process and return its result on every process.

    Raises:
        DataError: on every process, when `call` raises a DataError or an OSError.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer = [call()]
        except (DataError, OSError) as error:
            answer = [DataError(str(error))]
    broadcast_object_list(answer)
    if isinstance(answer[0], DataError):
        raise answer[0]
    return answer[0]


@contextmanager
def hold_folder(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder for the length of the block.

    When the process that holds the lock is killed, the operating system releases it.

    Raises:
        DataError: on every process, when the folder cannot be written to, another run holds it,
            or a process does not see it.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    made = on_main(accelerator, lambda: acquire(lock, folder))
    try:
        refuse_separate_disks(accelerator, folder)
        yield
    finally:
        if accelerator.is_main_process:
            with suppress(OSError):  # Windows keeps a file that is open
                (folder / LOCK_FILE).unlink()
            lock.release()
            with suppress(OSError):  # a folder that is not empty stays
                for path in made:
                    path.rmdir()


def acquire(lock: FileLock, folder: Path) -> list[Path]:
    """Make and lock a folder.

    Returns:
        The folders that were made, the innermost first.

    Raises:
        DataError: when the folder cannot be written to, or another run holds it.
    """
    check_writable("--working_directory", folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise DataError(
            f"{folder}: another run is training there; end it first, or give another "
            "--experiment_name"
        ) from None
    except (OSError, NotImplementedError) as error:
        warn(f"{folder} cannot be locked ({error}): a second run there would not be refused")
    return made


def refuse_separate_disks(accelerator: Accelerator, folder: Path) -> None:
    """Check that every process sees the folder of the main process.

    Raises:
        DataError: on every process, when one of them does not.
    """
    name = f".seen_{on_main(accelerator, lambda: uuid.uuid4().hex)}"
    on_main(accelerator, (folder / name).touch)
    seen = gather_object([(folder / name).exists()])
    on_main(accelerator, (folder / name).unlink)
    if not all(seen):
        raise DataError(
            f"--working_directory {folder}: {seen.count(False)} of {len(seen)} processes do not "
            "see the main process's folder; all machines must share its disk"
        )


def trim_memory(device: torch.device, step: int) -> None:
    """Return freed memory to Linux every few steps on a CPU: batches of many sizes fragment it."""
    if device.type == "cpu" and step % TRIM_STEPS == 0 and sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def end_processes(accelerator: Accelerator) -> None:
    """End the process group.

    The pause avoids a deadlock: gloo's thread needs Python's global lock to release its last
    tensors, and the group's destructor holds that lock while it waits for the thread.
    """
    accelerator.wait_for_everyone()
    time.sleep(0.2)
    accelerator.end_training()
