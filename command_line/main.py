"""Wrap every script's `main`: a user's mistake ends in one sentence, a closed console does no harm.

@script
def main(argv: list[str] | None = None) -> None: ...
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from command_line.files import DataError, one_line


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines; if the console is closed or the disk is full, lose the lines, not the work."""
    with suppress(OSError):
        print(*lines, sep="\n", file=file or sys.stdout, flush=True)


def warn(message: object) -> None:
    """Print a message to stderr, on one line, after the name of the running script."""
    name = Path(sys.argv[0]).name
    say(f"{name}: {one_line(message, None)}", file=sys.stderr)


@contextmanager
def never_fatal(what: str) -> Iterator[None]:
    """Run a block that only shows something: any exception in it becomes one warning."""
    try:
        yield
    except Exception as error:
        warn(f"{what}: {error or type(error).__name__}; the run continues without it")


def script(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a script's `main`: a DataError or Ctrl-C ends it with one line on stderr.

    Characters that the console's encoding lacks are printed as escapes and do not end the script.
    """
    name = Path(inspect.unwrap(main).__code__.co_filename).name

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> Any:
        for stream in ("stdout", "stderr"):
            if getattr(sys, stream) is None:  # closed: the next opened file would get its number
                setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
            if hasattr(getattr(sys, stream), "reconfigure"):  # a notebook's cannot fail
                getattr(sys, stream).reconfigure(errors="backslashreplace")
        try:
            return main(argv)
        except DataError as error:
            sys.exit(f"{name}: {one_line(error, None)}")
        except KeyboardInterrupt:
            say(f"{name}: interrupted", file=sys.stderr)
            sys.exit(130)
        finally:
            for stream in (sys.stdout, sys.stderr):
                discard_unwritable(stream)

    return run


def discard_unwritable(stream: TextIO) -> None:
    """Flush a stream, or redirect it to nowhere if that fails.

    Python would otherwise flush it again when it ends, fail, and exit with 120.
    """
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
