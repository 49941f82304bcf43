"""What the scripts' command lines share. Without torch, so that prep_splits.py starts at once.

Every script ends with one sentence on a DataError, and with a traceback on any other exception,
which is a defect of the code and not of what the user gave.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """A flag, a file or a text of the user's that cannot be used; the message is meant for them."""


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


def path_argument(value: str) -> str:
    """argparse type: a path, which an unset shell variable does not give; ~ is the home folder."""
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return os.path.expanduser(value)


def seed_argument(value: str) -> int:
    """argparse type: a seed that torch takes."""
    if not value.isdecimal() or int(value) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be 0 to 2**63 - 1, found {value}")
    return int(value)


def check_writable(flag: str, folder: str | Path) -> None:
    """Finds out whether files can be put into a folder, which may have to be made; leaves nothing.

    Raises:
        DataError: naming the flag, where they cannot.
    """
    folder = Path(os.path.abspath(folder))
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise DataError(f"{flag} {folder}: {nearest} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = f"{nearest}: {error.strerror}"
        raise DataError(f"{flag} {folder}: cannot be written to ({reason})") from None
