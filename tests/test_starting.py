"""What a script imports before it does anything, and that a loader process imports nothing."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import soundfile

from conftest import REPO

SLOW = {"librosa.core", "scipy", "numba", "pandas", "torch._dynamo", "sympy", "sklearn"}
SHOW_HELP = """
import contextlib, importlib, sys
known, *scripts = sys.argv[1:]
for package in known.split():
    importlib.import_module(package)
before = set(sys.modules)
for script in scripts:
    with contextlib.suppress(SystemExit):
        importlib.import_module(script).main(["--help"])
print("imported", *set(sys.modules) - before)
"""
READ_A_CLIP = """
import sys
from dataset import AudioConfig, TTSCollator, TTSDataset
from text.tokenizer import Tokenizer
configs = AudioConfig(), Tokenizer()
clips = TTSDataset(sys.argv[1], *configs)
before = set(sys.modules)
TTSCollator(*configs)([clips[0]])
print("imported", *set(sys.modules) - before)
"""


def imported(program: str, *arguments: str) -> set[str]:
    """Run a program in a new Python; the modules that it names at its end."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "scripts", "unwanted"),
    [
        ("torch", ["synthesize", "evaluate", "convert_checkpoint"], {"matplotlib", "accelerate"}),
        ("torch accelerate", ["train_taco"], {"wandb", "tensorboard"}),
        ("", ["prep_splits", "corpora.make_demo_corpus"], {"matplotlib", "accelerate", "torch"}),
    ],
)
def test_help_imports_nothing_that_is_slow_and_not_needed(known, scripts, unwanted):
    modules = imported(SHOW_HELP, known, *scripts)
    assert modules >= {*scripts, "command_line.flags"}
    assert not modules & (SLOW | unwanted)


@pytest.mark.slow
def test_a_loader_process_imports_nothing(tiny_corpus, tmp_path):
    """wandb's hook on imports ends a run whose loader processes import; they read clips only.

    The clip has another sampling rate, so that it is resampled, and a number to spell.
    """
    rows = pd.read_csv(tiny_corpus.train_manifest)[:1]
    samples, rate = soundfile.read(rows["file_path"][0])
    soundfile.write(tmp_path / "clip.wav", samples, rate - 50)
    rows["file_path"], rows["normalized_transcript"] = "clip.wav", "In 1465, the 2nd for $3.50."
    rows.to_csv(tmp_path / "manifest.csv", index=False)
    assert imported(READ_A_CLIP, tmp_path / "manifest.csv") == set()
