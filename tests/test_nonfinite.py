"""A step whose loss or gradient is not finite: what it stops, and what it leaves unharmed."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import train_taco
from config import parse_args
from dataset import BatchSampler, DataError, TTSDataset
from kill_and_resume import differences
from test_train_taco import run_flags
from training_run import make_loader, read_groups

BAD_STEP = 2  # counted from 0, of 5
QUIET = SimpleNamespace(pending=False)


class StopAfter:
    """An Interrupt that is pending at the batch after so many steps."""

    def __init__(self, n_steps):
        self.left = n_steps + 1

    @property
    def pending(self):
        self.left -= 1
        return self.left == 0


@pytest.fixture
def begin(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def begin(name, *flags):
        configs = parse_args(run_flags(tiny_corpus, tmp_path / name, *flags), "")
        return train_taco.prepare(configs, Accelerator(step_scheduler_with_optimizer=False))

    return begin


@pytest.fixture(params=["loss", "gradient"])
def spoil(request, monkeypatch):
    """Spoils the loss or the gradient of one step of a run; returns the paths of its clips."""

    def spoil(run):
        sampler = BatchSampler(run.train_set.n_frames, 2, seed=run.config.seed, epoch=0)
        bad_paths = [run.train_set.paths[i] for i in sampler.batches[BAD_STEP]]
        if request.param == "gradient":
            backwards = iter(range(100))
            run.model.encoder.embedding.weight.register_hook(
                lambda gradient: gradient * (torch.inf if next(backwards) == BAD_STEP else 1.0)
            )
            return request.param, bad_paths
        read = TTSDataset.__getitem__

        def read_spoilt(self, index):
            utterance = read(self, index)
            if utterance.path == bad_paths[0]:
                return utterance._replace(mel=torch.full_like(utterance.mel, torch.nan))
            return utterance

        monkeypatch.setattr(TTSDataset, "__getitem__", read_spoilt)
        return request.param, bad_paths

    return spoil


def test_the_run_ends_at_the_state_before_the_step(begin, spoil):
    run, state = begin("good")
    with pytest.raises(train_taco.Interrupted, match=f"checkpoint_0_step_{BAD_STEP}"):
        train_taco.train_epoch(run._replace(interrupt=StopAfter(BAD_STEP)), state, 0.0)
    good = run.folder / f"checkpoint_0_step_{BAD_STEP}"

    run, state = begin("bad")
    what, bad_paths = spoil(run)
    with pytest.raises(DataError) as error:
        train_taco.train_epoch(run, state, 0.0)
    assert f"step {BAD_STEP + 1}: the {what} is not finite" in str(error.value)
    assert all(path in str(error.value) for path in bad_paths)
    assert "--skip_nonfinite" in str(error.value) and good.name in str(error.value)
    assert differences(run.folder / good.name, good) == []


def test_a_skipped_step_is_counted_and_leaves_no_trace(begin, spoil, capsys):
    # What depends on the number of the step is off: the reference takes one step less.
    run, state = begin("good", "--guided_attention_weight", 0)
    loader = make_loader(run, run.train_set, seed=run.config.seed, epoch=0)
    groups = list(read_groups(loader, 1))
    losses = []
    for step in (step for step in range(len(groups)) if step != BAD_STEP):
        losses.append(train_taco.train_step(run, groups[step], step)[0]["loss"])
    good_model, good_optimizer = run.model.state_dict(), run.optimizer.state_dict()["state"]

    run, state = begin("bad", "--guided_attention_weight", 0, "--skip_nonfinite")
    what, bad_paths = spoil(run)
    state, _ = train_taco.train_epoch(run, state, 0.0)
    said = capsys.readouterr().err
    assert f"the {what} is not finite" in said and bad_paths[0] in said and "skipped" in said
    assert (state.epoch_step, state.epoch_skipped) == (len(groups), 1)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, good_model[name]), name
    for index, values in run.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, good_optimizer[index][name]), (index, name)

    if what == "loss":
        state = train_taco.finish_epoch(run, state)
        assert "skipped_steps 1" in capsys.readouterr().out
        assert state.epoch_skipped == 0 and state.history[0]["skipped_steps"] == 1
        mean = sum(losses) / len(losses)
        assert state.history[0]["train_loss"] == pytest.approx(mean, rel=1e-5)
