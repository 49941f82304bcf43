"""The folder of a run among processes, machines and other runs: written by one, read by all.

Apart from checkpoints.py, which knows what the folder holds, so that both stay short.
"""

import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from arguments import check_writable
from checkpoints import STATE_FILE
from dataset import DataError

LOCK_FILE = ".lock"


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
def seen_everywhere(accelerator: Accelerator, path: Path | None) -> Iterator[Path | None]:
    """Where this process finds the main process's checkpoint; every process calls this.

    That is `path` itself on a disk that all machines share. A process that finds none there, or
    another one, is sent the files, and has them in a temporary folder as long as the block lasts.

    Args:
        path: the checkpoint as the main process sees it, on every process; None stays None.

    Raises:
        DataError: on every process, when a file cannot be read or a copy cannot be written.
    """
    if path is None or accelerator.num_processes == 1:
        yield path
        return
    # Holds the time at which the checkpoint was written, so no two are alike.
    state = on_main(accelerator, lambda: (path / STATE_FILE).read_bytes())
    seen = False
    with suppress(OSError):
        seen = (path / STATE_FILE).read_bytes() == state
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
