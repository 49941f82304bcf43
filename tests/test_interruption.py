"""What a run leaves behind when it is stopped, killed or fed something broken."""

import fcntl
import functools
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
import time
from pathlib import Path

import pandas as pd
import pytest
from accelerate import Accelerator
from matplotlib import pyplot
from matplotlib.figure import Figure

import train_taco
from checkpoints import (
    TrainerState,
    clear_remains,
    find_checkpoint,
    list_changed_flags,
    list_checkpoints,
)
from config import parse_args
from dataset import DataError
from test_train_taco import REPO, assert_same_checkpoint, launch, launcher_words, run_flags
from training_run import Interrupt, read_groups


def start(flags, script=(str(REPO / "train_taco.py"),)):
    """train_taco.py itself, without a launcher between it and the signals, or another script."""
    command = [sys.executable, "-u", *script, *flags]
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


def test_two_processes_stop_together_and_resume_exactly(many_steps, tmp_path):
    """The signal goes to the launcher, which passes it to each process and its loaders."""
    flags = ["--training_epochs", 1, "--num_workers", 1]
    flags += ["--guided_attention_steps", 1, "--alignment_warning_steps", 2]
    straight = run_flags(many_steps[0], tmp_path / "straight", *flags)
    done = launch(straight, processes=2)
    assert done.stdout.count("epoch 1 done") == 1, "only one process reports"
    assert done.stderr.count("attention has not begun to align") == 1, "only one process warns"
    flags = run_flags(many_steps[0], tmp_path / "stopped", *flags)
    process = start(flags, [*launcher_words(2), str(REPO / "train_taco.py")])
    wait_for_line(process, "step 4/14")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=180)
    assert output.count("go on with --resume_from_checkpoint latest") == 1, errors
    folder = tmp_path / "stopped" / "work" / "tiny"
    assert [path.name[:18] for path in list_checkpoints(folder)] == ["checkpoint_0_step_"]
    launch([*flags, "--resume_from_checkpoint", "latest"], processes=2)
    final = folder / "final_checkpoint"
    assert (final / "random_states_1.pkl").is_file()
    assert_same_checkpoint(final, tmp_path / "straight" / "work" / "tiny" / "final_checkpoint")


SLOW_STEP = """
import sys, time
import train_taco

def train_step(*_):
    print("in a step", flush=True)
    time.sleep(600)

train_taco.train_step = train_step
train_taco.main(sys.argv[1:])
"""


def test_a_second_signal_ends_at_once_unless_it_is_the_first_passed_on(tiny_corpus, tmp_path):
    process = start(run_flags(tiny_corpus, tmp_path), ["-c", SLOW_STEP])
    wait_for_line(process, "in a step")
    for _ in range(2):  # a launcher passes a signal on that has reached every process already
        process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert process.poll() is None, "the step is finished first"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "work" / "tiny").iterdir()] == [".lock"]


SLOW_VALIDATION = f"""
import sys, time
sys.path.insert(0, {str(REPO)!r})
import train_taco, validation
from model import Decoder

slow_stage, *flags = sys.argv[1:]
is_slow = False

def announce(stage, function):
    def call(*args):
        global is_slow
        is_slow = stage == slow_stage
        if is_slow:
            print("now " + stage, flush=True)
        return function(*args)
    return call

def slow_down(seconds, function):
    def call(*args, **options):
        time.sleep(seconds * is_slow)
        return function(*args, **options)
    return call

validation.validate = announce("validating", validation.validate)
validation.speak_freely = announce("speaking", validation.speak_freely)
validation.draw_sample = announce("drawing", validation.draw_sample)
validation.forward_losses = slow_down(5.0, validation.forward_losses)
Decoder.steps = slow_down(0.3, Decoder.steps)
train_taco.main(flags)
"""


