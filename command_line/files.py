"""Check the user's flags and files; write files whole or not at all.

A flag or file that cannot be used raises DataError, and the script ends with that one sentence. Any
other exception is a defect of the code and ends the script with a traceback. This file does not
import torch, so that prep_splits.py starts at once.
"""

import argparse
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class DataError(ValueError):
    """A flag, file or text that cannot be used; every script prints the message and ends."""

    def __init__(self, message: str) -> None:
        # A loader process passes on its whole traceback; the message is the last line.
        super().__init__(message.rpartition("command_line.files.DataError: ")[2].strip())


def one_line(message: object, width: int | None = 200) -> str:
    """Join the lines of a message, and cut it after `width` characters."""
    return " ".join(str(message).split())[:width]


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn an OSError in the block, or in the decorated function, into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(str(error)) from error


def import_extra(name: str, needed_by: str, requirements: str) -> ModuleType:
    """Import a package that only some users need, from one of the files in requirements/."""
    try:
        return import_module(name)
    except ImportError:
        raise DataError(
            f"{needed_by} needs the package {name}: python -m pip install -r {requirements}"
        ) from None


def path_argument(value: str) -> str:
    """Parse a path (an argparse type): refuse '' (an unset shell variable) and expand ~."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return os.path.expanduser(value)


def count_argument(value: str, least: int = 1, most: float = math.inf) -> int:
    """Parse a whole number from `least` to `most` (an argparse type)."""
    if not value.isdecimal() or not least <= int(value) <= most:
        bounds = f"{least} to {most}" if most < math.inf else f"at least {least}"
        raise argparse.ArgumentTypeError(f"must be {bounds}, found {value}")
    return int(value)


seed_argument = partial(count_argument, least=0, most=2**63 - 1)  # what torch takes


def check_writable(flag: str, folder: str | Path) -> None:
    """Refuse a folder, existing or not, that files cannot be written to; leave nothing behind."""
    folder = Path(os.path.abspath(folder))
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        message = f"{flag} {folder}: cannot be written to ({nearest}: {error.strerror})"
        raise DataError(message) from None


def read_text(flag: str, path: str) -> str:
    """Read the UTF-8 text file that a flag names."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{flag} {path}: is not UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{flag} {path}: cannot be read ({error})") from None


def read_json(path: str | Path, name: str = "") -> Any:
    """Read a JSON file; a DataError begins with `name`, or with the path."""
    name = name or str(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{name}: is not UTF-8 text") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from None


def write_whole(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder under a temporary name, then rename it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        put_in_place(temporary, path, temporary.with_suffix(".replaced"))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # ignores a file
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def put_in_place(temporary: Path, path: Path, replaced: Path) -> None:
    """Rename `temporary` to `path`, so that a reader or a crash never finds half of it.

    If `path` is an existing folder, it is first renamed to `replaced`, and removed at the end.
    """
    shutil.rmtree(replaced, ignore_errors=True)
    if path.is_dir() and temporary.is_dir():
        os.replace(path, replaced)
    os.replace(temporary, path)
    shutil.rmtree(replaced, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
