"""A run that is stopped or that fails: signals, lost processes, broken clips, numbers, memory."""

import fcntl
import gc
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
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

import train_taco
import training.processes as processes
import training.validation as validation
from command_line.files import DataError
from conftest import REPO
from forked_run import ForkedRun, hold, train
from kill_and_resume import differences
from runs import ON_CPU, run_flags
from training.checkpoints import find_run_checkpoint, list_checkpoints, read_state
from training.processes import SECOND_SIGNAL_SECONDS, Interrupt, make_accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@pytest.fixture(scope="module")
def many_steps(tiny_corpus, tmp_path_factory):
    """A manifest of 54 clips, so that there is time to interrupt, and a run of it to its end."""
    folder = tmp_path_factory.mktemp("many_steps")
    frame = pd.concat([pd.read_csv(tiny_corpus.train_manifest)] * 6)
    frame.to_csv(folder / "train.csv", index=False)
    corpus = tiny_corpus._replace(train_manifest=folder / "train.csv")
    train(run_flags(corpus, folder))
    return corpus, folder / "work" / "tiny" / "final_checkpoint"


@pytest.mark.slow
def test_a_signal_ends_with_a_checkpoint_that_resumes_exactly(many_steps, tmp_path):
    corpus, straight = many_steps
    flags = run_flags(corpus, tmp_path, "--num_workers", 2)
    run = ForkedRun(flags, before=partial(hold, 10), pictures=True)
    run.wait_for_line("held")
    run.send_signal(signal.SIGINT)
    done = run.wait()
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "go on with --resume_from_checkpoint latest" in done.stdout
    checkpoint = find_run_checkpoint(tmp_path / "work" / "tiny", "latest")
    assert checkpoint.name == "checkpoint_0_step_11", "the step is finished, and no other begun"
    film = tmp_path / "samples" / "tiny" / "alignment.gif"
    assert Image.open(film).n_frames == 4, "steps 0, 3, 6 and 10 of 27"
    train([*flags, "--resume_from_checkpoint", "latest"])
    assert differences(tmp_path / "work" / "tiny" / "final_checkpoint", straight) == []


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_exactly(many_steps, tmp_path):
    """Also where the signal reaches one of them only."""
    flags = ["--training_epochs", 1, "--num_workers", 1]
    train(run_flags(many_steps[0], tmp_path / "straight", *flags), processes=2)
    flags = run_flags(many_steps[0], tmp_path / "stopped", *flags)
    run = ForkedRun(flags, 2, before=partial(hold, 3, tmp_path / "release"))
    run.wait_for_line("held", 2)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    (tmp_path / "release").touch()
    done = run.wait()
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("go on with --resume_from_checkpoint latest") == 1
    checkpoints = tmp_path / "stopped" / "work" / "tiny"
    assert [path.name for path in list_checkpoints(checkpoints)] == ["checkpoint_0_step_4"]
    train([*flags, "--resume_from_checkpoint", "latest"], processes=2)
    straight = tmp_path / "straight" / "work" / "tiny" / "final_checkpoint"
    assert differences(checkpoints / "final_checkpoint", straight) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once_unless_it_is_the_first_passed_on(
    monkeypatch, handlers_of_signals, number
):
    """A launcher passes a signal on that has reached every process already, within a moment."""
    seconds, ends = [100.0], []
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(processes.os, "_exit", ends.append)
    signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP would stay ignored
    interrupt = Interrupt()
    assert not interrupt.pending
    for moment in (100.0, 100.0 + SECOND_SIGNAL_SECONDS):
        seconds[0] = moment
        signal.raise_signal(number)
        assert interrupt.pending and ends == []
    seconds[0] += 0.01
    signal.raise_signal(number)
    assert ends == [128 + number]


def test_nohup_is_respected(handlers_of_signals):
    for before in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGHUP, before)
        Interrupt()
        assert (signal.getsignal(signal.SIGHUP) == signal.SIG_IGN) == (before == signal.SIG_IGN)


