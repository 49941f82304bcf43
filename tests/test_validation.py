"""A validation's numbers against numbers worked out by hand, and what it must leave alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import train_taco
import training.validation as validation
from model import InferenceOutput
from runs import random_states
from scoring.scores import FREE_RUNNING_SCORES
from test_processes import NO_DROPOUT
from training.checkpoints import list_checkpoints, read_state
from training.validation import (
    is_new_best,
    score_free_running,
    score_teacher_forced,
    validate,
)


@pytest.fixture
def validating(begin, tiny_corpus, tmp_path):
    """Set up a run, of two clips a batch, that validates these clips."""

    def validating(*flags, clips=(0, 5, 8)):  # 8, 16 and 21 characters
        manifest = tmp_path / "validation.csv"
        pd.read_csv(tiny_corpus.train_manifest).iloc[list(clips)].to_csv(manifest, index=False)
        return begin(*flags, corpus=tiny_corpus._replace(test_manifest=manifest))[0]

    return validating


def alignment_scores(alignment: np.ndarray) -> dict[str, float]:
    """Score one clip's alignment (T_mel, T_text) by the definitions."""
    return {
        "focus": alignment.max(axis=1).mean(),
        "coverage": (alignment.sum(axis=0) >= 0.5).mean(),
        "monotonicity": (np.diff(alignment.argmax(axis=1)) >= 0).mean(),
    }


def score_alone(run, clip) -> tuple[dict[str, float], dict[str, float]]:
    """Sum a clip's losses over its frames, with an --l1_weight of 0.5, and score its alignment."""
    lengths = torch.tensor([len(clip.tokens)]), torch.tensor([len(clip.mel)])
    with torch.no_grad():
        output = run.model(clip.tokens[None], lengths[0], clip.mel[None], lengths[1])
    before, after, logits, alignment = (part[0].double().numpy() for part in output)
    mel, is_last = clip.mel.double().numpy(), np.arange(len(clip.mel)) == len(clip.mel) - 1
    losses = {
        "mel_before_loss": ((before - mel) ** 2 + 0.5 * abs(before - mel)).mean(axis=1).sum(),
        "mel_after_loss": ((after - mel) ** 2 + 0.5 * abs(after - mel)).mean(axis=1).sum(),
        "stop_loss": np.log1p(np.exp(np.where(is_last, -logits, logits))).sum(),
    }
    return {"loss": sum(losses.values()), **losses}, alignment_scores(alignment)


def test_losses_are_means_over_frames_and_scores_means_over_clips(validating):
    """Three clips of unequal length in two batches, against each clip by itself.

    The two clips of the longer batch are those that get each other's texts.
    """
    run = validating(*NO_DROPOUT, "--l1_weight=0.5")
    with torch.no_grad():
        run.model.decoder.attention.v.weight *= 100  # alignments that cover a part of the text
    clips = [run.val_set[i] for i in range(3)]
    assert len({len(clip.mel) for clip in clips}) == 3 and len(run.val_loader) == 2
    with run.evaluation():
        losses, scores = zip(*(score_alone(run, clip) for clip in clips), strict=True)
        measured = score_teacher_forced(run)
    n_frames = sum(len(clip.mel) for clip in clips)
    by_hand = {f"val_{name}": sum(row[name] for row in losses) / n_frames for name in losses[0]}
    by_hand |= {name: sum(row[name] for row in scores) / 3 for name in scores[0]}
    assert len({row["coverage"] for row in scores}) == 3, "each clip counts"
    pair = [clips[i] for i in next(iter(run.val_loader.batch_sampler))]
    assert len(pair) == 2
    swapped = [a._replace(tokens=b.tokens) for a, b in (pair, pair[::-1])]
    with run.evaluation():
        own, other = (
            sum(row["mel_before_loss"] + row["mel_after_loss"] for row in rows)
            for rows in ([score_alone(run, clip)[0] for clip in part] for part in (pair, swapped))
        )
    by_hand["text_gain"] = other / own - 1
    assert measured == pytest.approx(by_hand, rel=1e-5, abs=1e-6)


