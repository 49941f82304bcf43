"""What several processes do together: end on a signal, raise together, share a run's folder.

Signals, votes and errors that concern all processes of a run, batches from loader processes that
may die, the lock on a run's folder, and files that only the main process has.
"""

import fcntl
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from command_line.files import DataError, check_writable

SHARDING = {  # what accelerate's launcher sets in the environment, and for what
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
SECOND_SIGNAL_SECONDS = 2.0  # sooner, it is the launcher passing on the first
LOCK_FILE = ".lock"


class Interrupt:
    """Remembers SIGTERM, SIGUSR1 (SLURM's warning), SIGHUP (the terminal was closed) and Ctrl-C.

    A second signal stops at once. SIGHUP stays ignored where nohup has it ignored.
    """

    def __init__(self) -> None:
        self.signalled_at: float | None = None  # when the first signal came
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self.take_note)

    def take_note(self, number: int, _: object) -> None:
        """The signals' handler."""
        if self.signalled_at is None:
            self.signalled_at = time.monotonic()
        elif time.monotonic() - self.signalled_at > SECOND_SIGNAL_SECONDS:
            os._exit(128 + number)

    @property
    def pending(self) -> bool:
        """Whether a signal has come."""
        return self.signalled_at is not None


class LastingStream:
    """Standard output or error, of which a line is lost, not the run, when it cannot be written.

    That is so on a full disk, on a closed terminal and on a pipe that nobody reads any more.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As the stream's, without its OSError."""
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream's, without its OSError."""
        with suppress(OSError):
            self.stream.flush()


@contextmanager
def lasting_output() -> Iterator[None]:
    """What is printed within cannot end a run."""
    streams = sys.stdout, sys.stderr
    with redirect_stdout(LastingStream(streams[0])), redirect_stderr(LastingStream(streams[1])):
        try:
            yield
        finally:
            for stream in streams:
                try:
                    stream.flush()
                except OSError:  # else Python tries it again at its end, and exits with 120
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, stream.fileno())
                    os.close(nowhere)


class Interrupted(Exception):
    """A signal has asked the run to stop; names the checkpoint, once that is written."""


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


def read_groups(loader: Iterable, size: int) -> Iterator[list | DataError]:
    """Lists of `size` batches, the last one perhaps shorter: one optimizer step each.

    A clip that cannot be read, or a loader process that died, comes as a DataError at the end.
    """
    group: list = []
    batches: Iterator | None = None
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


def any_process(accelerator: Accelerator, *votes: bool) -> list[bool]:
    """For each vote, whether any process says yes. A collective call: the same answer for all."""
    if accelerator.num_processes == 1:
        return list(votes)
    counts = torch.tensor([float(vote) for vote in votes], device=accelerator.device)
    return (accelerator.reduce(counts, "sum") > 0).tolist()


def raise_together(accelerator: Accelerator, error: Any) -> None:
    """A collective call: pass the DataError, or anything else where there is none.

    Raises:
        DataError: on every process, when one of them has one.
    """
    broken = isinstance(error, DataError)
    if any_process(accelerator, broken)[0]:
        raise error if broken else DataError("another process cannot go on; see its message")


def is_interrupted(interrupt: Interrupt | None) -> bool:
    """Whether a signal has come to this process; None is for runs that nobody can stop."""
    return interrupt is not None and interrupt.pending


def stop_together(accelerator: Accelerator, interrupt: Interrupt | None) -> None:
    """A collective call.

    Raises:
        Interrupted: on every process, when a signal has come to one of them.
    """
    if any_process(accelerator, is_interrupted(interrupt))[0]:
        raise Interrupted


@contextmanager
def stop_within(interrupt: Interrupt | None, model: torch.nn.Module) -> Iterator[None]:
    """Leaves the block at the next decoder step when a signal comes to this process.

    For what only some processes do, or all without waiting for each other; `stop_together`
    follows. On a GPU only the first steps are looked at: the others are replayed, and take a
    second or two in all.
    """

    def look(*_: object) -> None:
        if is_interrupted(interrupt):
            raise Interrupted

    hook = model.decoder.prenet.register_forward_pre_hook(look)
    try:
        yield
    except Interrupted:
        pass
    finally:
        hook.remove()


