"""A run's folder: which checkpoint is the latest, what is removed, who may write, who can read."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import train_taco
from command_line.files import DataError
from forked_run import ForkedRun, hold, train
from test_train_taco import assert_same_checkpoint, run_flags
from training.checkpoints import (
    clear_remains,
    find_checkpoint,
    find_checkpoint_folders,
    list_checkpoints,
    prune_checkpoints,
    read_state,
    remove_checkpoint,
)
from training.processes import hold_folder, lock_folder
from world import snapshot

STATE_FILE = "trainer_state.json"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_latest_is_the_one_written_last_and_pruning_removes_the_oldest(prepare, monkeypatch):
    """Training goes back to epoch 40 and its branch is kept, also when the clock is put back."""
    run, state = prepare("--keep_checkpoints", 2)

    def save(epoch, name=None):
        train_taco.save(run, state._replace(epoch=epoch, step=epoch), name or f"checkpoint_{epoch}")
        return find_checkpoint(run.folder, "latest").name

    save(40, "best_checkpoint")
    for epoch in (50, 60):
        assert save(epoch) == f"checkpoint_{epoch}"
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert save(41) == "checkpoint_41"
    assert names_in(run.folder) == ["best_checkpoint", "checkpoint_41", "checkpoint_60"]
    assert save(45) == "checkpoint_45"
    assert names_in(run.folder) == ["best_checkpoint", "checkpoint_41", "checkpoint_45"]
    assert save(41, "best_checkpoint") == "best_checkpoint"
    # A checkpoint of an older version does not say when it was written: its file does.
    file = run.folder / "checkpoint_41" / STATE_FILE
    content = json.loads(file.read_text())
    del content["written_at"]
    for seconds, place in ((1e9, 0), (3e9, -1)):
        file.write_text(json.dumps(content))
        os.utime(file, (seconds, seconds))
        assert list_checkpoints(run.folder)[place].name == "checkpoint_41"


def test_only_what_has_a_checkpoints_exact_name_is_removed_or_resumed(prepare):
    run, state = prepare()
    for epoch in (1, 2):
        train_taco.save(run, state._replace(epoch=epoch, step=epoch), f"checkpoint_{epoch}")
    theirs = [
        "checkpoint_1_keep_this", "checkpoint_1.bak", "checkpoint_01", "checkpoint_1_step_",
        "checkpoint_1_step_2b", "my_checkpoint_1", "best_checkpoint_old", "checkpoint_",
        ".writing_notes", ".writing_replaced_notes", ".writing_checkpoint_1_keep",
    ]  # fmt: skip
    for name in theirs:
        shutil.copytree(run.folder / "checkpoint_2", run.folder / name)
        file = run.folder / name / STATE_FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), "written_at": 1e11}))
    before = {name: snapshot(run.folder / name) for name in theirs}
    (run.folder / ".writing_best_checkpoint").mkdir()
    (run.folder / ".writing_replaced_checkpoint_0_step_5").mkdir()
    clear_remains(run.folder)
    ours = ["checkpoint_0_step_5", "checkpoint_1", "checkpoint_2"]  # the first has come back
    assert names_in(run.folder) == sorted([*ours, *theirs])
    assert find_checkpoint(run.folder, "latest").name == "checkpoint_2"
    prune_checkpoints(run.folder, 1)
    assert names_in(run.folder) == sorted(["checkpoint_0_step_5", "checkpoint_2", *theirs])
    (run.folder / ".writing_checkpoint_3").mkdir()
    prepare("--overwrite")
    assert names_in(run.folder) == sorted(["checkpoint_0_step_5", *theirs])
    assert {name: snapshot(run.folder / name) for name in theirs} == before


def test_a_broken_state_is_named_and_passed_over(prepare, capsys):
    run, state = prepare("--keep_checkpoints", 1)
    for epoch in (1, 2):
        train_taco.save(run, state._replace(epoch=epoch, step=epoch), f"checkpoint_{epoch}")
        shutil.copytree(run.folder / f"checkpoint_{epoch}", run.folder / f"checkpoint_{epoch + 5}")
    broken = run.folder / "checkpoint_7"
    sound = json.loads((broken / STATE_FILE).read_text())
    endless = json.dumps({**sound, "written_at": float("inf")})
    for content in ("{", "[]", '{"written_at": 7}', endless, ""):
        (broken / STATE_FILE).write_text(content)
        capsys.readouterr()
        assert find_checkpoint(run.folder, "latest").name == "checkpoint_2"
        assert str(broken / STATE_FILE) in capsys.readouterr().err
    train_taco.save(run, state._replace(epoch=3, step=3), "checkpoint_3")
    assert names_in(run.folder) == ["checkpoint_3", "checkpoint_7"], "pruning goes on"
    shutil.rmtree(run.folder / "checkpoint_3")
    for name in ("latest", "latest_or_new"):
        with pytest.raises(DataError, match="no checkpoint that can be read in"):
            prepare("--resume_from_checkpoint", name)
    with pytest.raises(DataError, match="--overwrite"):
        prepare()


def test_latest_or_new_starts_and_goes_on(prepare):
    run, state = prepare("--resume_from_checkpoint", "latest_or_new")
    assert state.step == 0
    train_taco.save(run, state._replace(epoch=1, step=5), "checkpoint_1")
    flags = ["--resume_from_checkpoint", "latest_or_new"]
    assert prepare(*flags, "--no-fast_decoder")[1].step == 5


def test_another_model_or_audio_is_refused_with_a_list_of_the_differences(prepare):
    run, state = prepare()
    train_taco.save(run, state, "checkpoint_0")
    flags = ["--resume_from_checkpoint", "latest", "--attention_dim", 12, "--min_db", -80]
    with pytest.raises(
        DataError,
        match=r"--attention_dim was 8 and is now 12; --min_db was -100\.0 and is now -80\.0",
    ):
        prepare(*flags)


def test_a_taken_folder_is_refused_with_the_safe_ways_first(prepare):
    run, state = prepare()
    train_taco.save(run, state, "checkpoint_1")
    with pytest.raises(DataError) as refused:
        prepare("--run_name", "second")
    said = str(refused.value)
    places = [said.index(flag) for flag in ("--resume_from", "--experiment_name", "--overwrite")]
    assert places == sorted(places) and "would remove them" in said
    beside, _ = prepare("--experiment_name", "second")
    assert beside.folder == run.folder.with_name("second")


def test_no_run_writes_over_the_pictures_of_another(prepare, tmp_path):
    """A second one has a folder of its own, and each comes back to its own when it goes on."""
    samples = tmp_path / "samples"
    runs = {"tiny": samples, "second": samples / "second", "third": samples / "third"}
    for name, pictures in runs.items():
        run, state = prepare("--experiment_name", name)
        assert run.pictures == pictures, "also before there is a picture"
        train_taco.save(run, state, "checkpoint_1")
    for name, pictures in runs.items():
        (pictures / "epoch_001.npz").write_text(name)
    for name, pictures in reversed(runs.items()):
        run, _ = prepare("--experiment_name", name, "--resume_from_checkpoint", "latest")
        assert run.pictures == pictures and (pictures / "epoch_001.npz").read_text() == name
    elsewhere = ["--working_directory", tmp_path / "elsewhere"]
    with pytest.raises(DataError, match=r"--save_audio_gen .*second in it hold the pictures of"):
        prepare("--experiment_name", "second", *elsewhere)
    assert not (tmp_path / "elsewhere").exists()
    run, _ = prepare("--experiment_name", "second", "--overwrite")
    assert names_in(samples / "second") == ["run.txt"], "its own of before go"
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("work", "samples"):
        (tmp_path / name).rename(moved / name)
    flags = ["--working_directory", moved / "work", "--save_audio_gen", moved / "samples"]
    run, _ = prepare("--experiment_name", "third", "--resume_from_checkpoint", "latest", *flags)
    assert run.pictures == moved / "samples" / "third"


def test_pictures_that_nobody_has_claimed_are_a_resumed_runs_and_not_a_new_ones(prepare, tmp_path):
    """Older versions did not say whose they are."""
    samples = tmp_path / "samples"
    samples.mkdir()
    for content in (None, b"a\0b"):
        (samples / "epoch_1.npz").touch()
        if content:
            (samples / "run.txt").write_bytes(content)
        run, state = prepare("--overwrite")
        assert run.pictures == samples / "tiny" and names_in(samples)[0] == "epoch_1.npz"
        train_taco.save(run, state, "checkpoint_1")
        shutil.rmtree(samples / "tiny")
    run, _ = prepare("--resume_from_checkpoint", "latest")
    assert run.pictures == samples


class Killed(BaseException):
    """In the place of SIGKILL: nothing catches it."""


def test_a_checkpoint_is_on_the_disk_before_its_name_and_the_old_one_until_then(
    prepare, monkeypatch
):
    run, state = prepare()
    train_taco.save(run, state, "checkpoint_1")
    done, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def killed_at_the_name(source, target):
        if target == run.folder / "checkpoint_1":
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", killed_at_the_name)
    with pytest.raises(Killed):
        train_taco.save(run, state._replace(step=7), "checkpoint_1")
    written = run.folder / ".writing_checkpoint_1"
    assert len(list(written.iterdir())) >= 5 and set(done) == {written, *written.iterdir()}
    monkeypatch.setattr(os, "replace", replace)
    clear_remains(run.folder)
    assert names_in(run.folder) == ["checkpoint_1"]
    assert read_state(run.folder / "checkpoint_1")[0].step == 0
    train_taco.save(run, state._replace(step=7), "checkpoint_1")
    assert names_in(run.folder) == ["checkpoint_1"] and done[-1] == run.folder
    assert read_state(run.folder / "checkpoint_1")[0].step == 7


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_it(prepare, monkeypatch):
    run, state = prepare()
    train_taco.save(run, state, "checkpoint_1")
    rmtree = shutil.rmtree

    def killed_at_work(path, **options):
        if Path(path).exists():
            raise Killed
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed_at_work)
    with pytest.raises(Killed):
        remove_checkpoint(run.folder / "checkpoint_1")
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert find_checkpoint_folders(run.folder) == [] != names_in(run.folder)
    clear_remains(run.folder)
    assert names_in(run.folder) == []


# Another process, as this one gives the lock up when it closes the file once more.
TRY_TO_SHARE = """
import fcntl, sys
file = open(sys.argv[1])
print(file.read())
fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
"""


@pytest.mark.parametrize("is_used", [False, True])
def test_a_folder_is_held_alone_and_goes_again_when_nothing_came_of_it(tmp_path, is_used):
    folder = tmp_path / "work" / "tiny"
    if is_used:
        folder.mkdir(parents=True)
        (folder / ".lock").write_text("of a run that was killed" * 9)
    with hold_folder(Accelerator(cpu=True), folder):
        assert names_in(folder) == [".lock"]
        command = [sys.executable, "-c", TRY_TO_SHARE, folder / ".lock"]
        other = subprocess.run(command, capture_output=True, text=True)
        assert other.returncode != 0 and "BlockingIOError" in other.stderr
        assert other.stdout == f"process {os.getpid()} on {socket.gethostname()}\n"
        if is_used:
            (folder / "checkpoint_1").mkdir()
    assert names_in(tmp_path) == (["work"] if is_used else [])
    assert not is_used or names_in(folder) == ["checkpoint_1"]


def test_a_lock_whose_file_has_been_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The run that held it removes it at its end, perhaps just before it is locked here."""
    lockf = fcntl.lockf

    def removed_before(*arguments):
        monkeypatch.setattr(fcntl, "lockf", lockf)
        (tmp_path / ".lock").unlink()
        lockf(*arguments)

    monkeypatch.setattr(fcntl, "lockf", removed_before)
    descriptor, _ = lock_folder(tmp_path)
    assert os.path.samestat(os.fstat(descriptor), (tmp_path / ".lock").stat())
    os.close(descriptor)