def spoken(token_lengths: torch.Tensor) -> InferenceOutput:
    """Make up speech for up to three texts: of 7, 5 and 9 frames, the second without its end."""
    n, rng = len(token_lengths), np.random.default_rng(0)
    energies = 6 * torch.from_numpy(rng.random((n, 9, int(token_lengths.max()))))
    for energy, length in zip(energies, token_lengths, strict=True):
        energy[:, length:] = -torch.inf
    lengths, reached_limit = torch.tensor([7, 5, 9])[:n], torch.tensor([False, True, False])[:n]
    mels, logits = torch.zeros(n, 9, 80), torch.zeros(n, 9)
    return InferenceOutput(mels, lengths, logits, energies.softmax(dim=2).float(), reached_limit)


@pytest.mark.parametrize(
    ("n_asked", "clips", "picked", "max_decoder_steps"),
    [(3, range(9), [0, 4, 8], 2000), (16, (0, 5, 8), [0, 1, 2], 150)],
)
def test_free_running_speaks_clips_from_all_over_the_set(
    validating, monkeypatch, n_asked, clips, picked, max_decoder_steps
):
    """Which clips, cut at which frame, and the means of their scores.

    The text match compares what was spoken, without its padding, of the clip that it was spoken of.
    """
    flags = ("--free_running_clips", n_asked, "--max_decoder_steps", max_decoder_steps)
    run, asked = validating(*flags, clips=clips), []

    def infer(tokens, token_lengths, limit):
        asked.append(([run.tokenizer.decode(row) for row in tokens], limit))
        return spoken(token_lengths)

    def match(val_set, index, mel):
        return 0.1 * index + len(mel)

    monkeypatch.setattr(run.model, "infer", infer)
    monkeypatch.setattr(validation, "text_match", match)
    scores = score_free_running(run)
    wanted = [run.val_set[i] for i in picked]
    limit = min(max_decoder_steps, 2 * max(len(clip.mel) for clip in wanted) + 100)
    assert asked == [([run.tokenizer.clean(clip.text) for clip in wanted], limit)]
    output, rows = spoken(torch.tensor([len(clip.tokens) for clip in wanted])), []
    for i, clip in enumerate(wanted):
        alignment = output.alignments[i, : output.mel_lengths[i], : len(clip.tokens)].numpy()
        row = {f"free_running_{name}": x for name, x in alignment_scores(alignment).items()}
        row["stopped_by_itself"] = float(i != 1)
        row["free_running_score"] = np.prod(list(row.values()))
        rows.append(row | {"text_match": 0.1 * picked[i] + (7, 5, 9)[i]})
    by_hand = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert scores == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [  # of each epoch the text match and the validation loss; None: not validated
        ([(0.2, 1.0), (0.5, 2.0), (0.4, 0.5), None, (0.5, 2.0)], 2),
        ([(0.5, 2.0), (0.5, 1.0)], 2),
        ([(0.5, 1.0), (0.5, 2.0)], 1),
        ([(None, 2.0), (None, 1.0), (None, 1.5)], 2),
        ([None], 0),
    ],
)
def test_the_best_epoch_says_its_texts_and_ties_go_by_the_validation_loss(epochs, kept):
    """A straight alignment, sharpest in the first epochs, decides nothing."""
    history, best = [], 0
    for epoch, values in enumerate(epochs, start=1):
        row = {"epoch": epoch, "step": 10 * epoch, "train_loss": 1.0}
        if values:
            row |= {"free_running_score": 1 / epoch, "val_loss": values[1]}
            row |= {"text_match": values[0]} if values[0] else {}
        history.append(row)
        if is_new_best(history, best):
            best = epoch
    assert best == kept


