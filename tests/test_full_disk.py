"""A disk that takes no more: one sentence, and no half a checkpoint or picture."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
from accelerate import Accelerator

import train_taco
import training.processes as processes
from command_line.files import DataError
from forked_run import train
from kill_and_resume import differences
from test_train_taco import REPO, run_flags
from training.config import parse_args

PRINTS = """
import sys, time
from training.processes import lasting_output
with lasting_output():
    for _ in range(100):
        for stream in (sys.stdout, sys.stderr):
            print("step 1/5", "." * 200, file=stream, flush=True)
    print("stopped")
open(sys.argv[1], "w").write("went on")
"""


@pytest.mark.parametrize("what", ["full disk", "closed pipe"])
def test_output_that_cannot_be_written_does_not_end_a_run(tmp_path, what):
    """A log on another disk than the checkpoints; `| tee` that a hangup has killed as well."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if what == "full disk" else writer, "w") as output:
        subprocess.run(
            [sys.executable, "-c", PRINTS, tmp_path / "end"],
            cwd=REPO, env={**os.environ, "PYTHONUNBUFFERED": ""}, stdout=output, stderr=output,
            check=True,
        )  # fmt: skip
    assert (tmp_path / "end").read_text() == "went on"


def test_a_disk_that_has_room_again_gets_the_lines_that_follow(capsys, monkeypatch):
    stream = processes.LastingStream(sys.stdout)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "write", Mock(side_effect=full))
        assert stream.write("lost") == 4
    stream.write("kept")
    assert capsys.readouterr().out == "kept" and stream.encoding == sys.stdout.encoding


@pytest.fixture
def largest_file():
    """Sets the size in bytes at which writing a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_is_whole_or_not_there(tiny_corpus, tmp_path, monkeypatch, largest_file):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    configs = parse_args(run_flags(tiny_corpus, tmp_path), "")
    run, state = train_taco.prepare(configs, Accelerator())
    state, _ = train_taco.train_epoch(run, state, time.monotonic())
    train_taco.save(run, state, "checkpoint_1")
    saved = run.folder / "checkpoint_1"
    copy = shutil.copytree(saved, tmp_path / "copy")
    sizes = {path.name: path.stat().st_size for path in saved.iterdir()}
    assert sizes["optimizer.bin"] / 2 > sizes["model.safetensors"], "each is what fails once"
    # Written by safetensors, by torch.save, and by Python.
    for name in ("model.safetensors", "optimizer.bin", "trainer_state.json"):
        if name == "trainer_state.json":
            long_ago = [{"epoch": 0, "note": "x" * 2 * sizes["optimizer.bin"]}]
            state = state._replace(history=long_ago)
            largest_file(sizes["optimizer.bin"] + 1000)
        else:
            largest_file(sizes[name] // 2)
        for target in ("checkpoint_1", "checkpoint_2"):
            with pytest.raises(DataError, match=f"{target}: the checkpoint could not be written"):
                train_taco.save(run, state, target)
        assert [path.name for path in run.folder.iterdir()] == ["checkpoint_1"], name
        assert differences(saved, copy) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoints_before(tiny_corpus, tmp_path, monkeypatch, small_disk):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    flags = [*run_flags(tiny_corpus, tmp_path), "--working_directory", str(small_disk)]
    run, state = train_taco.prepare(parse_args(flags, ""), Accelerator())
    state, _ = train_taco.train_epoch(run, state, time.monotonic())
    saved = []
    with pytest.raises(DataError, match=r"No space left on device|0 MiB are free there"):
        for number in range(9):
            train_taco.save(run, state, f"checkpoint_{number}")
            saved.append(f"checkpoint_{number}")
    assert saved and sorted(path.name for path in run.folder.iterdir()) == saved
    assert all(differences(run.folder / name, run.folder / saved[0]) == [] for name in saved)


def test_training_ends_with_one_sentence(tiny_corpus, tmp_path):
    flags = run_flags(tiny_corpus, tmp_path, "--checkpoint_minutes", 1e-7)
    command = [sys.executable, str(REPO / "train_taco.py"), *flags]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *command], cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("train_taco.py: ") and done.stderr.count("\n") == 1
    assert "could not be written" in done.stderr and "too large" in done.stderr
    assert not (tmp_path / "work").exists(), "what was made for the run, and is empty, goes"


def test_a_picture_or_film_that_cannot_be_written_is_said_and_training_goes_on(
    tiny_corpus, tmp_path
):
    train(run_flags(tiny_corpus, tmp_path / "free"))
    flags = run_flags(tiny_corpus, tmp_path)
    samples = tmp_path / "samples"
    in_the_way = [samples / name for name in ("epoch_001_free_running.wav", "alignment.gif")]
    for path in in_the_way:
        path.mkdir(parents=True)
    (samples / "run.txt").write_text("../work/tiny")  # as after a run that was killed
    flags += ["--resume_from_checkpoint", "latest_or_new"]
    done = train(flags, pictures=True)
    message = [line for line in done.stderr.split("\n") if line.startswith("train_taco.py: ")]
    assert len(message) == 2 and "Traceback" not in done.stderr
    assert "of epoch 1 cannot be written" in message[0] and in_the_way[0].name in message[0]
    assert "the film cannot be written" in message[1] and in_the_way[1].name in message[1]
    written = {path.name for path in samples.iterdir() if path.is_file()}
    assert written >= {
        "epoch_001_teacher_forced.png",
        "epoch_002_free_running.wav",
        "epoch_002.npz",
    }
    assert not [name for name in written if name.endswith(".tmp")]
    final, undisturbed = (
        folder / "work" / "tiny" / "final_checkpoint" for folder in (tmp_path, tmp_path / "free")
    )
    assert differences(final, undisturbed) == []
