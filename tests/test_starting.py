"""What a script imports before it does anything, and that a loader process imports nothing."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import soundfile

from conftest import REPO

SLOW = {"librosa.core", "scipy", "numba", "pandas", "torch._dynamo", "sympy", "sklearn"}
NOT_IN = {
    "synthesize": SLOW | {"matplotlib", "accelerate"},
    "evaluate": SLOW | {"matplotlib", "accelerate"},
    "convert_checkpoint": SLOW | {"matplotlib", "accelerate"},
    "train_taco": SLOW,
    "prep_splits": SLOW | {"matplotlib", "accelerate", "torch"},
    "corpora.make_demo_corpus": SLOW | {"matplotlib", "accelerate", "torch"},
}


def imported(*command: str) -> set[str]:
    """The modules that a Python process imports."""
    command = [sys.executable, "-X", "importtime", *command]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}


@pytest.fixture(scope="module")
def unavoidable() -> set[str]:
    """What torch and torchaudio import by themselves."""
    return imported("-c", "import torch, torchaudio")


@pytest.mark.parametrize("script", NOT_IN)
def test_help_imports_nothing_that_is_slow_and_not_needed(script, unavoidable):
    modules = imported("-m", script, "--help")
    assert "command_line.files" in modules
    assert not modules & (NOT_IN[script] - (unavoidable - {"torch"}))


READ_A_CLIP = """
import sys
from dataset import AudioConfig, TTSCollator, TTSDataset
from text.tokenizer import Tokenizer
configs = AudioConfig(), Tokenizer()
clips = TTSDataset(sys.argv[1], *configs)
before = set(sys.modules)
TTSCollator(*configs)([clips[0]])
print(*sorted(set(sys.modules) - before))
"""


def test_a_loader_process_imports_nothing(tiny_corpus, tmp_path):
    """wandb's hook on imports ends a run whose loader processes import; they read clips only.

    The clip has another sampling rate, so that it is resampled, and a number to spell.
    """
    rows = pd.read_csv(tiny_corpus.train_manifest)[:1]
    samples, rate = soundfile.read(rows["file_path"][0])
    soundfile.write(tmp_path / "clip.wav", samples, rate - 50)
    rows["file_path"], rows["normalized_transcript"] = "clip.wav", "In 1465, the 2nd for $3.50."
    rows.to_csv(tmp_path / "manifest.csv", index=False)
    command = [sys.executable, "-c", READ_A_CLIP, tmp_path / "manifest.csv"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