def test_a_second_run_is_refused_until_the_first_is_gone(tiny_corpus, tmp_path):
    """It touches nothing; after a kill it need not wait for the loader processes left behind."""
    flags = run_flags(tiny_corpus, tmp_path, "--training_epochs", 1)
    folder = tmp_path / "work" / "tiny"
    first = ForkedRun([*flags, "--num_workers", 2], before=partial(hold, 0))
    try:
        first.wait_for_line("held")
        (folder / ".writing_checkpoint_1").mkdir()  # as while it writes a checkpoint
        before = snapshot(folder)
        for more in ([], ["--overwrite"], ["--resume_from_checkpoint", "latest_or_new"]):
            second = train([*flags, *more], check=False)
            assert second.returncode == 1 and second.stderr.count("\n") == 1, second.stderr
            assert f"process {first.pid} on " in second.stderr and str(folder) in second.stderr
            assert snapshot(folder) == before
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        assert len(children) == 2
    finally:
        first.kill()
    assert all(Path(f"/proc/{child}").exists() for child in children), "they outlive it"
    done = train([*flags, "--resume_from_checkpoint", "latest_or_new"])
    assert "checkpoint: " in done.stdout
    assert names_in(folder) == ["best_checkpoint", "checkpoint_1", "final_checkpoint"]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    os.close(lock_folder(tmp_path)[0])
    said = capsys.readouterr().err
    assert "No locks available" in said and str(tmp_path) in said and said.count("\n") == 1


