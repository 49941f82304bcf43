"""A defect of the code shows its traceback; a mistake of the user is one sentence.

Bad input of every kind is in test_bad_input.py.
"""

import importlib
import os

import pytest

from bad_rows import convert, demo, export, judge, prep, say, train
from command_line import files
from world import run, snapshot

# A command line for each script, and a function that it calls.
RUNS = {
    "synthesize": (say(), "split_text"),
    "evaluate": (judge(), "alignment_scores"),
    "export_mels": (export(), "make_mels"),
    "convert_checkpoint": (convert(), "peer_name"),
    "prep_splits": (prep(), "split_clips"),
    "corpora.make_demo_corpus": (demo(), "choose_sentences"),
    "train_taco": (train(), "train_step"),
}


@pytest.mark.parametrize("script", RUNS)
def test_a_defect_shows_its_traceback(world, capsys, monkeypatch, script):
    """`main` lets the exception through, so that Python prints where it was raised."""
    arrange, function = RUNS[script]
    _, *flags = arrange(world)

    def defect(*args, **kwargs):
        raise FileNotFoundError("a defect of the code")

    monkeypatch.setattr(importlib.import_module(script), function, defect)
    with pytest.raises(FileNotFoundError, match="a defect of the code"):
        run(script, *flags, capsys=capsys)


@pytest.mark.parametrize("script", ["synthesize", "evaluate"])
def test_a_disk_that_is_full_at_the_end_is_one_sentence(world, capsys, monkeypatch, script):
    """The other scripts' full disks are in their own tests."""
    _, *flags = RUNS[script][0](world)

    def full(source, target):
        raise OSError(28, "No space left on device", os.fspath(target))

    monkeypatch.setattr(files.os, "replace", full)
    code, message = run(script, *flags, capsys=capsys)
    assert code == 1 and message.startswith(f"{script}.py: ") and message.count("\n") == 1, message
    assert "No space left on device" in message and str(world.out) in message
    assert not any(path.endswith((".wav", ".json", ".tmp")) for path in snapshot(world.out))


LONG = "x" * 300  # a name may have 255 bytes; the system answers others with an OSError


@pytest.mark.parametrize(
    ("arrange", "flags"),
    [
        (say, "--checkpoint"),
        (judge, "--output_csv"),
        (convert, "--to nvidia"),
        (prep, "--path_to_ljspech"),
        (train, "--working_directory"),
    ],
)
def test_a_name_that_is_too_long_is_one_sentence(world, capsys, arrange, flags):
    script, *flags = arrange(*flags.split(), LONG)(world)
    code, message = run(script, *flags, capsys=capsys)
    name = script.split(".")[-1]
    assert code == 1 and message.startswith(f"{name}.py: ") and message.count("\n") == 1, message
    assert LONG in message
