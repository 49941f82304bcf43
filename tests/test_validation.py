"""A validation's numbers against numbers worked out by hand, and what it must leave alone."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from accelerate import Accelerator

import train_taco
import training.reporting as reporting
import training.validation as validation
from dataset import AudioConfig
from model import InferenceOutput
from test_processes import NO_DROPOUT
from test_train_taco import run_flags
from training.config import parse_args
from training.processes import Interrupted
from training.validation import (
    choose_sample,
    count_free_running_clips,
    film_first_epoch,
    is_new_best,
    judge_epoch,
    speak_freely,
    validate,
)


@pytest.fixture
def begin(tiny_corpus, tmp_path, monkeypatch):
    """A run of two clips a batch, prepared in this process; its validation clips are `clips`."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def begin(*flags, clips=(0, 5, 8)):  # 8, 16 and 21 characters
        manifest = tmp_path / "validation.csv"
        pd.read_csv(tiny_corpus.train_manifest).iloc[list(clips)].to_csv(manifest, index=False)
        corpus = tiny_corpus._replace(test_manifest=manifest)
        configs = parse_args(run_flags(corpus, tmp_path, *flags), "")
        return train_taco.prepare(configs, Accelerator())[0]

    return begin


def alignment_scores(alignment: np.ndarray) -> dict[str, float]:
    """Of one clip's alignment (T_mel, T_text), by their definitions."""
    return {
        "focus": alignment.max(axis=1).mean(),
        "coverage": (alignment.sum(axis=0) >= 0.5).mean(),
        "monotonicity": (np.diff(alignment.argmax(axis=1)) >= 0).mean(),
    }


def clip_by_itself(run, clip) -> tuple[dict[str, float], dict[str, float]]:
    """A clip's losses as sums over its frames, and its alignment scores."""
    lengths = torch.tensor([len(clip.tokens)]), torch.tensor([len(clip.mel)])
    with torch.no_grad():
        output = run.model(clip.tokens[None], lengths[0], clip.mel[None], lengths[1])
    before, after, logits, alignment = (part[0].double().numpy() for part in output)
    mel, is_last = clip.mel.double().numpy(), np.arange(len(clip.mel)) == len(clip.mel) - 1
    losses = {
        "mel_before_loss": ((before - mel) ** 2).mean(axis=1).sum(),
        "mel_after_loss": ((after - mel) ** 2).mean(axis=1).sum(),
        "stop_loss": np.log1p(np.exp(np.where(is_last, -logits, logits))).sum(),
    }
    return {"loss": sum(losses.values()), **losses}, alignment_scores(alignment)


def test_losses_are_means_over_frames_and_scores_means_over_clips(begin):
    """Three clips of unequal length in two batches, against each clip by itself."""
    run = begin(*NO_DROPOUT)
    with torch.no_grad():
        run.model.decoder.attention.v.weight *= 100  # alignments that cover a part of the text
    clips = [run.val_set[i] for i in range(3)]
    assert len({len(clip.mel) for clip in clips}) == 3 and len(run.val_loader) == 2
    run.model.eval()
    losses, scores = zip(*(clip_by_itself(run, clip) for clip in clips), strict=True)
    run.model.train()
    graphs = []
    run.model.register_forward_hook(lambda *call: graphs.append(call[2].mels_after.requires_grad))
    n_frames = sum(len(clip.mel) for clip in clips)
    by_hand = {f"val_{name}": sum(row[name] for row in losses) / n_frames for name in losses[0]}
    by_hand |= {name: sum(row[name] for row in scores) / 3 for name in scores[0]}
    assert len({row["coverage"] for row in scores}) == 3, "each clip counts"
    measured = validate(run.accelerator, run.model, run.val_loader)
    assert measured == pytest.approx(by_hand, rel=1e-5)
    assert run.model.training and graphs == [False, False]


def spoken(token_lengths: torch.Tensor) -> InferenceOutput:
    """Made-up speech for up to three texts: of 7, 5 and 9 frames, the second without its end."""
    n, rng = len(token_lengths), np.random.default_rng(0)
    energies = 6 * torch.from_numpy(rng.random((n, 9, int(token_lengths.max()))))
    for energy, length in zip(energies, token_lengths, strict=True):
        energy[:, length:] = -torch.inf
    lengths, reached_limit = torch.tensor([7, 5, 9])[:n], torch.tensor([False, True, False])[:n]
    mels, logits = torch.zeros(n, 9, 80), torch.zeros(n, 9)
    return InferenceOutput(mels, lengths, logits, energies.softmax(dim=2).float(), reached_limit)