def use_own_folder(folder):
    """For a ForkedRun: each process sees a folder of its own as the current one."""
    os.chdir(folder / f"machine_{os.environ['RANK']}")
    tempfile.tempdir = str(folder / "temporary")


def test_machines_without_a_shared_disk_resume_exactly(tiny_corpus, tmp_path):
    """Two processes that see other folders under one name; the main process's counts."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    for rank in (0, 1):
        (tmp_path / f"machine_{rank}").mkdir()

    def run(*more):
        flags = run_flags(tiny_corpus, Path(), "--checkpoint_minutes", "1e-7")
        return train([*flags, *more], 2, before=partial(use_own_folder, tmp_path)).stdout

    run()
    folder = tmp_path / "machine_0" / "work" / "tiny"
    assert names_in(tmp_path / "machine_1") == [], "the main process writes everything"
    final = folder / "final_checkpoint"
    states = [
        torch.load(final / f"random_states_{rank}.pkl", weights_only=False) for rank in (0, 1)
    ]
    assert states[0].keys() == states[1].keys()
    assert not torch.equal(states[0]["torch_manual_seed"], states[1]["torch_manual_seed"])
    straight = final.rename(tmp_path / "straight")
    # The other machine has one of the same name, of another run.
    other = tmp_path / "machine_1" / "work" / "tiny" / "checkpoint_1_step_4"
    shutil.copytree(folder / other.name, other)
    (other / "model.safetensors").unlink()
    (other / STATE_FILE).write_text((other / STATE_FILE).read_text().replace("written_at", "mood"))
    said = run("--resume_from_checkpoint", other.name)
    assert f"resumed from work/tiny/{other.name}: epoch 1, step 4" in said
    assert_same_checkpoint(final, straight)
    assert names_in(other.parent) == [other.name]
    assert not list(temporary.glob("checkpoint_*")), "the copy is removed"
