"""Name a folder for numba's cache where numba, and so librosa, would find none that it can write.

Importing this file does so. dataset.py and all that imports librosa import it first.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"


def can_write(folder: Path) -> bool:
    """Return True if files can be written to a folder, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def list_own_folders() -> list[Path]:
    """List the folders where numba caches librosa's functions when it is left alone."""
    named, librosa = os.environ.get(VARIABLE), find_spec("librosa")
    folders = [Path(named)] if named else []
    if librosa and librosa.origin:
        folders.append(Path(librosa.origin).parent / "core/__pycache__")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(cache):  # where no home is known, "~" stays
        folders.append(Path(cache) / "numba")
    return folders


def make_private_folder() -> str:
    """Make this user's folder for caches among the temporary files; "" if that cannot be.

    numba unpickles what it finds there, so a folder that others may write to is not used. It is
    kept from run to run, because compiling takes half a minute.
    """
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError:
        parent = "/dev/shm"  # which can be written to in a container with a read-only root
    folder = Path(parent, f"numba-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and can_write(folder):
            return str(folder)
        return tempfile.mkdtemp(prefix="numba-", dir=parent)
    except OSError:
        return ""


if not any(map(can_write, list_own_folders())) and (folder := make_private_folder()):
    os.environ[VARIABLE] = folder