@pytest.mark.parametrize(
    ("n_asked", "clips", "picked"),
    [(3, range(9), [0, 4, 8]), (1, range(9), [0]), (16, (0, 5, 8), [0, 1, 2])],
)
@pytest.mark.parametrize("max_decoder_steps", [50, 2000])
def test_free_running_speaks_clips_from_all_over_the_set(
    begin, monkeypatch, n_asked, clips, picked, max_decoder_steps
):
    """Which clips, in eval mode, cut at which frame, and the means of their scores."""
    flags = ("--free_running_clips", n_asked, "--max_decoder_steps", max_decoder_steps)
    run, asked = begin(*flags, clips=clips), []

    def infer(tokens, token_lengths, limit):
        texts = [run.tokenizer.decode(row) for row in tokens]
        asked.append((texts, limit, run.model.training))
        return spoken(token_lengths)

    monkeypatch.setattr(run.model, "infer", infer)
    scores = speak_freely(run.accelerator, run.model, run.val_set, run.config)
    wanted = [run.val_set[i] for i in picked]
    limit = min(max_decoder_steps, 2 * max(len(clip.mel) for clip in wanted) + 100)
    assert asked == [([run.tokenizer.clean(clip.text) for clip in wanted], limit, False)]
    assert run.model.training

    output, rows = spoken(torch.tensor([len(clip.tokens) for clip in wanted])), []
    for i, clip in enumerate(wanted):
        alignment = output.alignments[i, : output.mel_lengths[i], : len(clip.tokens)].numpy()
        row = {f"free_running_{name}": x for name, x in alignment_scores(alignment).items()}
        row["stopped_by_itself"] = float(i != 1)
        rows.append(row | {"free_running_score": np.prod(list(row.values()))})
    by_hand = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert scores == pytest.approx(by_hand, rel=1e-5)


def test_as_many_clips_are_spoken_as_take_a_tenth_of_an_epoch(begin):
    """LJSpeech: 131 clips to validate on, of 10 s at most, beside 23.7 hours to train on."""

    def count(train_frames, val_frames):
        return count_free_running_clips(
            *(SimpleNamespace(n_frames=frames) for frames in (train_frames, val_frames))
        )

    assert count([574] * 12969, [869] * 131) == 131
    # 1,000 clips of 300 frames are worth 900,000 frames forwards. A clip of 200 frames may take
    # 500, so 180 of them take a tenth of that.
    assert count([300] * 1000, [100] * 999 + [200]) == 180
    assert count([300] * 9, [100] * 999) == 16 and count([300] * 9, [100] * 5) == 5
    assert count([300] * 99999, [100] * 999) == 256
    assert begin(clips=range(3)).config.free_running_clips == 3
    assert begin("--overwrite", "--free_running_clips", 2).config.free_running_clips == 2


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [  # what share stops and the validation loss of each, and which of them is kept
        ([(0.2, 1.0), (0.5, 2.0), (0.4, 0.5), None, (0.5, 2.0)], 2),
        ([(0.0, 3.0), (0.0, 2.0), (0.0, 2.5)], 2),
        ([(0.605, 0.788), (0.6, 0.724)], 2),
        ([(0.605, 0.788), (0.58, 0.724)], 1),
        ([(0.60, 0.724), (0.615, 0.788)], 1),
        ([(0.60, 0.724), (0.625, 0.788)], 2),
        # No epoch may be far below the highest, however small the steps down are.
        ([(0.60, 0.9), (0.585, 0.8), (0.57, 0.7)], 2),
        ([(0.60, 0.7), (0.615, 0.8), (0.59, 0.6)], 1),
        ([None, (0.1, 1.0), None], 2),
        ([None], 0),
    ],
)
def test_near_ties_are_decided_by_the_validation_loss(epochs, kept):
    history, best = [], 0
    for epoch, values in enumerate(epochs, start=1):
        row = dict(zip(("stopped_by_itself", "val_loss"), values or (), strict=False))
        if values:  # the sharpness of the alignment, as of a guided one, decides nothing
            row |= {"free_running_coverage": 1.0, "free_running_monotonicity": 1.0}
            row |= {"free_running_focus": 1 / epoch, "free_running_score": values[0] / epoch}
        history.append({"epoch": epoch, "train_loss": 1.0, **row})
        if is_new_best(history, best):
            best = epoch
    assert best == kept


def judge(run, epoch: int) -> dict[str, float]:
    parts = run.accelerator, run.model, run.val_loader, run.config, run.pictures
    return judge_epoch(*parts, epoch, run.interrupt)[0]


