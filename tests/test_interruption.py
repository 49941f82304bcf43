"""What a run leaves behind when it is stopped, killed or fed something broken."""

import fcntl
import gc
import json
import multiprocessing
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

import train_taco
import training.processes as processes
import training.validation as validation
from command_line.files import DataError
from fast.decoder import FastDecoder
from forked_run import ForkedRun, hold, train
from kill_and_resume import EVERY_STEP
from test_train_taco import REPO, assert_same_checkpoint, launcher_words, run_flags
from training.checkpoints import (
    TrainerState,
    clear_remains,
    find_checkpoint,
    list_changed_flags,
    list_checkpoints,
)
from training.config import parse_args
from training.processes import SECOND_SIGNAL_SECONDS, Interrupt, read_groups


@pytest.fixture(scope="module")
def many_steps(tiny_corpus, tmp_path_factory):
    """A manifest of 54 clips, so that there is time to interrupt, and a run of it to its end."""
    folder = tmp_path_factory.mktemp("many_steps")
    frame = pd.concat([pd.read_csv(tiny_corpus.train_manifest)] * 6)
    frame.to_csv(folder / "train.csv", index=False)
    corpus = tiny_corpus._replace(train_manifest=folder / "train.csv")
    train(run_flags(corpus, folder))
    return corpus, folder / "work" / "tiny" / "final_checkpoint"


def test_a_signal_ends_with_a_checkpoint_that_resumes_exactly(many_steps, tmp_path):
    corpus, straight = many_steps
    flags = run_flags(corpus, tmp_path, "--num_workers", 2)
    run = ForkedRun(flags, before=partial(hold, 10), pictures=True)
    run.wait_for_line("held")
    run.send_signal(signal.SIGINT)
    done = run.wait()
    assert done.returncode == 0, done.stderr
    assert "go on with --resume_from_checkpoint latest" in done.stdout
    assert "Traceback" not in done.stderr
    checkpoint = find_checkpoint(tmp_path / "work" / "tiny", "latest")
    assert checkpoint.name == "checkpoint_0_step_11", "the step is finished, and no other begun"
    film = tmp_path / "samples" / "alignment.gif"
    assert Image.open(film).n_frames == 4, "steps 0, 3, 6 and 10 of 27"
    assert f"pictures and wavs: {film.parent}" in done.stdout
    train([*flags, "--resume_from_checkpoint", "latest"])
    assert_same_checkpoint(tmp_path / "work" / "tiny" / "final_checkpoint", straight)


