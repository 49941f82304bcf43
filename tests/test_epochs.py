"""What happens between the epochs of a run: which checkpoints are kept, and what wandb gets."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator

import train_taco
from forked_run import draw_nothing
from scoring.scores import FREE_RUNNING_SCORES
from test_train_taco import run_flags
from training.checkpoints import list_checkpoints, read_state
from training.config import parse_args


@pytest.fixture
def train(tiny_corpus, tmp_path, monkeypatch):
    """Trains in this process; validations give the free-running scores that they are told to."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    draw_nothing(monkeypatch.setattr)
    drawn = []
    monkeypatch.setattr(train_taco, "draw_losses", lambda folder, rows: drawn.append(len(rows)))
    folder = tmp_path / "work" / "tiny"

    def train(scores, *flags):
        """The run's folder, after so many epochs with a validation as there are scores."""
        left = iter(scores)
        blurred = {"val_loss": 2.0, "focus": 0.1, "coverage": 1.0, "monotonicity": 1.0}
        flags = run_flags(tiny_corpus, tmp_path, "--batch_size", 4, *flags)
        run, state = train_taco.prepare(parse_args(flags, ""), Accelerator())

        def judge_epoch(accelerator, model, val_loader, *_):
            assert (model, val_loader) == (run.model, run.val_loader)
            score = next(left)
            free = dict.fromkeys(FREE_RUNNING_SCORES, 1.0)
            return {**blurred, **free, "stopped_by_itself": score, "free_running_score": score}, {}

        monkeypatch.setattr(train_taco, "judge_epoch", judge_epoch)
        train_taco.train(run, state)
        assert next(left, None) is None, "a validation too few"
        rows = read_state(folder / "final_checkpoint")[0].history
        epochs = [row["epoch"] for row in rows if "free_running_score" in row]
        assert drawn == epochs[-len(scores) :], "after each validation"
        drawn.clear()
        return folder

    return train


def epochs_in(folder):
    """The epoch at which each checkpoint stands."""
    return {path.name: read_state(path)[0].epoch for path in list_checkpoints(folder)}


def test_each_checkpoint_is_said_with_its_path(train, capsys):
    folder = train([0.2, 0.1, 0.1, 0.1], "--training_epochs", 4, "--checkpoint_epochs", 2)
    lines = capsys.readouterr().out.splitlines()
    said = [line.removeprefix("checkpoint: ") for line in lines if line.startswith("checkpoint:")]
    names = ("checkpoint_2", "checkpoint_4", "final_checkpoint")
    assert said == [str(folder / name) for name in names]


def test_the_best_epoch_is_kept_also_after_resuming(train, capsys):
    """The first of two that are equal; and every second epoch, as --checkpoint_epochs says."""
    flags = ["--training_epochs", 5, "--checkpoint_epochs", 2]
    folder = train([0.2, 0.5, 0.4, 0.5, 0.1], *flags)
    numbered = {"checkpoint_2": 2, "checkpoint_4": 4, "final_checkpoint": 5}
    assert epochs_in(folder) == {**numbered, "best_checkpoint": 2}
    assert read_state(folder / "best_checkpoint")[0].best_epoch == 2
    said = [line for line in capsys.readouterr().out.splitlines() if "best so far" in line]
    assert said == [
        f"best so far: free-running score {score}, validation loss 2.000, kept in "
        f"{folder / 'best_checkpoint'}"
        for score in ("0.200", "0.500")
    ]
    train([0.4, 0.3, 0.2], *flags, "--resume_from_checkpoint", "checkpoint_2")
    assert epochs_in(folder) == {**numbered, "best_checkpoint": 2}
    train([0.6], *flags, "--resume_from_checkpoint", "checkpoint_4")
    assert epochs_in(folder) == {**numbered, "best_checkpoint": 5}
    rows = read_state(folder / "final_checkpoint")[0].history
    assert [row["free_running_score"] for row in rows] == [0.2, 0.5, 0.4, 0.3, 0.6]


