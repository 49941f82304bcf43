"""Checkpoints: written whole or not at all, found again, and resumed bit for bit."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import train_taco
from command_line.files import DataError
from conftest import REPO
from forked_run import ForkedRun, hold, train
from kill_and_resume import differences
from runs import StopAt, run_flags
from training.checkpoints import (
    STATE_FILE,
    checkpoint_is_due,
    clear_remains,
    find_checkpoint_folders,
    find_run_checkpoint,
    load_run_state,
    prune_checkpoints,
    read_state,
    remove_checkpoint,
    save_checkpoint,
)
from training.processes import hold_folder, make_accelerator, refuse_separate_disks


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def record(monkeypatch):
    """Notes the learning rate and the clips of each step that a run takes from now on."""
    train_step, steps = train_taco.train_step, []

    def recorded_step(run, batches, step):
        clips = [path for batch in batches for path in batch.paths]
        steps.append(SimpleNamespace(lr=run.optimizer.param_groups[0]["lr"], clips=clips))
        return train_step(run, batches, step)

    monkeypatch.setattr(train_taco, "train_step", recorded_step)
    return steps


def stop_at(run, state, step: int) -> str:
    """Train up to a step of an epoch; the name of the checkpoint written there."""
    run.interrupt = StopAt(state, step)
    with pytest.raises(SystemExit):
        train_taco.train_epoch(run, state)
    return f"checkpoint_{state.epoch}_step_{step}"


def train_an_epoch(run, state) -> None:
    train_taco.train_epoch(run, state)
    train_taco.finish_epoch(run, state)


def test_a_run_resumes_bit_for_bit_at_any_step(begin, tiny_corpus, tmp_path):
    """In the middle of an epoch and at its end, here in the same process."""
    train_taco.main(run_flags(tiny_corpus, tmp_path / "straight"))
    straight = tmp_path / "straight" / "work" / "tiny" / "final_checkpoint"
    run, state = begin()
    name = stop_at(run, state, 3)
    run, state = begin("--resume_from_checkpoint", name)
    assert (state.epoch, state.epoch_step, state.step) == (0, 3, 3)
    train_an_epoch(run, state)
    save_checkpoint(run, state, "checkpoint_1")
    run, state = begin("--resume_from_checkpoint", "checkpoint_1")
    train_taco.train(run, state)
    assert differences(run.folder / "final_checkpoint", straight) == []


@pytest.mark.slow
def test_kill_9_at_any_moment():
    """A short run of the script that a user can run for longer."""
    script = REPO / "tests" / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, script, "--times", "3", "--no_pictures"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout and ", all with the same final checkpoint" in done.stdout


@pytest.mark.parametrize(
    "flags", [["--batch_size", 3], ["--gradient_accumulation_steps", 2], ["--seed", 7]]
)
def test_with_another_layout_the_epoch_that_was_begun_begins_again(begin, record, capsys, flags):
    run, state = begin()
    name = stop_at(run, state, 2)
    del record[:]
    run, state = begin(*flags, "--resume_from_checkpoint", name)
    said = capsys.readouterr().out
    assert "epoch 1 begins again" in said and flags[0].lstrip("-") in said
    assert (state.epoch, state.epoch_step, state.step) == (0, 0, 2)
    train_an_epoch(run, state)
    assert sorted(clip for step in record for clip in step.clips) == sorted(run.train_set.paths)


def test_another_manifest_begins_the_epoch_again(begin, tiny_corpus, tmp_path, record):
    run, state = begin()
    name = stop_at(run, state, 2)
    del record[:]
    frame = pd.read_csv(tiny_corpus.train_manifest)
    grown = tiny_corpus._replace(train_manifest=tmp_path / "grown.csv")
    pd.concat([frame, frame[:4]]).to_csv(grown.train_manifest, index=False)
    run, state = begin("--resume_from_checkpoint", name, corpus=grown)
    train_an_epoch(run, state)
    assert len([clip for step in record for clip in step.clips]) == 13


@pytest.mark.slow
def test_more_processes_go_on_from_the_last_whole_epoch(begin, tiny_corpus, tmp_path):
    run, state = begin()
    name = stop_at(run, state, 2)
    flags = run_flags(tiny_corpus, tmp_path, "--resume_from_checkpoint", name)
    done = train([*flags, "--training_epochs", 1], processes=2)
    assert "--num_processes was 1 and is now 2" in done.stdout
    assert done.stdout.count("epoch 1 begins again") == 1, "only one process reports"
    history = read_state(run.folder / "final_checkpoint").history
    assert [row["step"] for row in history] == [2 + 3]
    states = [
        torch.load(run.folder / "final_checkpoint" / f"random_states_{i}.pkl", weights_only=False)
        for i in (0, 1)
    ]
    assert not torch.equal(*(x["torch_manual_seed"] for x in states))


def test_the_learning_rate_over_epochs_is_one_curve_whatever_the_batch(begin, record):
    def decayed(epochs):
        """1e-3 until epoch 1, then exponentially to 1e-5 at epoch 4."""
        return 1e-3 * 0.01 ** np.clip((epochs - 1) / 3, 0, 1)

    flags = ["--start_decay_epochs", 1, "--training_epochs", 4]
    run, state = begin(*flags)
    for _ in range(2):
        train_an_epoch(run, state)
    save_checkpoint(run, state, "checkpoint_2")
    np.testing.assert_allclose([step.lr for step in record], decayed(np.arange(10) / 5))
    for more, n_steps in (("--batch_size", 9), ("--batch_size", 3), ("--batch_size", 2)):
        del record[:]
        run, state = begin(*flags, more, n_steps, "--resume_from_checkpoint", "checkpoint_2")
        train_an_epoch(run, state)
        places = 2 + np.arange(len(record)) / len(record)
        np.testing.assert_allclose([step.lr for step in record], decayed(places))


@pytest.mark.slow
def test_extending_a_finished_run_prints_how_the_rate_jumps(begin, capsys):
    run, state = begin()
    train_taco.train(run, state)
    assert "learning rate:" not in capsys.readouterr().out
    flags = ["--resume_from_checkpoint", "latest", "--training_epochs", 8]
    run, state = begin(*flags)
    train_taco.train(run, state)
    assert "in the last step before this, 0.001 from here on" in capsys.readouterr().out


def test_flags_of_the_checkpoint_stay_unless_they_are_given_anew(begin, capsys):
    run, state = begin("--learning_rate", 5e-4, "--max_grad_norm", 0.5, "--keep_checkpoints", 3)
    name = stop_at(run, state, 1)
    capsys.readouterr()
    run, _ = begin("--max_grad_norm", 1, "--resume_from_checkpoint", name, bare=True)
    config, said = run.config, capsys.readouterr().out
    assert (config.learning_rate, config.max_grad_norm, config.keep_checkpoints) == (5e-4, 1.0, 3)
    assert run.model_config.attention_dim == 8, "sizes are the checkpoint's too"
    assert "--max_grad_norm was 0.5 and is now 1.0" in said and "--learning_rate" not in said
    file = run.folder / name / STATE_FILE
    content = json.loads(file.read_text())
    content["train_config"]["learning_rate"] = "fast"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"trainer_state.json: .*learning_rate is 'fast'"):
        begin("--resume_from_checkpoint", name)
    with pytest.raises(DataError, match=r"--attention_dim was 8 and is now 12; --min_db was -100"):
        content["train_config"]["learning_rate"] = 1e-3
        file.write_text(json.dumps(content))
        begin("--resume_from_checkpoint", name, "--attention_dim", 12, "--min_db", -80)


def test_optimizer_flags_that_have_changed_take_effect(begin):
    run, state = begin()
    name = stop_at(run, state, 2)
    flags = ["--weight_decay", 0.1, "--adam_eps", 1e-3, "--learning_rate", 5e-4]
    run, state = begin(*flags, "--resume_from_checkpoint", name)
    (group,) = run.optimizer.param_groups
    assert (group["weight_decay"], group["eps"]) == (0.1, 1e-3)
    stop_at(run, state, 3)
    assert run.optimizer.param_groups[0]["lr"] == 5e-4


def test_weights_that_share_one_memory_are_all_in_the_checkpoint(begin):
    """As cuDNN lays out those of an LSTM on a GPU."""
    run, state = begin()
    for lstm in (run.model.encoder.lstm, run.model.decoder.decoder_rnn):
        weights = [*lstm.parameters()]
        memory = torch.cat([weight.detach().flatten() for weight in weights])
        for weight, part in zip(weights, memory.split([w.numel() for w in weights]), strict=True):
            weight.data = part.view_as(weight)
    save_checkpoint(run, state, "checkpoint_1")
    expected = run.model.state_dict()
    saved = load_file(run.folder / "checkpoint_1" / "model.safetensors")
    assert saved.keys() == expected.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0, msg=name)


def test_fp16_resumes_a_run_without_it(begin):
    """With a loss scale of its own; accelerate would look for the other run's."""
    run, state = begin()
    name = stop_at(run, state, 1)
    scaler = run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    load_run_state(run, run.folder / name)
    assert run.accelerator.scaler is scaler and scaler.get_scale() == 512.0