def test_two_processes_stop_together_and_resume_exactly(many_steps, tmp_path):
    """The signal goes to the launcher, which passes it to each process and its loaders."""
    flags = ["--training_epochs", 1, "--num_workers", 1]
    flags += ["--guided_attention_steps", 1, "--alignment_warning_steps", 2]
    straight = run_flags(many_steps[0], tmp_path / "straight", *flags)
    done = train(straight, processes=2)
    assert done.stdout.count("epoch 1 done") == 1, "only one process reports"
    assert done.stderr.count("attention has not begun to align") == 1, "only one process warns"
    flags = run_flags(many_steps[0], tmp_path / "stopped", *flags)
    process = subprocess.Popen(
        [sys.executable, "-u", *launcher_words(2), REPO / "tests" / "held_run.py", "3", *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    timer = threading.Timer(300, process.kill)
    timer.start()
    found = any("held" in line for line in process.stdout)
    timer.cancel()
    assert found, process.stderr.read()[-2000:]
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert output.count("go on with --resume_from_checkpoint latest") == 1, errors
    folder = tmp_path / "stopped" / "work" / "tiny"
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint_0_step_4"]
    train([*flags, "--resume_from_checkpoint", "latest"], processes=2)
    final = folder / "final_checkpoint"
    assert (final / "random_states_1.pkl").is_file()
    assert_same_checkpoint(final, tmp_path / "straight" / "work" / "tiny" / "final_checkpoint")


@pytest.mark.parametrize("to_all", [False, True])
def test_train_taco_sh_passes_a_signal_on_and_waits_for_the_checkpoint(
    many_steps, tmp_path, to_all
):
    """SIGTERM to the script alone, as `docker stop` sends it; Ctrl-C to all that it has started.

    accelerate's launcher dies of both when it has one process, and that process goes on.
    """
    flags = run_flags(many_steps[0], tmp_path, "--training_epochs", 1000, "--console_out_iters", 1)
    process = subprocess.Popen(
        ["bash", REPO / "train_taco.sh", *map(str, flags), "--no-log_wandb"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
             "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MIXED_PRECISION": "no"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    timer = threading.Timer(300, os.killpg, [process.pid, signal.SIGKILL])
    timer.start()
    try:
        assert any("step 5/" in line for line in process.stdout), process.stderr.read()[-2000:]
        os.killpg(process.pid, signal.SIGINT) if to_all else process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        (checkpoint,) = list_checkpoints(tmp_path / "work" / "tiny")
        assert f"checkpoint: {checkpoint}" in process.stdout.read()
        assert "Traceback" not in process.stderr.read()
    finally:
        timer.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@pytest.mark.usefixtures("handlers_of_signals")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once_unless_it_is_the_first_passed_on(monkeypatch, number):
    """A launcher passes a signal on that has reached every process already, within a moment."""
    seconds, ends = [100.0], []
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(processes.os, "_exit", ends.append)
    signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP would stay ignored
    interrupt = Interrupt()
    assert signal.getsignal(number) == interrupt.take_note and not interrupt.pending
    for moment in (100.0, 100.0 + SECOND_SIGNAL_SECONDS):
        seconds[0] = moment
        signal.raise_signal(number)
        assert interrupt.pending and ends == []
    seconds[0] += 0.01
    signal.raise_signal(number)
    assert ends == [128 + number]


def hold_stage(stage):
    """For a ForkedRun: one stage of validation waits in its first batch or decoder step.

    It prints "held" and waits for a signal. If any batch or decoder step of validation is begun
    after that, it prints "went on".
    """
    now = SimpleNamespace(stage=None, interrupt=None)
    judge_epoch = train_taco.judge_epoch

    def judge(*args):
        now.interrupt = args[-2]
        return judge_epoch(*args)

    def announce(name, function):
        def call(*args):
            now.stage = name
            return function(*args)

        return call

    def wait_within(function):
        def call(*args, **options):
            if now.interrupt and now.interrupt.pending:
                print("went on", flush=True)
            elif now.stage == stage:
                print("held", flush=True)
                end = time.monotonic() + 60
                while not now.interrupt.pending and time.monotonic() < end:
                    time.sleep(0.01)
            return function(*args, **options)

        return call

    train_taco.judge_epoch = judge
    validation.validate = announce("validating", validation.validate)
    validation.speak_freely = announce("speaking", validation.speak_freely)
    validation.draw_sample = announce("drawing", validation.draw_sample)
    validation.tacotron2_loss = wait_within(validation.tacotron2_loss)
    FastDecoder.run_steps = wait_within(FastDecoder.run_steps)


@pytest.fixture(scope="module")
def longer_validation(tiny_corpus, tmp_path_factory):
    """A manifest of 9 validation clips, and the end of an undisturbed run by so many processes."""
    folder = tmp_path_factory.mktemp("longer_validation")
    frame = pd.concat([pd.read_csv(tiny_corpus.test_manifest)] * 3)
    frame.to_csv(folder / "test.csv", index=False)
    corpus = tiny_corpus._replace(test_manifest=folder / "test.csv")

    @cache
    def run(processes):
        place = folder / str(processes)
        train(run_flags(corpus, place, "--training_epochs", 1), processes)
        return place / "work" / "tiny" / "final_checkpoint"

    return corpus, run


@pytest.fixture
def hangup(handlers_of_signals):
    """SIGHUP as a shell leaves it, also where these tests run under nohup, which ignores it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(
    ("stage", "number", "processes"),
    [
        ("validating", signal.SIGTERM, 1),
        ("speaking", signal.SIGHUP, 1),
        ("drawing", signal.SIGUSR1, 1),
        ("validating", signal.SIGTERM, 2),
        ("speaking", signal.SIGTERM, 2),
    ],
)
def test_a_signal_during_validation_ends_it_with_the_batch_or_decoder_step(
    longer_validation, tmp_path, stage, number, processes
):
    corpus, undisturbed = longer_validation
    flags = run_flags(corpus, tmp_path, "--training_epochs", 1)
    run = ForkedRun(flags, processes, partial(hold_stage, stage), pictures=stage == "drawing")
    run.wait_for_line("held", processes)
    run.send_signal(number)
    done = run.wait(20)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "went on" not in done.stdout
    assert done.stdout.count("go on with --resume_from_checkpoint latest") == 1, done.stderr
    folder = tmp_path / "work" / "tiny"
    assert [path.name for path in list_checkpoints(folder)] == [
        f"checkpoint_0_step_{3 if processes == 2 else 5}"
    ]
    train([*flags, "--resume_from_checkpoint", "latest"], processes)
    assert_same_checkpoint(folder / "final_checkpoint", undisturbed(processes))


@pytest.mark.usefixtures("hangup")
def test_closing_the_terminal_ends_with_a_checkpoint(many_steps, tmp_path):
    """What is printed after that has nowhere to go, which must not end the run first.

    Until then there is a bar with the losses, and no lines of them.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 160, 0, 0))  # room for the bar
    process = subprocess.Popen(
        [sys.executable, str(REPO / "train_taco.py"), *run_flags(many_steps[0], tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    bar = rb"\repoch 1/2: [^\r]* ([2-9]|1[0-9])/27 [^\r]*loss=\d+\.\d{3}, [^\r]*left=\d+:\d"
    while not re.search(bar, shown):  # the bar leaves some steps out
        shown += os.read(ours, 4096)
    os.close(ours)
    assert b"step 2/27" not in shown
    assert process.wait(timeout=60) == 0
    checkpoint = find_checkpoint(tmp_path / "work" / "tiny", "latest")
    assert 2 <= json.loads((checkpoint / "trainer_state.json").read_text())["epoch_step"] < 27


def test_one_process_that_votes_yes_is_enough():
    others = torch.tensor([0.0, 1.0, 0.0])
    accelerator = SimpleNamespace(
        num_processes=3, device=torch.device("cpu"), reduce=lambda votes, how: votes + others
    )
    assert processes.any_process(accelerator, True, False, False) == [True, True, False]


def test_nohup_is_respected(handlers_of_signals):
    for before in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGHUP, before)
        interrupt = Interrupt()
        assert (signal.getsignal(signal.SIGHUP) == interrupt.take_note) == (
            before == signal.SIG_DFL
        )


def test_kill_9_at_any_moment():
    """A short run of the script that a user can run for longer."""
    script = REPO / "tests" / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, script, "--times", "3", "--no_pictures"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills" in done.stdout and ", all with the same final checkpoint" in done.stdout


def test_a_kill_between_the_two_renamings_of_a_checkpoint_loses_neither(tmp_path):
    for name in ("best_checkpoint", "checkpoint_1"):
        (tmp_path / f".writing_replaced_{name}").mkdir()
        (tmp_path / f".writing_{name}").mkdir()
        (tmp_path / f".writing_replaced_{name}" / "old").touch()
    (tmp_path / "checkpoint_1").mkdir()
    (tmp_path / "checkpoint_1" / "new").touch()
    clear_remains(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "best_checkpoint", "best_checkpoint/old", "checkpoint_1", "checkpoint_1/new"
    ]  # fmt: skip


def test_flags_that_would_reorder_a_begun_epoch_are_refused(tmp_path):
    flags = {"batch_size": 2, "console_out_iters": 5, "seed": 42, "warm_start": "voice"}
    for epoch_step in (0, 3):
        state = TrainerState(1, epoch_step, 8, epoch_losses=[], history=[])
        content = {**state._asdict(), "train_config": flags}
        (tmp_path / "trainer_state.json").write_text(json.dumps(content))
        # A warm start is for new runs: that it is not given again changes nothing.
        changed = list_changed_flags(tmp_path, {**flags, "batch_size": 3, "warm_start": None})
        assert changed == ["--batch_size was 2 and is now 3"]
        if epoch_step == 0:
            assert list_changed_flags(tmp_path, {**flags, "seed": 43})
        else:
            with pytest.raises(DataError, match="--seed was 42 and is now 43"):
                list_changed_flags(tmp_path, {**flags, "seed": 43})


def test_a_loader_process_that_is_killed_ends_the_run_with_a_checkpoint(many_steps, tmp_path):
    corpus, _ = many_steps
    release = tmp_path / "release"
    flags = run_flags(corpus, tmp_path, "--num_workers", 2)
    run = ForkedRun(flags, before=partial(hold, 4, release))
    run.wait_for_line("held")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    release.touch()
    done = run.wait()
    assert done.returncode == 1, done.stderr
    message = [line for line in done.stderr.split("\n") if line.startswith("train_taco.py: ")]
    assert len(message) == 1 and "Traceback" not in done.stderr
    # Killed while it handed over a batch, it is not known which one it was.
    assert children[0] in message[0] or "a loader process exited" in message[0]
    checkpoint = find_checkpoint(tmp_path / "work" / "tiny", "latest")
    assert checkpoint.name in message[0] and "killed" in message[0]
    assert json.loads((checkpoint / "trainer_state.json").read_text())["epoch_step"] >= 4


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=str
)
def test_a_loader_process_that_dies_handing_over_a_batch_is_named(error):
    def batches():
        yield "first"
        raise error

    group, broken = read_groups(batches(), 1)
    assert group == ["first"] and isinstance(broken, DataError)
    assert str(broken) == ("a loader process exited unexpectedly; it was killed, or memory ran out")


def test_nothing_is_left_open_from_epoch_to_epoch(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    configs = parse_args(run_flags(tiny_corpus, tmp_path, "--num_workers", 6), "")
    run, state = train_taco.prepare(configs, Accelerator())
    counts, loaders = [], []
    for _ in range(2):
        state, _ = train_taco.train_epoch(run, state, time.monotonic())
        state = train_taco.finish_epoch(run, state)
        gc.collect()
        n_figures = sum(issubclass(type(thing), Figure) for thing in gc.get_objects())
        n_files = len(list(Path("/proc/self/fd").iterdir()))
        counts.append((n_figures, n_files))
        loaders.append({process.pid for process in multiprocessing.active_children()})
    assert counts[0] == counts[1]
    assert pyplot.get_fignums() == []
    assert loaders[0] == loaders[1], "started once, not in every epoch"
    assert len(loaders[0]) == 6 + 4, "validation has 4 at most"
    del run
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("which", ["train_loader", "val_loader"])
def test_a_loader_process_that_dies_between_two_epochs_is_named(
    tiny_corpus, tmp_path, monkeypatch, which
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    configs = parse_args(run_flags(tiny_corpus, tmp_path, "--num_workers", 2), "")
    run, state = train_taco.prepare(configs, Accelerator())
    loader = getattr(run, which)
    for group in read_groups(loader, 1):
        assert not isinstance(group, DataError)
    killed = loader._iterator._workers[1]
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    (broken,) = read_groups(loader, 1)
    assert isinstance(broken, DataError) and str(killed.pid) in str(broken)
    assert "exited unexpectedly; it was killed, or memory ran out" in str(broken)
    if which == "train_loader":
        with pytest.raises(DataError, match="checkpoint_0_step_0 holds the run before it"):
            train_taco.train_epoch(run, state, time.monotonic())


def test_checkpoint_minutes_count_across_epochs(tiny_corpus, tmp_path, monkeypatch):
    """The clock does not begin anew with an epoch, or short epochs would never be saved."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    configs = parse_args(run_flags(tiny_corpus, tmp_path, "--checkpoint_minutes", 30), "")
    run, state = train_taco.prepare(configs, Accelerator())
    for age, names in ((29 * 60, []), (31 * 60, ["checkpoint_0_step_0"])):
        begun = time.monotonic() - age
        _, saved_at = train_taco.train_epoch(run, state, begun)
        assert [path.name for path in list_checkpoints(run.folder)] == names
        assert (saved_at == begun) == (not names)


def test_only_the_newest_checkpoints_are_kept(many_steps, tmp_path):
    corpus, _ = many_steps
    flags = ["--checkpoint_minutes", EVERY_STEP, "--keep_checkpoints", 2, "--training_epochs", 1]
    train(run_flags(corpus, tmp_path, *flags))
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
    done = train(run_flags(corpus, tmp_path, "--num_workers", n_workers), check=False)
    assert done.returncode != 0
    message = next(line for line in done.stderr.split("\n") if line.startswith("train_taco.py: "))
    assert message.startswith(f"train_taco.py: {broken}: ")
    assert list_checkpoints(tmp_path / "work" / "tiny")