def test_validation_and_checkpoints_come_when_they_are_due(train, capsys):
    """Each epoch is of five batches, which make three steps."""
    flags = ["--training_epochs", 5, "--checkpoint_epochs", 3, "--validation_epochs", 2]
    flags += ["--batch_size", 2, "--gradient_accumulation_steps", 2, "--console_out_iters", 3]
    flags += ["--guided_attention_steps", 0, "--alignment_warning_steps", 1]
    folder = train([0.0, 0.1, 0.2], *flags)
    assert epochs_in(folder) == {"checkpoint_3": 3, "best_checkpoint": 5, "final_checkpoint": 5}
    rows = read_state(folder / "final_checkpoint")[0].history
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in rows if "free_running_score" in row] == [2, 4, 5]
    said = capsys.readouterr()
    for epoch in range(1, 6):
        assert f"epoch {epoch}  step 3/3  loss" in said.out
        assert f"epoch {epoch} done    train_loss {rows[epoch - 1]['train_loss']:6.3f}" in said.out
    # It would be due after the first epoch, and comes with the first scores.
    assert said.err.count("has not begun to align") == 1 and "step 6: attention" in said.err


def test_wandb_gets_each_step_and_epoch_with_its_numbers(train, monkeypatch):
    """Three steps an epoch; the learning rate is constant for one epoch, then falls to 1 %."""
    logged, begun, norms, ends = [], [], [], []
    run = SimpleNamespace(
        id="abc",
        step=0,
        log=lambda values, step, commit: logged.append((step, values)),
        define_metric=lambda *_, **__: None,
        summary={},
        finish=lambda: ends.append(len(logged)),
    )
    stub = SimpleNamespace(
        init=lambda **what: begun.append(what) or run, Image=None, Audio=None, __version__="0"
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    clip_grad_norm = Accelerator.clip_grad_norm_

    def recorded_norm(accelerator, parameters, max_norm):
        parameters = list(parameters)
        norms.append(float(sum(p.grad.double().square().sum() for p in parameters).sqrt()))
        return clip_grad_norm(accelerator, parameters, max_norm)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", recorded_norm)
    flags = ["--training_epochs", 2, "--start_decay_epochs", 1, "--max_grad_norm", 0.5]
    flags += ["--log_wandb", "--wandb_log_iters", 1]
    folder = train([0.5, 0.25], *flags)

    assert [step for step, _ in logged] == [1, 2, 3, 3, 4, 5, 6, 6] and ends == [8]
    steps = [values for _, values in logged if "train/loss" in values]
    epochs = [values for _, values in logged if "train/epoch_loss" in values]
    place = [(values["step"], round(values["epoch"], 3)) for _, values in logged]
    assert place == [(1, 0.333), (2, 0.667), (3, 1), (3, 1), (4, 1.333), (5, 1.667), (6, 2), (6, 2)]
    rates = [1e-3] * 4 + [1e-3 * 0.01 ** (i / 3) for i in (1, 2)]
    np.testing.assert_allclose([values["train/learning_rate"] for values in steps], rates)
    np.testing.assert_allclose([values["train/grad_norm"] for values in steps], norms, rtol=1e-5)
    for epoch, of_epoch in enumerate((steps[:3], steps[3:])):
        found = epochs[epoch]
        names = ("loss", "mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")
        for name in names:
            mean = np.mean([values[f"train/{name}"] for values in of_epoch])
            assert found[f"train/epoch_{name}"] == pytest.approx(mean), name
        assert len({values["train/loss"] for values in of_epoch}) == 3
        assert (found["epoch"], found["step"]) == (epoch + 1, 3 * epoch + 3)
        assert found["free/free_running_score"] == (0.5, 0.25)[epoch]
        assert found["train/epoch_learning_rate"] == pytest.approx((1e-3, 1e-5)[epoch])
    best = {name.removeprefix("best/"): value for name, value in run.summary.items()}
    assert (best["epoch"], best["step"], best["free/free_running_score"]) == (1, 3, 0.5)

    train([0.5], *flags, "--resume_from_checkpoint", "checkpoint_1")
    assert [(what["project"], what["name"]) for what in begun] == [
        ("tiny", "tacotron2_trainer")
    ] * 2
    assert [what["id"] for what in begun] == [None, "abc"], "a resumed run goes on with its curves"
    sent = begun[0]["config"]
    assert (sent["max_grad_norm"], sent["min_db"], sent["attention_dim"]) == (0.5, -100, 8)
    assert read_state(folder / "final_checkpoint")[0].wandb_run_id == "abc"