@pytest.mark.parametrize("found", ["its own", "none", "another's"])
def test_best_checkpoint_is_believed_only_if_it_is_this_runs(begin, capsys, found):
    """A best epoch whose weights are elsewhere would keep every later one from being kept."""
    run, state = begin()
    state.epoch = state.best_epoch = 3
    state.history = [{"epoch": 3, "step": 15, "val_loss": 0.5, "free_running_score": 0.4}]
    save_checkpoint(run, state, "checkpoint_3")
    if found != "none":
        state.epoch = 3 if found == "its own" else 4
        save_checkpoint(run, state, "best_checkpoint")
    _, state = begin("--resume_from_checkpoint", "checkpoint_3")
    assert state.best_epoch == (3 if found == "its own" else 0)
    said = capsys.readouterr().out
    assert ("best_checkpoint is not this run's" in said) == (not state.best_epoch)


@pytest.mark.parametrize("flag", ["--path_to_val_manifest", "--free_running_clips"])
def test_best_checkpoint_is_replaced_when_other_clips_judge(begin, tiny_corpus, capsys, flag):
    run, state = begin()
    state.epoch = state.best_epoch = 3
    state.history = [{"epoch": 3, "step": 15, "val_loss": 0.5, "free_running_score": 0.4}]
    for name in ("checkpoint_3", "best_checkpoint"):
        save_checkpoint(run, state, name)
    value = tiny_corpus.train_manifest if flag == "--path_to_val_manifest" else 1
    _, state = begin("--resume_from_checkpoint", "checkpoint_3", flag, value)
    assert state.best_epoch == 0
    assert "best_checkpoint was the best on other clips" in capsys.readouterr().out
    same_clips = f"{tiny_corpus.test_manifest.parent}/./{tiny_corpus.test_manifest.name}"
    flags = ("--resume_from_checkpoint", "checkpoint_3", "--path_to_val_manifest", same_clips)
    assert begin(*flags)[1].best_epoch == 3