@pytest.fixture(scope="module")
def longer_validation(tiny_corpus, tmp_path_factory):
    """A manifest of 24 validation clips, and the end of an undisturbed run by so many processes."""
    folder = tmp_path_factory.mktemp("longer_validation")
    frame = pd.concat([pd.read_csv(tiny_corpus.test_manifest)] * 8)
    frame.to_csv(folder / "test.csv", index=False)
    corpus = tiny_corpus._replace(test_manifest=folder / "test.csv")

    @functools.cache
    def run(processes):
        place = folder / str(processes)
        launch(run_flags(corpus, place, "--training_epochs", 1), processes)
        return place / "work" / "tiny" / "final_checkpoint"

    return corpus, run


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
def test_a_signal_during_a_slow_validation_ends_within_seconds(
    longer_validation, tmp_path, stage, number, processes
):
    corpus, undisturbed = longer_validation
    script = tmp_path / "slow_validation.py"
    script.write_text(SLOW_VALIDATION)
    flags = run_flags(corpus, tmp_path, "--training_epochs", 1)
    words = launcher_words(processes) if processes > 1 else []
    process = start(flags, [*words, str(script), stage])
    wait_for_line(process, f"now {stage}")
    time.sleep(1)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)  # where the stage would take 30 or more
    assert output.count("go on with --resume_from_checkpoint latest") == 1, errors
    assert "Traceback" not in errors or processes > 1  # the launcher's own
    folder = tmp_path / "work" / "tiny"
    assert [path.name for path in list_checkpoints(folder)] == [
        f"checkpoint_0_step_{3 if processes == 2 else 5}"
    ]
    launch([*flags, "--resume_from_checkpoint", "latest"], processes)
    assert_same_checkpoint(folder / "final_checkpoint", undisturbed(processes))


def test_closing_the_terminal_ends_with_a_checkpoint(many_steps, tmp_path):
    """What is printed after that has nowhere to go, which must not end the run first."""
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
    while not re.search(rb" ([2-9]|1[0-9])/27 ", shown):  # the bar leaves some steps out
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    checkpoint = find_checkpoint(tmp_path / "work" / "tiny", "latest")
    assert 2 <= json.loads((checkpoint / "trainer_state.json").read_text())["epoch_step"] < 27


def test_nohup_is_respected():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        for before in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGHUP, before)
            interrupt = Interrupt()
            assert (signal.getsignal(signal.SIGHUP) == interrupt.take_note) == (
                before == signal.SIG_DFL
            )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_kill_9_at_any_moment():
    """A short run of the script that a user can run for longer."""
    command = [sys.executable, str(REPO / "tests" / "kill_and_resume.py"), "--times", "2"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout and "all with the same final checkpoint" in done.stdout


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
    flags = {"batch_size": 2, "console_out_iters": 5, "seed": 42}
    for epoch_step in (0, 3):
        state = TrainerState(1, epoch_step, 8, epoch_losses=[], history=[])
        content = {**state._asdict(), "train_config": flags}
        (tmp_path / "trainer_state.json").write_text(json.dumps(content))
        changed = list_changed_flags(tmp_path, {**flags, "console_out_iters": 3})
        assert changed == ["--console_out_iters was 5 and is now 3"]
        if epoch_step == 0:
            assert list_changed_flags(tmp_path, {**flags, "batch_size": 3})
        else:
            with pytest.raises(DataError, match="--batch_size was 2 and is now 3"):
                list_changed_flags(tmp_path, {**flags, "batch_size": 3})


def test_a_loader_process_that_is_killed_ends_the_run_with_a_checkpoint(many_steps, tmp_path):
    corpus, _ = many_steps
    process = start(run_flags(corpus, tmp_path, "--num_workers", 2))
    wait_for_line(process, "step 4/27")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    message = [line for line in errors.split("\n") if line.startswith("train_taco.py: ")]
    assert len(message) == 1 and "Traceback" not in errors
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
    configs = parse_args(run_flags(tiny_corpus, tmp_path, "--num_workers", 1), "")
    run, state = train_taco.prepare(configs, Accelerator(step_scheduler_with_optimizer=False))
    counts = []
    for _ in range(2):
        state, _ = train_taco.train_epoch(run, state, time.monotonic())
        state = train_taco.finish_epoch(run, state)
        gc.collect()
        n_figures = sum(issubclass(type(thing), Figure) for thing in gc.get_objects())
        n_files = len(list(Path("/proc/self/fd").iterdir()))
        counts.append((n_figures, n_files, len(multiprocessing.active_children())))
    assert counts[0] == counts[1] and counts[0][2] == 0
    assert pyplot.get_fignums() == []


def test_checkpoint_minutes_count_across_epochs(tiny_corpus, tmp_path, monkeypatch):
    """The clock does not begin anew with an epoch, or short epochs would never be saved."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    configs = parse_args(run_flags(tiny_corpus, tmp_path, "--checkpoint_minutes", 30), "")
    run, state = train_taco.prepare(configs, Accelerator(step_scheduler_with_optimizer=False))
    for age, names in ((29 * 60, []), (31 * 60, ["checkpoint_0_step_0"])):
        begun = time.monotonic() - age
        _, saved_at = train_taco.train_epoch(run, state, begun)
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