@pytest.mark.slow
def test_closing_the_terminal_ends_with_a_checkpoint(many_steps, tmp_path, handlers_of_signals):
    """What is printed after that has nowhere to go, which must not end the run first.

    Until then there is a bar with the losses, and no lines of them.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 160, 0, 0))  # room for the bar
    process = subprocess.Popen(
        [sys.executable, str(REPO / "train_taco.py"), *run_flags(many_steps[0], tmp_path)],
        env=os.environ | ON_CPU,
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
    checkpoint = find_run_checkpoint(tmp_path / "work" / "tiny", "latest")
    assert 2 <= read_state(checkpoint).epoch_step < 27


PRINTS = """
import sys
from command_line.main import say, script

@script
def main(argv=None):
    for _ in range(100):
        for stream in (sys.stdout, sys.stderr):
            say("step 1/5", "." * 200, file=stream)
    open(sys.argv[1], "w").write("went on")

main()
"""


@pytest.mark.parametrize("what", ["full disk", "closed pipe"])
def test_output_that_cannot_be_written_does_not_end_a_run(tmp_path, what):
    """A log on another disk than the checkpoints; `| tee` that a hangup has killed as well."""
    reader, writer = os.pipe()
    os.close(reader)
    (tmp_path / "prints.py").write_text(PRINTS)
    with open("/dev/full" if what == "full disk" else writer, "w") as output:
        subprocess.run(
            [sys.executable, tmp_path / "prints.py", tmp_path / "end"],
            env={**os.environ, "PYTHONPATH": str(REPO)}, stdout=output, stderr=output, check=True,
        )  # fmt: skip
    assert (tmp_path / "end").read_text() == "went on"


@pytest.mark.slow
def test_a_loader_process_that_is_killed_ends_the_run_with_a_sentence(many_steps, tmp_path):
    flags = run_flags(many_steps[0], tmp_path, "--num_workers", 2)
    run = ForkedRun(flags, before=partial(hold, 4, tmp_path / "release"))
    run.wait_for_line("held")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    (tmp_path / "release").touch()
    done = run.wait()
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "a loader process was killed, or memory ran out" in done.stderr


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_clip_that_breaks_is_named(begin, tiny_corpus, tmp_path, n_workers):
    shutil.copytree(tiny_corpus.wavs, tmp_path / "wavs")
    frame = pd.read_csv(tiny_corpus.train_manifest)
    frame["file_path"] = [str(tmp_path / "wavs" / Path(x).name) for x in frame["file_path"]]
    frame.to_csv(tmp_path / "train.csv", index=False)
    corpus = tiny_corpus._replace(train_manifest=tmp_path / "train.csv")
    run, state = begin("--num_workers", n_workers, corpus=corpus)
    broken = Path(frame["file_path"][4])
    broken.write_bytes(b"RIFF")
    with pytest.raises(DataError) as error:
        train_taco.train_epoch(run, state)
    assert str(error.value).startswith(f"{broken}: ") and "\n" not in str(error.value)


@pytest.fixture
def spoil(monkeypatch):
    """Makes the third step of a run fail; returns the paths of its clips."""

    def spoil(run, error: Exception | float) -> list[str]:
        train_loss, calls, paths = train_taco.tacotron2_loss, iter(range(100)), []

        def spoilt(output, *rest, **options):
            losses = train_loss(output, *rest, **options)
            if next(calls) != 2:
                return losses
            if isinstance(error, Exception):
                raise error
            return losses | {"loss": losses["loss"] * error}

        monkeypatch.setattr(train_taco, "tacotron2_loss", spoilt)
        run.train_loader.batch_sampler.set_epoch(0)
        paths = [run.train_set.paths[i] for i in list(run.train_loader.batch_sampler)[2]]
        return paths

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(begin, spoil, value):
    run, state = begin()
    paths = spoil(run, value)
    with pytest.raises(
        DataError, match=r"^step 3: the loss or its gradient is not finite"
    ) as error:
        train_taco.train_epoch(run, state)
    assert all(path in str(error.value) for path in paths)
    assert all(weight.isfinite().all() for weight in run.model.parameters()), "no update is made"


def test_a_gradient_that_is_not_finite_ends_the_run(begin):
    run, state = begin()
    weight = run.model.encoder.embedding.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(DataError, match=r"^step 1: the loss or its gradient is not finite"):
        train_taco.train_epoch(run, state)


def test_fp16_skips_a_step_whose_gradient_overflows(begin, monkeypatch):
    """With the loss scaling of a GPU, which accelerate gives no CPU."""
    accelerator = make_accelerator()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator.native_amp = True
    monkeypatch.setattr("runs.make_accelerator", lambda: accelerator)
    run, state = begin()
    backwards = iter(range(100))
    run.model.encoder.embedding.weight.register_hook(
        lambda gradient: gradient * (torch.inf if next(backwards) == 1 else 1.0)
    )
    train_taco.train_epoch(run, state)
    assert state.step == 5 and accelerator.scaler.get_scale() == 512.0
    assert all(weight.isfinite().all() for weight in run.model.parameters())


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
@pytest.mark.parametrize("place", ["forward", "optimizer"])
def test_memory_that_runs_out_is_a_sentence(begin, spoil, error, place):
    """In the forward pass, or in Adam's first step, where its moments are made."""
    run, state = begin()
    if place == "forward":
        spoil(run, error)
    else:
        run.optimizer.step = lambda: (_ for _ in ()).throw(error)
    sentence = r"^memory ran out in step \d, on 2 clips of up to \d+ frames and \d+ characters; "
    with pytest.raises(DataError, match=sentence + "lower --batch_size, now 2, and raise"):
        train_taco.train_epoch(run, state)


