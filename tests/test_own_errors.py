"""A defect of the code shows its traceback; what a user can mend is told in one sentence.

Bad input of every kind is in test_bad_input.py.
"""

import importlib
import os

import pytest

from bad_rows import convert, demo, export, judge, prep, say, train
from command_line import files
from world import run, snapshot

# A command line for each script, and a function that its run calls.
RUNS = {
    "synthesize": (say(), "split_text"),
    "evaluate": (judge(), "alignment_scores"),
    "export_mels": (export(), "make_mels"),
    "convert_checkpoint": (convert(), "peer_name"),
    "prep_splits": (prep(), "split_clips"),
    "make_demo_corpus": (demo("--n_sentences", "2"), "choose_sentences"),
    "train_taco": (train(), "train_step"),
}


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, UnicodeError, KeyError])
@pytest.mark.parametrize("script", RUNS)
def test_a_defect_shows_its_traceback(world, capsys, monkeypatch, script, kind):
    """`main` lets the exception through, so that Python prints where it was raised."""
    arrange, function = RUNS[script]

    def defect(*args, **kwargs):
        raise kind("a defect of the code")

    _, *flags = arrange(world)
    monkeypatch.setattr(importlib.import_module(script), function, defect)
    with pytest.raises(kind, match="a defect of the code"):
        run(script, *flags, capsys=capsys)


@pytest.mark.parametrize("script", ["synthesize", "evaluate"])
def test_a_disk_that_is_full_at_the_end_is_told(world, capsys, monkeypatch, script):
    """The other scripts' full disks are in their own tests and in test_full_disk.py."""
    _, *flags = RUNS[script][0](world)

    def full(source, target):
        raise OSError(28, "No space left on device", os.fspath(target))

    monkeypatch.setattr(files.os, "replace", full)
    code, said = run(script, *flags, capsys=capsys)
    assert code == 1 and said.startswith(f"{script}.py: ") and said.count("\n") == 1, said
    assert "No space left on device" in said and str(world.out) in said
    assert not any(path.endswith((".wav", ".json", ".tmp")) for path in snapshot(world.out))


LONG = "x" * 300  # a name may have 255 bytes; the system answers others with an OSError


@pytest.mark.parametrize(
    ("arrange", "flags"),
    [
        *((say, flag) for flag in ("--checkpoint", "--output_dir", "--text_file", "--vocoder")),
        *((export, flag) for flag in ("--checkpoint", "--output_dir", "--path_to_manifest")),
        *((judge, flag) for flag in ("--checkpoint", "--path_to_manifest", "--word_times",
                                     "--output_json", "--output_csv", "--save_worst")),
        *((convert, flag) for flag in ("--from", "--to nvidia", "--to voice --from nvidia")),
        *((prep, flag) for flag in ("--path_to_ljspech", "--path_to_save")),
        *((demo, flag) for flag in ("--path_to_save", "--sentences")),
        *((train, flag) for flag in ("--working_directory", "--save_audio_gen", "--warm_start",
                                     "--path_to_train_manifest", "--path_to_symbols",
                                     "--resume_from_checkpoint", "--vocoder")),
    ],
)  # fmt: skip
def test_a_name_that_is_too_long_is_told(world, capsys, arrange, flags):
    script, *flags = arrange(*flags.split(), LONG)(world)
    code, said = run(script, *flags, capsys=capsys)
    assert code == 1 and said.startswith(f"{script}.py: ") and said.count("\n") == 1, said
    assert LONG in said


def test_a_corpus_whose_path_is_not_utf8_is_told(world, capsys):
    """Linux lets a folder's name be any bytes; a manifest is UTF-8 text."""
    flags = prep()(world)[1:]
    folder = world.folder / os.fsdecode(b"lj\xff")
    os.rename(world.folder / "lj", folder)
    flags = [folder if flag == world.folder / "lj" else flag for flag in flags]
    code, said = run("prep_splits", *flags, capsys=capsys)
    assert code == 1 and said.startswith("prep_splits.py: ") and said.count("\n") == 1, said
    assert "UTF-8" in said and "lj" in said and not world.out.exists()
