"""Where numba cannot write its cache, importing dataset names a folder where it can."""

import os
import subprocess
import sys

import pytest

from conftest import REPO

PACKAGE = "import numba\n@numba.njit(cache=True)\ndef double(x):\n    return 2 * x\n"
PROGRAM = "import os, dataset, librosa; print(librosa.double(4), os.getenv('NUMBA_CACHE_DIR'))"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["nowhere", "home", "another user's"])
def test_numba_finds_a_folder_for_its_cache(tmp_path, place):
    """A package in whose folder even root cannot write stands in for librosa."""
    package, temporary, home = tmp_path / "librosa", tmp_path / "tmp", tmp_path / "home"
    for folder in (package, temporary, home):
        folder.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "__pycache__").write_text("no folder")
    (package / "core").write_text("no folder")
    private = temporary / f"numba-{os.getuid()}"
    if place == "another user's":
        private.mkdir()
        private.chmod(0o777)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    environment |= {
        "PYTHONPATH": f"{tmp_path}:{REPO}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(temporary),
        "HOME": str(home if place == "home" else package / "core"),
        "NUMBA_CACHE_DIR": str(package / "core/cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    doubled, folder = done.stdout.split()
    assert doubled == "8"
    if place == "home":
        assert folder == environment["NUMBA_CACHE_DIR"] and list(home.rglob("*.nbi"))
        return
    assert folder.startswith(f"{temporary}/numba-") and os.stat(folder).st_mode & 0o077 == 0
    assert (folder == str(private)) == (place == "nowhere")
    assert [path for path in (temporary).rglob("*.nbi") if str(path).startswith(folder)]