def test_a_validation_gives_the_same_twice_and_leaves_training_alone(validating, monkeypatch):
    """With the same dropout of the prenet, also for the pictures."""
    run, drawn = validating("--max_decoder_steps", 30), []
    monkeypatch.setattr(validation, "draw_sample", lambda *_: drawn.append(torch.rand(1)) or {})
    modes = []
    run.model.register_forward_hook(
        lambda model, *x: modes.append((model.training, torch.is_grad_enabled()))
    )
    before, weights = random_states(), [p.clone() for p in run.model.state_dict().values()]
    scores = [validate(run, 1)[0]]
    assert random_states() == before and run.model.training
    torch.rand(10)
    scores += [validate(run, 2)[0]]
    assert scores[0] == scores[1] and drawn[0] == drawn[1]
    assert set(modes) == {(False, False)}
    now = run.model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(now, weights, strict=True))
    run.config = replace(run.config, seed=7)
    assert validate(run, 3)[0]["val_loss"] != scores[0]["val_loss"]


@pytest.fixture
def train(begin, monkeypatch):
    """Train in this process; the validations of the epochs give these text matches."""

    def train(scores, *flags):
        left = iter(scores)
        forced = {"val_loss": 2.0, "focus": 0.1, "coverage": 1.0, "monotonicity": 1.0}

        def validate(run, epoch):
            free = dict.fromkeys(FREE_RUNNING_SCORES, 1.0) | {"text_match": next(left)}
            return forced | free, {}

        monkeypatch.setattr(train_taco, "validate", validate)
        run, state = begin("--batch_size", 9, "--guided_attention_steps", 0, *flags)
        train_taco.train(run, state)
        assert next(left, None) is None, "a validation too few"
        return run.folder

    return train


def epochs_in(folder):
    """The epoch at which each checkpoint stands."""
    return {path.name: read_state(path).epoch for path in list_checkpoints(folder)}


def test_the_best_epoch_is_kept_also_after_resuming(train, capsys):
    """The first of two that are equal; and every second epoch, as --checkpoint_epochs says."""
    flags = ["--training_epochs", 5, "--checkpoint_epochs", 2]
    folder = train([0.2, 0.5, 0.4, 0.5, 0.1], *flags)
    numbered = {"checkpoint_2": 2, "checkpoint_4": 4, "final_checkpoint": 5}
    assert epochs_in(folder) == {**numbered, "best_checkpoint": 2}
    out = capsys.readouterr().out
    assert out.count("best so far: ") == 2 and f"checkpoint: {folder}/checkpoint_4\n" in out
    train([0.4, 0.3, 0.2], *flags, "--resume_from_checkpoint", "checkpoint_2")
    assert epochs_in(folder) == {**numbered, "best_checkpoint": 2}
    train([0.6], *flags, "--resume_from_checkpoint", "checkpoint_4")
    assert epochs_in(folder) == {**numbered, "best_checkpoint": 5}
    rows = read_state(folder / "final_checkpoint").history
    assert [row["text_match"] for row in rows] == [0.2, 0.5, 0.4, 0.3, 0.6]


def test_validation_and_checkpoints_come_when_they_are_due(train, capsys):
    """The warning that the voice says nothing comes once, with the first scores."""
    flags = ["--training_epochs", 5, "--checkpoint_epochs", 3, "--validation_epochs", 2]
    flags += ["--batch_size", 2, "--gradient_accumulation_steps", 2]
    folder = train([0.0, 0.1, 0.2], *flags, "--alignment_warning_steps", 1)
    assert epochs_in(folder) == {"checkpoint_3": 3, "best_checkpoint": 5, "final_checkpoint": 5}
    rows = read_state(folder / "final_checkpoint").history
    assert [(row["epoch"], row["step"]) for row in rows] == [(i, 3 * i) for i in range(1, 6)]
    assert [row["epoch"] for row in rows if "free_running_score" in row] == [2, 4, 5]
    assert rows[4]["train_loss"] < 2 * rows[0]["train_loss"], "the mean of its own steps"
    said = capsys.readouterr()
    assert said.err.count("does not say its texts") == 1 and "step 6: " in said.err