def end_group(accelerator: Accelerator) -> None:
    """Ends the process group, at the end of a run or when all have stopped for a signal.

    The pause avoids a deadlock: gloo's thread needs Python's global lock to release its last
    tensors, and the group's destructor holds that lock while it waits for the thread.
    """
    accelerator.wait_for_everyone()
    time.sleep(0.2)
    accelerator.end_training()


def on_main(accelerator: Accelerator, call: Callable[[], Any]) -> Any:
    """What `call` returns on the main process, sent to every process; each calls this.

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
    """Keeps other runs out of a run's folder as long as the block lasts; every process calls this.

    When the main process is killed, the kernel gives the lock up. A folder that has been made for
    the lock and is still empty at the end is removed again.

    Raises:
        DataError: on every process, when the folder cannot be written to, or another run holds it.
    """
    descriptor, made = on_main(accelerator, lambda: lock_folder(folder))
    try:
        yield
    finally:
        if accelerator.is_main_process:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            os.close(descriptor)
            with suppress(OSError):  # not empty
                for path in made:
                    path.rmdir()


def lock_folder(folder: Path) -> tuple[int, list[Path]]:
    """Makes and locks a folder.

    Returns:
        The descriptor that holds the lock until it is closed, and which folders were made,
        innermost first.

    Raises:
        DataError: when another process holds the lock.
        OSError: when the folder cannot be written to.
    """
    check_writable("--working_directory", folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # A POSIX lock, which is not passed on to loader processes: after a kill they may live
            # for some seconds more.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise DataError(
                f"{folder}: {holder} is training there; end it first, or give another "
                "--experiment_name"
            ) from None
        except OSError as error:
            print(
                f"train_taco.py: {folder} cannot be locked ({error.strerror}): a second run there "
                "would not be refused",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        with suppress(FileNotFoundError):
            # Else the run that held it has removed it meanwhile, and the next run would make a new
            # one beside this.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    with suppress(OSError):  # a full disk; it is only for the sentence above
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor, made


@contextmanager
def seen_everywhere(
    accelerator: Accelerator, path: Path | None, stamp: str
) -> Iterator[Path | None]:
    """Where this process finds the main process's checkpoint; every process calls this.

    That is `path` itself on a disk that all machines share. A process that finds none there, or
    another one, is sent the files, and has them in a temporary folder as long as the block lasts.

    Args:
        path: the checkpoint as the main process sees it, on every process; None stays None.
        stamp: name of a file in it whose content no other checkpoint has.

    Raises:
        DataError: on every process, when a file cannot be read or a copy cannot be written.
    """
    if path is None or accelerator.num_processes == 1:
        yield path
        return
    state = on_main(accelerator, lambda: (path / stamp).read_bytes())
    seen = False
    with suppress(OSError):
        seen = (path / stamp).read_bytes() == state
    if all(gather_object([seen])):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint_") as name:
        receive_files(accelerator, path, None if seen else Path(name))
        yield path if seen else Path(name)


def receive_files(accelerator: Accelerator, path: Path, folder: Path | None) -> None:
    """Sends the main process's files in `path`, one after the other, to every process.

    Args:
        folder: where this process writes them; None when it needs none.

    Raises:
        DataError: on every process, when one cannot be read or written.
    """
    names = on_main(accelerator, lambda: sorted(f.name for f in path.iterdir() if f.is_file()))
    failure = ""
    for name in names:
        content = on_main(accelerator, (path / name).read_bytes)
        if folder and not failure:
            try:
                (folder / name).write_bytes(content)
            except OSError as error:  # the others still wait for the next file
                failure = f"{folder}: the copy of {path} cannot be written ({error})"
    failures = [failure for failure in gather_object([failure]) if failure]
    if failures:
        raise DataError(failures[0])