def test_memory_that_runs_out_in_a_validation_is_a_sentence(begin, monkeypatch):
    def fail(run):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(validation, "score_free_running", fail)
    run, _ = begin("--free_running_clips", 3)
    with pytest.raises(DataError, match=r"validation of epoch 1; lower --free_running_clips, now"):
        validation.validate(run, 1)


def test_what_only_shows_can_never_end_a_run(tiny_corpus, tmp_path, monkeypatch, capsys, begin):
    """Pictures, sounds, the film, the console and a tracker, whatever they raise."""
    begin()  # no pictures, and signal handlers that are undone
    train_taco.main(run_flags(tiny_corpus, tmp_path / "free"))

    def fail(*_, **__):
        raise KeyError("a defect")

    for name in ("draw_sample", "save_figure"):
        monkeypatch.setattr(validation, name, fail)
    monkeypatch.setattr("training.progress.Progress.print_means", fail)
    monkeypatch.setattr("training.pictures.write_frame", fail)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fail))
    train_taco.main(run_flags(tiny_corpus, tmp_path / "failing", "--log_wandb"))
    said = capsys.readouterr().err
    assert "a defect" in said and "Traceback" not in said and "without wandb" in said
    finals = [tmp_path / name / "work/tiny/final_checkpoint" for name in ("free", "failing")]
    assert differences(*finals) == []


@pytest.mark.slow
def test_nothing_is_left_open_from_epoch_to_epoch(monkeypatch, begin):
    run, state = begin("--num_workers", 6)
    monkeypatch.undo()  # with pictures
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    counts, loaders = [], []
    for _ in range(2):
        train_taco.train_epoch(run, state)
        train_taco.finish_epoch(run, state)
        gc.collect()
        n_figures = sum(issubclass(type(thing), Figure) for thing in gc.get_objects())
        counts.append((n_figures, len(list(Path("/proc/self/fd").iterdir()))))
        loaders.append({process.pid for process in multiprocessing.active_children()})
    assert counts[0] == counts[1]
    assert pyplot.get_fignums() == []
    assert loaders[0] == loaders[1], "started once, not in every epoch"
    assert len(loaders[0]) == 6 + 4, "validation has 4 at most"
