"""A voice in German, from training to speech: --cleaner and --extra_symbols.

How text is cleaned for other languages is in test_tokenizer.py.
"""

import json

import numpy as np
import pandas as pd
import pytest

from forked_run import train
from runs import run_flags
from synthesize import main as synthesize
from text.tokenizer import DEFAULT_SYMBOLS

GERMAN = [
    "Das Mädchen trägt schöne Schuhe.",
    "Grüße aus der Straße, sagt z. B. Dr. Weiß.",
    "Zwölf Boxkämpfer jagen Viktor.",
    "Wir hören gern zu.",
]


@pytest.fixture(scope="module")
def flags(tiny_corpus, tmp_path_factory):
    """An epoch of one step on German texts with any sound."""
    folder = tmp_path_factory.mktemp("german")
    frame = pd.read_csv(tiny_corpus.train_manifest)[: len(GERMAN)]
    frame.assign(normalized_transcript=GERMAN).to_csv(folder / "manifest.csv", index=False)
    manifest = str(folder / "manifest.csv")
    manifests = ["--path_to_train_manifest", manifest, "--path_to_val_manifest", manifest]
    return run_flags(
        tiny_corpus, folder, *manifests, "--batch_size", 4, "--training_epochs", 1
    ), folder / "work"


@pytest.fixture(scope="module")
def german(flags):
    """The experiment's folder after one epoch with the letters that German adds."""
    train([*flags[0], "--cleaner", "basic", "--extra_symbols", "ÄÖÜß"])
    return flags[1] / "tiny"


def read_config(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config["cleaner"], config["symbols"]


@pytest.mark.slow
def test_a_german_voice_speaks_what_it_was_trained_on(german, tmp_path, capsys):
    folder = german / "checkpoint_1"
    assert read_config(folder) == ("basic", [*DEFAULT_SYMBOLS, *"äöüß"])
    synthesize(
        ["--checkpoint", str(folder), "--output_dir", str(tmp_path), "--max_decoder_steps", "9",
         "--device", "cpu", "--text", "Schöne Mädchen, sagt Dr. Weiß."]
    )  # fmt: skip
    output = capsys.readouterr().out
    assert "as spoken: schöne mädchen, sagt dr. weiß.\n" in output and "left out" not in output
    assert len(np.load(tmp_path / "001.npy")) == 80


@pytest.mark.slow
def test_a_resumed_run_keeps_its_cleaner_and_symbols(german, flags):
    resume = [*flags[0], "--resume_from_checkpoint", "checkpoint_1", "--training_epochs", "2"]
    refused = train([*resume, "--cleaner", "english"], check=False)
    assert refused.returncode == 1
    assert "--cleaner was basic and is now english" in refused.stderr
    refused = train([*resume, "--extra_symbols", "éä"], check=False)
    assert refused.returncode == 1
    assert "--extra_symbols: the symbols of" in refused.stderr and "lack é" in refused.stderr
    train(resume)
    assert read_config(german / "checkpoint_2") == read_config(german / "checkpoint_1")


@pytest.mark.slow
def test_a_warm_start_takes_the_cleaner_unless_one_is_given(german, flags):
    warm = [*flags[0], "--warm_start", str(german / "checkpoint_1"), "--experiment_name"]
    done = train([*warm, "same"])
    assert read_config(flags[1] / "same" / "checkpoint_1")[0] == "basic"
    assert "is now" not in done.stdout
    done = train([*warm, "english", "--cleaner", "english", "--extra_symbols", "é"])
    assert "--cleaner was basic and is now english\n" in done.stdout
    assert "new symbols, not yet learned: 'é'\n" in done.stdout
    expected = ("english", [*DEFAULT_SYMBOLS, *"äöüßé"])
    assert read_config(flags[1] / "english" / "checkpoint_1") == expected
