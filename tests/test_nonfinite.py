"""A step that is not finite, or for which memory runs out: what it stops, and leaves unharmed."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import train_taco
from command_line.files import DataError
from dataset import BatchSampler, TTSDataset
from forked_run import draw_nothing
from kill_and_resume import differences
from test_train_taco import REPO, run_flags
from training.checkpoints import read_state
from training.config import parse_args
from training.failures import OutOfMemory
from training.processes import read_groups
from training.setup import make_loader

BAD_STEP = 2  # counted from 0, of 5


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
    draw_nothing(monkeypatch.setattr)

    def begin(name, *flags):
        configs = parse_args(run_flags(tiny_corpus, tmp_path / name, *flags), "")
        return train_taco.prepare(configs, Accelerator())

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


@pytest.fixture
def run_out(monkeypatch):
    """Lets the GPU's memory run out in the loss of one step's second batch."""
    loss, calls = train_taco.tacotron2_loss, iter(range(100))

    def too_large(*arguments, **options):
        if next(calls) == 2 * BAD_STEP + 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(*arguments, **options)

    return lambda: monkeypatch.setattr(train_taco, "tacotron2_loss", too_large)


def test_a_run_out_of_memory_ends_at_the_state_before_the_step(begin, run_out):
    flags = ["--batch_size", 1, "--gradient_accumulation_steps", 2]
    run, state = begin("good", *flags)
    with pytest.raises(train_taco.Interrupted):
        train_taco.train_epoch(run._replace(interrupt=StopAfter(BAD_STEP)), state, 0.0)
    good = run.folder / f"checkpoint_0_step_{BAD_STEP}"

    run, state = begin("bad", *flags)
    order = BatchSampler(run.train_set.n_frames, 1, seed=run.config.seed, epoch=0).batches
    clips = [run.train_set[i] for (i,) in order[2 * BAD_STEP : 2 * BAD_STEP + 2]]
    largest = max(clips, key=lambda clip: len(clip.mel))
    run_out()
    with pytest.raises(DataError) as error:
        train_taco.train_epoch(run, state, 0.0)
    assert str(error.value) == (
        f"step {BAD_STEP + 1}: the GPU's memory ran out on 1 clips of up to {len(largest.mel)} "
        f"frames and {len(largest.tokens)} characters; lower --batch_size, now 1, and raise "
        f"--gradient_accumulation_steps, now 2, which keeps the clips of a step; {good.name} "
        "holds the run before it"
    )
    assert differences(run.folder / good.name, good) == []
    assert all(p.grad is None for p in run.model.parameters()), "their memory is free"


def test_memory_that_runs_out_in_a_validation_is_named(begin, monkeypatch):
    def speak_freely(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("validation.speak_freely", speak_freely)
    run, state = begin("bad", "--training_epochs", 1, "--free_running_clips", 3)
    sentence = r"epoch 1: .* ran out in its validation; lower --free_running_clips, now 3"
    with pytest.raises(DataError, match=sentence + ".*checkpoint_0_step_5 holds"):
        train_taco.train(run, state)


def test_one_process_of_several_ends_without_the_others(begin):
    """They wait in the middle of the step, so that nothing may be asked of them."""
    run, state = begin("bad")
    accelerator = SimpleNamespace(num_processes=2)
    error = OutOfMemory("sentence")
    with pytest.raises(DataError, match=r"^sentence$"):
        train_taco.save_and_raise(run._replace(accelerator=accelerator), state, error)
    assert not list(run.folder.iterdir())


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


@pytest.fixture
def begin_fp16(tiny_corpus, tmp_path, monkeypatch):
    """A run in fp16 with the loss scaling of a GPU, which accelerate gives no CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    draw_nothing(monkeypatch.setattr)

    def begin(name, scale):
        AcceleratorState._reset_state(reset_partial_state=True)  # keeps the first precision
        configs = parse_args(run_flags(tiny_corpus, tmp_path / name), "")
        accelerator = Accelerator()
        assert accelerator.mixed_precision == "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        accelerator.native_amp = True
        return train_taco.prepare(configs, accelerator)

    yield begin
    AcceleratorState._reset_state(reset_partial_state=True)


def spoil_gradients(run, *bad_steps):
    """NaN in the gradients of these backward passes, counted from 0."""
    backwards = iter(range(10_000))
    run.model.encoder.embedding.weight.register_hook(
        lambda gradient: gradient * (torch.nan if next(backwards) in bad_steps else 1.0)
    )


def test_steps_that_loss_scaling_skips_are_counted(begin_fp16, capsys):
    run, state = begin_fp16("run", 1024.0)
    spoil_gradients(run, 1, 2, 4)
    state, _ = train_taco.train_epoch(run, state, 0.0)
    assert run.accelerator.scaler.get_scale() == 1024.0 / 2**3
    assert (state.epoch_step, state.epoch_skipped, state.skipped_in_a_row) == (5, 3, 1)
    steps = {float(values["step"]) for values in run.optimizer.state_dict()["state"].values()}
    assert steps == {2.0}, "Adam has taken the other two"
    assert 0 < state.epoch_losses[0] < torch.inf
    total = state.epoch_losses[0]
    state = train_taco.finish_epoch(run, state)
    assert "skipped_steps 3" in capsys.readouterr().out
    row = state.history[0]
    assert row["skipped_steps"] == 3 and row["train_loss"] == pytest.approx(total / 2)
    assert (state.epoch_skipped, state.skipped_in_a_row) == (0, 1)


@pytest.mark.parametrize(
    "scale, skipped_before, last_step",
    [(2.0, 0, 2), (2.0**100, 46, 4)],
    ids=["scale below 1", "50 steps in a row"],
)
def test_loss_scaling_that_skips_all_steps_ends_the_run(
    begin_fp16, scale, skipped_before, last_step
):
    run, state = begin_fp16("run", scale)
    spoil_gradients(run, *range(100))
    state = state._replace(skipped_in_a_row=skipped_before)
    with pytest.raises(DataError) as error:
        train_taco.train_epoch(run, state, 0.0)
    name = f"checkpoint_0_step_{last_step}"
    for words in (f"step {last_step}: the gradient is not finite in fp16", "--mixed_precision bf16",
                  f"{skipped_before + last_step} steps skipped in a row", name):  # fmt: skip
        assert words in str(error.value)
    saved, _ = read_state(run.folder / name)
    assert (saved.step, saved.skipped_in_a_row) == (last_step, skipped_before + last_step)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_fp16_on_a_cpu_is_refused_before_anything_is_built(tiny_corpus, tmp_path):
    flags = run_flags(tiny_corpus, tmp_path)
    command = [sys.executable, str(REPO / "train_taco.py"), *flags]
    environment = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "fp16"}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("train_taco.py: --mixed_precision fp16 needs a GPU")
    assert not list(tmp_path.iterdir())
