"""What a run leaves behind when it is stopped, killed or fed something broken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from accelerate import Accelerator

import train_taco
from checkpoints import find_checkpoint, list_checkpoints
from config import parse_args
from test_train_taco import REPO, assert_same_checkpoint, launch, run_flags


def start(flags):
    """train_taco.py itself, without a launcher between it and the signals."""
    command = [sys.executable, "-u", str(REPO / "train_taco.py"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        command, cwd=REPO, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_line(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} never came: {process.stderr.read()[-2000:]}")


@pytest.fixture(scope="module")
def many_steps(tiny_corpus, tmp_path_factory):
    """A manifest of 54 clips, so that there is time to interrupt, and a run of it to its end."""
    folder = tmp_path_factory.mktemp("many_steps")
    frame = pd.concat([pd.read_csv(tiny_corpus.train_manifest)] * 6)
    frame.to_csv(folder / "train.csv", index=False)
    corpus = tiny_corpus._replace(train_manifest=folder / "train.csv")
    launch(run_flags(corpus, folder))
    return corpus, folder / "work" / "tiny" / "final_checkpoint"


@pytest.mark.parametrize(
    ("number", "n_workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2), (signal.SIGUSR1, 0)]
)
def test_a_signal_ends_with_a_checkpoint_that_resumes_exactly(
    many_steps, tmp_path, number, n_workers
):
    corpus, straight = many_steps
    flags = run_flags(corpus, tmp_path, "--num_workers", n_workers)
    process = start(flags)
    wait_for_line(process, "step 10/27")
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "go on with --resume_from_checkpoint latest" in output and "Traceback" not in errors
    checkpoint = find_checkpoint(tmp_path / "work" / "tiny", "latest")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert 10 <= state["epoch_step"] < 27 and state["epoch"] == 0
    launch([*flags, "--resume_from_checkpoint", "latest"])
    assert_same_checkpoint(tmp_path / "work" / "tiny" / "final_checkpoint", straight)


def test_kill_9_leaves_the_checkpoint_before_it(many_steps, tmp_path):
    corpus, straight = many_steps
    flags = run_flags(corpus, tmp_path, "--checkpoint_minutes", 0.002)
    process = start(flags)
    wait_for_line(process, "step 16/27")
    process.kill()
    process.communicate()
    folder = tmp_path / "work" / "tiny"
    assert list_checkpoints(folder), "a checkpoint fell due before step 16"
    resume = [*run_flags(corpus, tmp_path), "--resume_from_checkpoint", "latest"]
    refused = launch([*resume, "--batch_size", "3"], check=False)
    assert refused.returncode != 0 and "--batch_size was 2 and is now 3" in refused.stderr
    done = launch([*resume, "--console_out_iters", "3"])
    assert "--console_out_iters was 2 and is now 3" in done.stdout
    assert_same_checkpoint(folder / "final_checkpoint", straight)


def test_checkpoint_minutes_count_across_epochs(tiny_corpus, tmp_path, monkeypatch):
    """The clock does not begin anew with an epoch, or short epochs would never be saved."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    configs = parse_args(run_flags(tiny_corpus, tmp_path, "--checkpoint_minutes", 30), "")
    run, state = train_taco.prepare(configs, Accelerator(step_scheduler_with_optimizer=False))
    quiet = SimpleNamespace(pending=False)
    for age, names in ((29 * 60, []), (31 * 60, ["checkpoint_0_step_0"])):
        begun = time.monotonic() - age
        _, saved_at = train_taco.train_epoch(run, state, quiet, begun)
        assert [path.name for path in list_checkpoints(run.folder)] == names
        assert (saved_at == begun) == (not names)


def test_only_the_newest_checkpoints_are_kept(many_steps, tmp_path):
    corpus, _ = many_steps
    flags = ["--checkpoint_minutes", 0.0001, "--keep_checkpoints", 2, "--training_epochs", 1]
    launch(run_flags(corpus, tmp_path, *flags))
    names = [path.name for path in list_checkpoints(tmp_path / "work" / "tiny")]
    names.remove("best_checkpoint")
    assert names == ["checkpoint_0_step_26", "checkpoint_1", "final_checkpoint"]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_clip_that_breaks_is_named_and_the_run_ends_with_a_checkpoint(
    tiny_corpus, tmp_path, n_workers
):
    wavs = tmp_path / "wavs"
    shutil.copytree(tiny_corpus.wavs, wavs)
    frame = pd.read_csv(tiny_corpus.train_manifest)
    frame["file_path"] = [str(wavs / Path(path).name) for path in frame["file_path"]]
    frame.to_csv(tmp_path / "train.csv", index=False)
    broken = wavs / Path(frame["file_path"][4]).name
    broken.write_bytes(b"RIFF")
    corpus = tiny_corpus._replace(train_manifest=tmp_path / "train.csv")
    done = launch(run_flags(corpus, tmp_path, "--num_workers", n_workers), check=False)
    assert done.returncode != 0
    message = next(line for line in done.stderr.split("\n") if line.startswith("train_taco.py: "))
    assert str(broken) in message
    assert list_checkpoints(tmp_path / "work" / "tiny")


def test_resuming_with_another_model_lists_the_differences(many_steps, tmp_path):
    corpus, straight = many_steps
    flags = ["--resume_from_checkpoint", straight, "--attention_dim", 12, "--min_db", -80]
    done = launch(run_flags(corpus, tmp_path, *flags), check=False)
    assert done.returncode != 0
    assert "--attention_dim was 8 and is now 12" in done.stderr
    assert "--min_db was -100.0 and is now -80.0" in done.stderr
