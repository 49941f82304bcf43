"""The user's files: read with checks, written whole or not at all. And what a bad one raises.

Every script ends with one sentence on a DataError, and with a traceback on any other exception,
which is a defect of the code and not of what the user gave. Without torch, so that prep_splits.py
starts at once.
"""

import argparse
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class DataError(ValueError):
    """A flag, file or text that cannot be used; every script prints its message and ends."""

    def __init__(self, message: str) -> None:
        # A loader process sends its traceback along; the message is its last line.
        super().__init__(message.rpartition("command_line.files.DataError: ")[2].strip())


@contextmanager
def file_errors() -> Iterator[None]:
    """For code that reads or writes files of the user's: what the system refuses is a DataError.

    A with block, or a decorator of a whole function.

    Raises:
        DataError: with the message of the OSError, which names the file.
    """
    try:
        yield
    except OSError as error:
        raise DataError(str(error)) from error


def import_extra(name: str, needed_by: str, requirements: str) -> ModuleType:
    """A package that only some users need, and that requirements/*.txt has.

    Raises:
        DataError: when it is not installed; `needed_by` is the flag or the like that asks for it.
    """
    try:
        return import_module(name)
    except ImportError:
        raise DataError(
            f"{needed_by} needs the package {name}: python -m pip install -r {requirements}"
        ) from None


def path_argument(value: str) -> str:
    """argparse type of a path: rejects '' (an unset shell variable) and expands ~."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return os.path.expanduser(value)


def seed_argument(value: str) -> int:
    """argparse type: a seed that torch takes."""
    if not value.isdecimal() or int(value) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be 0 to 2**63 - 1, found {value}")
    return int(value)


def count_argument(value: str, least: int = 1, most: float = math.inf) -> int:
    """argparse type: a whole number from `least` to `most`."""
    if not value.isdecimal() or not least <= int(value) <= most:
        bounds = f"{least} to {most}" if most < math.inf else f"at least {least}"
        raise argparse.ArgumentTypeError(f"must be {bounds}, found {value}")
    return int(value)


def check_writable(flag: str, folder: str | Path) -> None:
    """Checks that files can be put into a folder, which may have to be made; leaves nothing behind.

    Raises:
        DataError: naming the flag, where they cannot.
    """
    folder = Path(os.path.abspath(folder))
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = f"{nearest}: {error.strerror}"
        raise DataError(f"{flag} {folder}: cannot be written to ({reason})") from None


def read_json(path: str | Path, name: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: beginning with `name`, when it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{name}: is not UTF-8 text") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from None


def write_whole(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """Has `write` make a file or folder under a temporary name, then puts that in place of `path`.

    Raises:
        OSError: when it cannot be written; nothing of it is left then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        put_in_place(temporary, path, temporary.with_suffix(".replaced"))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # passes over a file
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path, replaced: Path) -> None:
    """Renames `temporary` to `path`, so that a reader or a crash never meets half of it.

    A folder that another folder replaces is renamed to `replaced` first, and then removed.

    Raises:
        OSError: when a folder stands in the way of a file, among others.
    """
    shutil.rmtree(replaced, ignore_errors=True)
    if path.is_dir() and temporary.is_dir():
        os.replace(path, replaced)
    os.replace(temporary, path)
    shutil.rmtree(replaced, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