def test_another_runs_checkpoints_are_not_overwritten(begin, run_folder):
    """Nor those that someone has kept without what only resuming needs."""
    run, state = begin()
    save_checkpoint(run, state, "checkpoint_1")
    other = run_folder / "work" / "tiny" / "checkpoint_0"
    with pytest.raises(DataError, match="holds checkpoints already"):
        begin("--resume_from_checkpoint", other)
    (run.folder / "checkpoint_1" / STATE_FILE).unlink()
    for flags in ([], ["--resume_from_checkpoint", other]):
        with pytest.raises(DataError, match="holds checkpoints already"):
            begin(*flags)
    with pytest.raises(DataError, match="no checkpoint that can be read"):
        begin("--resume_from_checkpoint", "latest_or_new")


def test_another_runs_pictures_are_not_removed(begin, tmp_path):
    """Both runs have the same --experiment_name and --save_audio_gen."""
    run, state = begin()
    elsewhere = ["--working_directory", tmp_path / "elsewhere"]
    begin(*elsewhere)  # nothing is lost before the first checkpoint
    begin()
    save_checkpoint(run, state, "checkpoint_1")
    with pytest.raises(DataError, match=r"has pictures of the run in .*tiny; give another"):
        begin(*elsewhere)
    begin("--resume_from_checkpoint", "latest")


def test_flags_that_only_a_new_run_reads_are_said_to_be_unused(begin, run_folder, capsys):
    run, state = begin()
    name = stop_at(run, state, 1)
    warm = run_folder / "work" / "tiny" / "checkpoint_0"
    begin("--resume_from_checkpoint", name, "--warm_start", warm)
    assert f"--warm_start {warm} is not used: the run had begun already" in capsys.readouterr().out


