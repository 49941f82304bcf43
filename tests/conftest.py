"""What several test files share: a tiny made-up corpus, and real clips where there are some."""

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))
# The same examples on every run, no limit per example on a busy machine, nothing left in the repo.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis")
)
hypothesis.settings.register_profile("repo", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("repo")

REPO = Path(__file__).resolve().parent.parent
RATE = 22050
SECONDS_PER_LETTER = 0.05
N_TEST_CLIPS = 3
SENTENCES = (  # one per clip, 8 to 24 characters, so 0.4 to 1.2 s
    "Go home.",
    "Come in now",
    "A dog barks.",
    "The sun is up",
    "Ring the bell!",
    "We like old cats",
    "He sees five boats",
    "Birds sing at dawn,",
    "Where is the big key?",
    "Rain falls on the hill",
    "She said: open the gate",
    "The quick fox jumps over",
)


class TinyCorpus(NamedTuple):
    """An LJSpeech-shaped corpus of 12 clips, and manifests of 9 and 3 of them."""

    folder: Path  # metadata.csv and wavs/
    metadata: Path
    wavs: Path
    train_manifest: Path
    test_manifest: Path


def speak(text: str) -> np.ndarray:
    """Each letter is a chord of its own pitch, all else is silence; (n_samples,) in [-1, 1]."""
    n = round(SECONDS_PER_LETTER * RATE)
    time, envelope = np.arange(n) / RATE, np.sin(np.pi * np.arange(n) / n)
    chords = []
    for letter in text.lower():
        pitch = 150.0 * 2.0 ** ((ord(letter) - ord("a")) / 12) if letter.isalpha() else 0.0
        partials = [np.sin(2 * np.pi * k * pitch * time) / k for k in (1, 2, 3)]
        chords.append(0.3 * envelope * np.sum(partials, axis=0))
    return np.concatenate(chords)


def make_tiny_corpus(folder: Path) -> TinyCorpus:
    """The corpus in a folder, which is made when it is missing."""
    corpus = TinyCorpus(
        folder, folder / "metadata.csv", folder / "wavs", folder / "train.csv", folder / "test.csv"
    )
    corpus.wavs.mkdir(parents=True)
    rows = []
    for i, text in enumerate(SENTENCES):
        path = corpus.wavs / f"tiny-{i:02d}.wav"
        wav = speak(text)
        soundfile.write(path, wav, RATE, subtype="PCM_16")
        rows.append((str(path), text, len(wav) / RATE))
    lines = [f"{Path(path).stem}|{text}|{text}\n" for path, text, _ in rows]
    corpus.metadata.write_text("".join(lines), encoding="utf-8")
    manifest = pd.DataFrame(rows, columns=["file_path", "normalized_transcript", "duration"])
    manifest[:-N_TEST_CLIPS].to_csv(corpus.train_manifest, index=False)
    manifest[-N_TEST_CLIPS:].to_csv(corpus.test_manifest, index=False)
    return corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> TinyCorpus:
    return make_tiny_corpus(tmp_path_factory.mktemp("tiny_corpus"))


def find_recordings(variable: str) -> Path:
    """The folder that an environment variable names; without it, the test is skipped."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is unset; it names a folder with metadata.csv and wavs/")
    return Path(folder)


@pytest.fixture(scope="session")
def ljspeech_dir() -> Path:
    """A folder of real clips, with metadata.csv and wavs/."""
    return find_recordings("LJSPEECH_DIR")


@pytest.fixture(scope="session")
def real_voice_dir() -> Path:
    """402 recordings of Allison Smith for Asterisk, 16 kHz, with metadata.csv and wavs/."""
    return find_recordings("REAL_VOICE_DIR")


@pytest.fixture(scope="session")
def voice(tmp_path_factory) -> Path:
    """A small untrained checkpoint, as synthesize.py reads it, that never says stop."""
    from safetensors.torch import save_file

    from dataset import AudioConfig
    from model import Tacotron2, Tacotron2Config
    from speech.voice import write_config
    from test_synthesize import SMALL
    from text.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("voice")
    torch.manual_seed(0)
    config = Tacotron2Config(vocab_size=Tokenizer().vocab_size, **SMALL)
    model = Tacotron2(config)
    with torch.no_grad():
        model.decoder.stop_projection.bias.fill_(-100.0)
    save_file(model.state_dict(), folder / "model.safetensors")
    write_config(folder, config, AudioConfig(), Tokenizer())
    return folder


@pytest.fixture(scope="session")
def run_folder(tiny_corpus, tmp_path_factory) -> Path:
    """A run's folder with a checkpoint of its beginning, which costs no training."""
    import train_taco
    from runs import run_flags, set_up

    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, keep_signal_handlers():
        patch.setenv("ACCELERATE_USE_CPU", "true")
        run, state = set_up(run_flags(tiny_corpus, folder))
        train_taco.save_checkpoint(run, state, "checkpoint_0")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that have slow tests, or the last of them would idle a core."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Undoes what a block sets up for signals."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def handlers_of_signals():
    """Undoes what a test's own process sets up for signals."""
    with keep_signal_handlers():
        yield


@pytest.fixture
def begin(tiny_corpus, tmp_path, monkeypatch, handlers_of_signals):
    """Sets up a run in this process, without pictures; in the same folder each time."""
    from runs import TINY_MODEL, draw_nothing, run_flags, set_up

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    draw_nothing(monkeypatch.setattr)

    def begin(*flags, corpus=tiny_corpus, bare=False):
        every = run_flags(corpus, tmp_path, *flags)
        return set_up([flag for flag in every if flag not in TINY_MODEL] if bare else every)

    return begin


@pytest.fixture
def world(tmp_path, tiny_corpus, voice, run_folder, monkeypatch, handlers_of_signals):
    """A folder to do damage in, see world.py; undoes what train_taco.py does to its process."""
    from world import World

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, tiny_corpus, voice, run_folder)
