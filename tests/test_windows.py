"""Nothing in importing or speaking needs POSIX: all modules are imported with its parts hidden."""

import os
import subprocess
import sys

import pytest

from conftest import REPO
from test_structure import ROOMS

FOLDERS = ("", *ROOMS)
IMPORT_ALL = """
import importlib, os, signal, sys
import torch, accelerate, matplotlib.figure, huggingface_hub  # they know Windows by themselves
hidden = ("fcntl", "resource", "termios", "pty")
for name in hidden:
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCHLD", "SIGKILL", "SIGALRM", "pthread_sigmask"):
    delattr(signal, name)
for name in ("fork", "getuid", "uname", "sched_getaffinity"):
    delattr(os, name)

for module in sys.argv[2:]:
    try:
        importlib.import_module(module)
    except ImportError as error:  # an extra whose package is not installed
        package = (error.name or "").split(".")[0]
        if package in hidden or importlib.util.find_spec(package):
            raise

from synthesize import synthesize
from speech.voice import load_checkpoint
from training.processes import Interrupt

assert not Interrupt().pending
print("spoken", *synthesize("Come in", load_checkpoint(sys.argv[1]), max_decoder_steps=5).mel.shape)
"""


@pytest.mark.slow
def test_everything_imports_and_speaks_without_posix(voice):
    modules = [
        ".".join(path.relative_to(REPO).with_suffix("").parts)
        for folder in FOLDERS
        for path in sorted((REPO / folder).glob("*.py"))
        if path.name != "__init__.py"
    ]
    assert {"train_taco", "training.processes", "extras.app"} <= set(modules)
    command = [sys.executable, "-c", IMPORT_ALL, str(voice), *modules]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "USERNAME": "as Windows sets it"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("spoken")