@pytest.fixture
def drawn(monkeypatch):
    """The arrays and the text of each picture, which is not drawn."""
    drawn = []
    monkeypatch.setattr(reporting, "summary_figure", lambda *what, title: drawn.append(what))
    monkeypatch.setattr(reporting, "save_figure", lambda figure, path: None)
    return drawn


def random_states() -> list:
    numpy_state = np.random.get_state()[1]  # noqa: NPY002
    return [torch.get_rng_state().tolist(), numpy_state.tolist(), random.getstate()]


def test_an_epoch_is_judged_the_same_twice_and_training_goes_on_as_if_it_were_not(
    begin, drawn, tmp_path
):
    """Scores, sound and pictures, of the clip in the middle, with the prenet's dropout."""
    interrupt = SimpleNamespace(pending=False)
    run = begin("--max_decoder_steps", 30)._replace(interrupt=interrupt)
    before, weights = random_states(), [p.clone() for p in run.model.state_dict().values()]
    scores = [judge(run, 1)]
    assert random_states() == before and run.model.training
    torch.rand(10)
    scores += [judge(run, 2)]
    assert scores[0] == scores[1]
    samples = [tmp_path / "samples" / f"epoch_{epoch:03d}" for epoch in (1, 2)]
    for ending in ("_free_running.wav", ".npz"):
        assert len({path.with_name(path.name + ending).read_bytes() for path in samples}) == 1
    assert len(drawn) == 4
    for first, second in zip(drawn[:2], drawn[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
        assert first[3] == run.tokenizer.clean(run.val_set.texts[1])
    assert soundfile.info(f"{samples[0]}_free_running.wav").frames == 30 * 256
    now = run.model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(now, weights, strict=True))
    other = run._replace(config=replace(run.config, seed=7))
    assert judge(other, 3)["val_loss"] != scores[0]["val_loss"]
    interrupt.pending = True  # which from now on is for the steps of training to see
    clip_by_itself(run, run.val_set[0])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        ([1.0, 5.0, 9.0, 2.0, 8.0], 5.0),
        ([6.0, 1.0, 1.5, 9.0, 2.0], 6.0),  # the median is 2 s: the nearest of 3 s or more
        ([1.0, 2.9, 2.0], 2.0),
        ([1.0, 3.0, 1.0], 3.0),
    ],
)
def test_the_clip_that_is_shown_is_of_median_length_but_not_short(seconds, shown):
    class Clips(list):
        audio_config = AudioConfig()
        n_frames = [x * 22050 / 256 for x in seconds]  # noqa: RUF012

    assert choose_sample(Clips(seconds)) == shown


def test_the_film_begins_before_the_first_step_and_training_goes_on_as_if_it_did_not(
    begin, tmp_path
):
    """Eight frames of an epoch of 100 steps, as they would be drawn after an epoch."""
    run = begin("--overwrite")
    before, weights = random_states(), [p.clone() for p in run.model.state_dict().values()]
    for step in range(100):
        film_first_epoch(
            run.accelerator, run.model, run.val_set, run.config, run.pictures, step, 100
        )
    steps = [0, 12, 25, 37, 50, 62, 75, 87]
    frames = sorted((tmp_path / "samples").glob("*.npz"))
    assert [path.name for path in frames] == [f"epoch_000_step_{step:06d}.npz" for step in steps]
    assert len({path.read_bytes() for path in frames}) == 1, "with the same dropout"
    assert random_states() == before and run.model.training
    now = run.model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(now, weights, strict=True))
    clip = run.val_set[1]
    run.model.eval()
    torch.manual_seed(run.config.seed)
    lengths = torch.tensor([len(clip.tokens)]), torch.tensor([len(clip.mel)])
    with torch.no_grad():
        output = run.model(clip.tokens[None], lengths[0], clip.mel[None], lengths[1])
    with np.load(frames[0]) as content:
        for name, array in (("alignment", output.alignments), ("mel", output.mels_after)):
            np.testing.assert_allclose(content[name], array[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stage", ["validate", "speak_freely", "draw_sample"])
def test_a_signal_ends_each_stage_at_once(begin, monkeypatch, tmp_path, stage):
    run = begin()
    before = set((tmp_path / "samples").iterdir())
    stages, steps = ("validate", "speak_freely"), []
    for name in stages[: stages.index(stage) if stage in stages else 2]:
        monkeypatch.setattr(validation, name, lambda *_: {})
    run.model.decoder.prenet.register_forward_hook(lambda *_: steps.append(None))
    with pytest.raises(Interrupted):
        judge(run._replace(interrupt=SimpleNamespace(pending=True)), 1)
    assert not steps and set((tmp_path / "samples").iterdir()) == before