def test_a_checkpoint_written_before_this_version_resumes(begin):
    """It says more than what is read today, and lacks the layout, the last rate and two flags."""
    run, state = begin()
    name = stop_at(run, state, 2)
    file = run.folder / name / STATE_FILE
    content = json.loads(file.read_text())
    for key in ("layout", "learning_rate", "speech_checked"):
        del content[key]
    del content["train_config"]["l1_weight"], content["train_config"]["stop_tail_frames"]
    content |= {"epoch_skipped": 0, "order_checksum": 7, "alignment_judged": True}
    content["train_config"] |= {"skip_nonfinite": False, "checkpoint_minutes": None}
    file.write_text(json.dumps(content))
    run, state = begin("--resume_from_checkpoint", name)
    assert (state.epoch, state.epoch_step, state.step) == (0, 0, 2)
    # the loss that the run has had
    assert run.config.l1_weight == run.config.stop_tail_frames == 0


def save_at(run, state, epoch: int, name: str | None = None) -> None:
    state.epoch = state.step = epoch
    state.history = [{"epoch": epoch, "step": epoch, "free_running_score": 0.0, "val_loss": 1.0}]
    save_checkpoint(run, state, name or f"checkpoint_{epoch}")


def test_a_clock_that_goes_back_does_not_cost_the_newest_checkpoint(begin, monkeypatch):
    run, state = begin("--keep_checkpoints", 1)
    save_at(run, state, 1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    for epoch in (2, 3):
        save_at(run, state, epoch)
    assert names_in(run.folder) == ["checkpoint_3"]
    assert find_run_checkpoint(run.folder, "latest").name == "checkpoint_3"


def test_the_newest_checkpoints_are_kept_and_only_those_of_a_run_are_touched(begin):
    """By when they were written, not by their epochs; and of those within an epoch, the last."""
    run, state = begin("--keep_checkpoints", 3)
    theirs = ["checkpoint_1_keep_this", "checkpoint_01", "my_checkpoint_1", ".writing_notes"]
    for name in theirs:
        (run.folder / name).mkdir(parents=True)
        (run.folder / name / STATE_FILE).touch()
    for epoch in (5, 6, 2):
        save_at(run, state, epoch)
    save_at(run, state, 6, "best_checkpoint")
    for step in (3, 4):
        save_at(run, state, 2, f"checkpoint_2_step_{step}")
    kept = ["best_checkpoint", "checkpoint_2", "checkpoint_2_step_4", "checkpoint_6"]
    assert names_in(run.folder) == sorted([*kept, *theirs])
    assert find_run_checkpoint(run.folder, "latest").name == "checkpoint_2_step_4"
    prune_checkpoints(run.folder, None)
    assert names_in(run.folder) == sorted([*kept, *theirs]), "without the flag all stay"
    begin("--overwrite")
    assert names_in(run.folder) == sorted(theirs)


def test_an_old_checkpoint_that_cannot_be_removed_stays_with_a_warning(begin, capsys, monkeypatch):
    """NFS, or Windows: the new one is safe, and the run goes on."""
    run, state = begin("--keep_checkpoints", 1)
    save_at(run, state, 1)

    def busy(source, target):
        if Path(source).name == "checkpoint_1":
            raise OSError(16, "Device or resource busy", str(source))
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", busy)
    save_at(run, state, 2)
    assert names_in(run.folder) == ["checkpoint_1", "checkpoint_2"]
    assert "an old checkpoint stays: " in capsys.readouterr().err


def test_a_broken_state_is_named_and_passed_over(begin, capsys):
    run, state = begin()
    for epoch in (1, 2):
        save_at(run, state, epoch)
    file = run.folder / "checkpoint_2" / STATE_FILE
    sound = json.loads(file.read_text())
    for content in ("{", "[]", json.dumps({**sound, "written_at": float("inf")}), ""):
        file.write_text(content)
        assert find_run_checkpoint(run.folder, "latest").name == "checkpoint_1"
        assert str(file) in capsys.readouterr().err
    shutil.rmtree(run.folder / "checkpoint_1")
    with pytest.raises(DataError, match="no checkpoint that can be read in"):
        begin("--resume_from_checkpoint", "latest_or_new")


def test_a_taken_folder_is_refused_and_latest_or_new_starts_and_goes_on(begin):
    run, state = begin("--resume_from_checkpoint", "latest_or_new")
    assert state.step == 0
    save_at(run, state, 1)
    with pytest.raises(
        DataError, match=r"--resume_from_checkpoint latest .*--overwrite would delete"
    ):
        begin()
    assert begin("--resume_from_checkpoint", "latest_or_new")[1].step == 1
    with pytest.raises(DataError, match="checkpoint_9: no checkpoint there or in"):
        begin("--resume_from_checkpoint", "checkpoint_9")


class Killed(BaseException):
    """In the place of SIGKILL: nothing catches it."""


def test_a_checkpoint_is_on_the_disk_before_its_name_and_the_old_one_until_then(begin, monkeypatch):
    run, state = begin()
    save_at(run, state, 1)
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
        save_at(run, state, 7, "checkpoint_1")
    written = run.folder / ".writing_checkpoint_1"
    assert len(list(written.iterdir())) >= 5 and set(done) == {written, *written.iterdir()}
    monkeypatch.setattr(os, "replace", replace)
    clear_remains(run.folder)
    assert names_in(run.folder) == ["checkpoint_1"]
    assert read_state(run.folder / "checkpoint_1").step == 1


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_it(begin, monkeypatch):
    run, state = begin()
    save_at(run, state, 1)
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


@pytest.fixture
def largest_file():
    """Sets the size in bytes at which writing a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_not_there(begin, tmp_path, largest_file):
    """Those of before are untouched. Fails in safetensors, in torch.save and in Python."""
    run, state = begin()
    train_taco.train_epoch(run, state)
    save_checkpoint(run, state, "checkpoint_1")
    saved = run.folder / "checkpoint_1"
    copy = shutil.copytree(saved, tmp_path / "copy")
    sizes = {path.name: path.stat().st_size for path in saved.iterdir()}
    for name in ("model.safetensors", "optimizer.bin", STATE_FILE):
        if name == STATE_FILE:
            state.history = [{"epoch": 0, "step": 0, "note": "x" * 2 * sizes["optimizer.bin"]}]
            largest_file(sizes["optimizer.bin"] + 1000)
        else:
            largest_file(sizes[name] // 2)
        for target in ("checkpoint_1", "checkpoint_2"):
            with pytest.raises(DataError, match=f"{target}: the checkpoint cannot be written"):
                save_checkpoint(run, state, target)
        assert names_in(run.folder) == ["checkpoint_1"], name
        assert differences(saved, copy) == []


def test_checkpoint_minutes_count_across_epochs(begin):
    """The clock does not begin anew with an epoch, or short epochs would never be saved."""
    run, state = begin("--checkpoint_minutes", 30)
    run.interrupt = SimpleNamespace(pending=False)
    for minutes, due in ((29, False), (31, True)):
        run.saved_at -= 60 * minutes
        train_an_epoch(run, state)  # its best_checkpoint sets the clock back
        run.saved_at -= 60 * minutes
        assert checkpoint_is_due(run) == due


@pytest.mark.slow
def test_a_second_run_is_refused_until_the_first_is_gone(tiny_corpus, tmp_path):
    """It touches nothing; after a kill it need not wait for the loader processes left behind."""
    flags = run_flags(tiny_corpus, tmp_path, "--training_epochs", 1)
    folder = tmp_path / "work" / "tiny"
    first = ForkedRun([*flags, "--num_workers", 2], before=partial(hold, 0))
    try:
        first.wait_for_line("held")
        before = names_in(folder)
        for more in ([], ["--overwrite"], ["--resume_from_checkpoint", "latest_or_new"]):
            second = train([*flags, *more], check=False)
            assert second.returncode == 1 and second.stderr.count("\n") == 1, second.stderr
            assert f"{folder}: another run is training there" in second.stderr
            assert names_in(folder) == before
    finally:
        first.kill()
    done = train([*flags, "--resume_from_checkpoint", "latest_or_new"])
    assert "checkpoint: " in done.stdout
    assert names_in(folder) == ["best_checkpoint", "checkpoint_1", "final_checkpoint"]


def test_a_folder_that_nothing_came_of_goes_again(tmp_path):
    folder = tmp_path / "work" / "tiny"
    with hold_folder(make_accelerator(), folder):
        assert names_in(folder) == [".lock"]
    assert names_in(tmp_path) == []
    with hold_folder(make_accelerator(), folder):
        (folder / "checkpoint_1").mkdir()
    assert names_in(folder) == ["checkpoint_1"]


def test_processes_that_do_not_see_the_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("training.processes.gather_object", lambda seen: [*seen, False])
    with pytest.raises(DataError, match="1 of 2 processes do not see"):
        refuse_separate_disks(make_accelerator(), tmp_path)
    assert names_in(tmp_path) == []
