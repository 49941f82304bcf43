"""What a run prints and hands to its trackers, on values that are told from each other."""

import re
from dataclasses import fields
from types import SimpleNamespace

import pytest

import training.progress as progress
from scoring.text_match import FAIR
from training.config import TrainConfig
from training.progress import (
    Progress,
    describe_missing_speech,
    warning_is_due,
)
from training.state import TrainerState

STEPS = (  # seconds, loss, stop_loss, n_frames
    (1.0, 1.0, 0.5, 100.0), (3.0, 2.0, 0.25, 300.0), (2.0, 4.0, 2.0, 500.0), (5.0, 3.0, 1.0, 200.0),
    (1.0, 5.0, 4.0, 100.0), (1.0, 7.0, 8.0, 1100.0),
)  # fmt: skip


@pytest.fixture
def show_steps(monkeypatch):
    """Show steps 25 to 30 of a run, 5 to 10 of the third of five epochs, by a clock set by hand."""

    def show_steps(is_main: bool = True) -> tuple[Progress, list[tuple]]:
        now, logged = [50.0], []
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        config = TrainConfig(*"wstv", training_epochs=5, console_out_iters=3, wandb_log_iters=2)
        shown = Progress(config, is_main)
        shown.tracking = SimpleNamespace(
            trackers={"one": None}, log_step=lambda *what: logged.append(what)
        )
        shown.begin_epoch(2, 4, 10)
        for i, (seconds, loss, stop_loss, n_frames) in enumerate(STEPS, start=5):
            now[0] += seconds
            losses = {"loss": loss, "stop_loss": stop_loss, "grad_norm": i, "n_frames": n_frames}
            state = TrainerState(epoch=2, epoch_step=i, step=20 + i, learning_rate=i / 1000)
            shown.show(state, losses)
        shown.end_epoch()
        return shown, logged

    return show_steps


def test_console_and_trackers_each_get_means_since_their_last_time(show_steps, capsys):
    """And the speed; the time left is from all of this epoch's steps.

    Steps 26, 28 and 30 go to the trackers, 27 and 30 to the console. At step 27, 3 steps have taken
    6 s and 23 are left; at step 30, 6 have taken 13 s and 20 are left.
    """
    _, logged = show_steps()
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "epoch 3  step 7/10  loss 2.333  stop 0.917  frames/s 150  left 0:00:46",
        "epoch 3  step 10/10  loss 5.000  stop 4.333  frames/s 200  left 0:00:43",
    ]
    assert said.err == ""
    names = ("loss", "stop_loss", "grad_norm", "frames_per_second", "learning_rate")
    assert logged == [  # values, step, epochs
        (dict(zip(names, values, strict=True)), step, 2 + (step - 20) / 10)
        for step, values in {
            26: (1.5, 0.375, 5.5, 100.0, 0.006),
            28: (3.5, 1.5, 7.5, 100.0, 0.008),
            30: (6.0, 6.0, 9.5, 600.0, 0.01),
        }.items()
    ]
    assert show_steps(is_main=False)[1] == [] and capsys.readouterr() == ("", "")


def test_a_run_that_says_nothing_is_told_so_once_it_could_speak():
    for weight, steps, due in ((5.0, 2000, 2300), (0.0, 2000, 2000), (5.0, 0, 10**9)):
        config = TrainConfig(*"wstv", guided_attention_weight=weight, alignment_warning_steps=steps)
        assert not warning_is_due(due - 1, config)
        assert warning_is_due(due, config) == (steps > 0)
    assert warning_is_due(3000, TrainConfig(*"wstv"))


@pytest.mark.parametrize("weight", [5.0, 0.0])
def test_advice_where_the_voice_says_nothing(weight):
    """It names flags that exist, with the values they have now; a straight line does not help."""
    config = TrainConfig(*"wstv", guided_attention_weight=weight, batch_size=7)
    row = {"step": 2345, "focus": 0.9, "coverage": 1.0, "monotonicity": 1.0}
    assert describe_missing_speech(row | {"text_match": FAIR}, config) is None
    assert describe_missing_speech(row, config) is None, "of a set with one text"
    advice = describe_missing_speech(row | {"text_match": 0.06}, config)
    assert "step 2345: " in advice and "is 0.06" in advice
    names = [name for name in re.findall(r"--(\w+)", advice) if name != "trim_db"]
    assert set(names) <= {field.name for field in fields(TrainConfig)}
    for name, value in re.findall(r"--(\w+)[^,\n]*, now ([\d.]+)", advice):
        assert float(value) == getattr(config, name), name
    assert "--batch_size, now 7" in advice
    assert f"--guided_attention_{'steps' if weight else 'weight'}" in advice
