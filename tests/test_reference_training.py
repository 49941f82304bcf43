"""Every weight after some steps is what reference_training.py, written apart, comes to."""

import pytest
import torch
from safetensors.torch import load_file

import forked_run
import train_taco
from reference_training import train
from runs import TINY_MODEL, draw_nothing, run_flags

SIZES = {
    name: int(size) for name, size in (flag.removeprefix("--").split("=") for flag in TINY_MODEL)
}
# A larger epsilon than the default: Adam divides by the gradient's size, so that where the true
# gradient is 0 (a bias before a batch norm) the default would turn rounding errors into steps.
# And no clipping but where it is asked for: it hides how large the losses are.
COMMON = {
    "adam_eps": 3e-3, "batch_size": 4, "learning_rate": 2e-3, "max_grad_norm": 100.0,
    "guided_attention_weight": 1.0, "guided_attention_sigma": 0.4, "guided_attention_steps": 300,
    "warmup_steps": 0, "short_first_epochs": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quickly(monkeypatch, handlers_of_signals):
    """Training in this process and without pictures; its signal handlers are undone."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    draw_nothing(monkeypatch.setattr)


def as_flags(values: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def final_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "work" / "tiny" / "final_checkpoint" / "model.safetensors")


def largest_difference(left: dict, right: dict) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.fixture(scope="module")
def plain_reference(tiny_corpus):
    """The weights that all the changes below must change."""
    return train(tiny_corpus.train_manifest, SIZES, **COMMON)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 7, "batch_size": 2},
        {"learning_rate": 1e-3, "min_learning_rate": 1e-4, "start_decay_epochs": 0},
        {"weight_decay": 0.01, "adam_eps": 1e-2},
        {"l1_weight": 0.0, "stop_tail_frames": 0},
        {"max_grad_norm": 0.1, "warmup_steps": 4},
        {"guided_attention_weight": 5.0, "guided_attention_steps": 3},
        {"guided_attention_sigma": 0.1, "stop_positive_weight": 6.0},
        {"drop_frame_rate": 0.3, "short_first_epochs": 1},
        {"gradient_accumulation_steps": 2},  # three batches an epoch: the second step has one
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_training_equals_the_reference(tiny_corpus, tmp_path, plain_reference, changes):
    expected = train(tiny_corpus.train_manifest, SIZES, **{**COMMON, **changes})
    if changes:
        assert largest_difference(expected, plain_reference) > 2e-5, "the flag changes nothing here"
    train_taco.main(run_flags(tiny_corpus, tmp_path, *as_flags({**COMMON, **changes})))
    assert largest_difference(final_weights(tmp_path), expected) < 1e-6


@pytest.mark.slow
def test_two_processes_with_accumulation_equal_the_reference(tiny_corpus, tmp_path):
    changes = {**COMMON, "batch_size": 2, "gradient_accumulation_steps": 2}
    expected = train(tiny_corpus.train_manifest, SIZES, n_processes=2, **changes)
    flags = run_flags(tiny_corpus, tmp_path, *as_flags(changes), "--validation_epochs=2")
    forked_run.train(flags, processes=2)
    assert largest_difference(final_weights(tmp_path), expected) < 1e-6
