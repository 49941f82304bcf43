"""A blurred voice gets the contrast of recordings, wherever its mels become sound."""

import json

import numpy as np
import pytest
import scipy.fft
import torch

import evaluate
import train_taco
import training.validation as validation
from command_line.files import DataError
from dataset import AudioConfig
from evaluate import ScoredClip, make_sounds, save_worst
from export_mels import make_mels
from model import InferenceOutput
from speech.contrast import Contrast, compare, sharpen, sum_cepstra
from speech.voice import load_checkpoint
from training.validation import score_free_running

AUDIO = AudioConfig()
BLUR = np.linspace(1.0, 0.25, 80)  # of the cepstra, the finer the stronger
UNEVEN = Contrast(mean=[0.1] * 80, scale=[*np.linspace(1, 3, 80)])


def blur(mel: torch.Tensor, mean: np.ndarray) -> torch.Tensor:
    """Scale the cepstra of a mel (T_mel, 80) about their mean by BLUR."""
    cepstra = scipy.fft.dct(mel.double().numpy(), norm="ortho", axis=1)
    blurred = scipy.fft.idct(mean + (cepstra - mean) * BLUR, norm="ortho", axis=1)
    return torch.from_numpy(blurred).float()


@pytest.fixture
def recorded() -> list[torch.Tensor]:
    """Three mels in the range of recordings, and within it after they were blurred."""
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.uniform(-2, 2, (n, 80))).float() for n in (300, 90, 210)]


@pytest.fixture
def blurred(recorded) -> list[torch.Tensor]:
    mean = scipy.fft.dct(torch.cat(recorded).double().numpy(), norm="ortho", axis=1).mean(axis=0)
    return [blur(mel, mean) for mel in recorded]


def test_what_blurring_took_comes_back(recorded, blurred):
    contrast = compare(sum_cepstra(blurred), sum_cepstra(recorded))
    assert contrast.scale == pytest.approx(1 / BLUR, rel=1e-3)
    for sharp, dull in zip(recorded, blurred, strict=True):
        assert (dull - sharp).abs().max() > 0.5
        torch.testing.assert_close(sharpen(dull, AUDIO, contrast), sharp, atol=2e-3, rtol=0)


def test_a_voice_as_sharp_as_recordings_keeps_its_mels(recorded):
    contrast = compare(sum_cepstra(recorded), sum_cepstra(recorded))
    torch.testing.assert_close(sharpen(recorded[0], AUDIO, contrast), recorded[0])


def test_the_sums_of_processes_add_up(recorded):
    apart = sum_cepstra(recorded[:1]) + sum_cepstra(recorded[1:])
    torch.testing.assert_close(apart, sum_cepstra(recorded))


@pytest.mark.parametrize("contrast", [None, Contrast([0.0] * 80, [8.0] * 80)])
def test_a_sharpened_mel_stays_in_the_range_of_recordings(recorded, contrast):
    mel = sharpen(3 * recorded[0], AUDIO, contrast)
    assert mel.min() == AUDIO.silence and 5.9 < mel.max() <= AUDIO.loudest


def test_a_voice_that_has_learned_nothing_is_no_error(recorded):
    contrast = compare(sum_cepstra([torch.zeros(50, 80)]), sum_cepstra(recorded))
    assert contrast.scale == [8.0] * 80 and contrast.mean == [0.0] * 80


def test_what_varies_more_than_in_recordings_is_not_smoothed(recorded):
    contrast = compare(sum_cepstra(2 * mel for mel in recorded), sum_cepstra(recorded))
    assert contrast.scale == [1.0] * 80


@pytest.mark.parametrize("scaling", ["scaled_db", "log"])
def test_other_mels_are_sharpened_too(scaling):
    audio_config = AudioConfig(num_mels=40, mel_scaling=scaling)
    rng = np.random.default_rng(0)
    middle = (audio_config.silence + audio_config.loudest) / 2
    detail = torch.from_numpy(rng.uniform(-2, 2, (200, 40))).float()
    sharp = middle + detail - detail.mean(dim=0)
    dull = middle + 0.5 * (sharp - middle)
    contrast = compare(sum_cepstra([dull]), sum_cepstra([sharp]))
    torch.testing.assert_close(sharpen(dull, audio_config, contrast), sharp, atol=1e-3, rtol=0)


def test_validation_notes_the_contrast_and_checkpoints_keep_it(begin, monkeypatch):
    """Of what is spoken freely, no longer than the recording; a run that goes on has it too.

    The voice speaks each clip as it was recorded, but blurred.
    """
    run, state = begin("--free_running_clips", 4)
    clips = [run.val_set[i] for i in range(len(run.val_set))]
    mean = sum_cepstra(clip.mel for clip in clips)
    mean = (mean[1] / mean[0]).double().numpy()

    def infer(tokens, token_lengths, limit):
        texts = [run.tokenizer.decode(row) for row in tokens]
        spoken = [c for text in texts for c in clips if run.tokenizer.decode(c.tokens) == text]
        lengths = torch.tensor([len(clip.mel) for clip in spoken])
        mels = torch.full((len(spoken), max(lengths) + 50, 80), -3.0)
        for mel, clip in zip(mels, spoken, strict=True):
            mel[: len(clip.mel)] = blur(clip.mel, mean)
        lengths += 50 * (lengths == max(lengths))  # it did not stop there
        alignments = torch.ones(len(spoken), mels.shape[1], tokens.shape[1])
        return InferenceOutput(mels, lengths, mels[..., 0], alignments, lengths < 0)

    monkeypatch.setattr(run.model, "infer", infer)
    monkeypatch.setattr(validation, "text_match", lambda *_: 1.0)
    score_free_running(run)
    assert run.contrast.scale == pytest.approx(1 / BLUR, rel=0.03)
    train_taco.save_checkpoint(run, state, "checkpoint_1")
    assert load_checkpoint(run.folder / "checkpoint_1").contrast == run.contrast
    resumed, _ = begin("--free_running_clips", 4, "--resume_from_checkpoint", "latest")
    assert resumed.contrast == run.contrast


@pytest.mark.filterwarnings("ignore:.*run away")
def test_mels_that_ran_away_leave_numbers(begin, monkeypatch):
    run, _ = begin("--free_running_clips", 2)
    real = run.model.infer
    monkeypatch.setattr(
        run.model, "infer", lambda *args: (out := real(*args))._replace(mels=out.mels * torch.inf)
    )
    monkeypatch.setattr(validation, "text_match", lambda *_: 0.0)
    score_free_running(run)
    assert np.isfinite(run.contrast).all()


def test_each_way_to_sound_is_sharpened_and_recordings_are_not(
    voice, tiny_corpus, tmp_path, monkeypatch
):
    """evaluate.py's sounds and export_mels.py's mels."""
    voice = load_checkpoint(voice)._replace(contrast=UNEVEN)
    clip = validation.TTSDataset(tiny_corpus.test_manifest, AUDIO, voice.tokenizer)[0]
    mels = []
    monkeypatch.setattr(evaluate, "to_audio", lambda mel, *_: mels.append(mel) or mel[:, 0])
    dull = 0.5 * clip.mel
    row = {"path": clip.path, "text": "a", "mcd_db": 1.0, "stopped_by_itself": 1.0}
    scored = ScoredClip(row, clip.mel, dull, torch.ones(len(dull), 1))
    make_sounds(scored, voice, None)
    save_worst([scored], voice, tmp_path, None)
    sharp = sharpen(dull, AUDIO, UNEVEN)
    for mel, expected in zip(mels, (sharp, clip.mel, sharp), strict=True):
        assert torch.equal(mel, expected)
    torch.manual_seed(0)
    (with_it,) = make_mels(voice, [clip], "teacher_forced")
    torch.manual_seed(0)
    (without,) = make_mels(voice._replace(contrast=None), [clip], "teacher_forced")
    torch.testing.assert_close(with_it, sharpen(without, AUDIO, UNEVEN))
    assert torch.equal(make_mels(voice, [clip], "recording")[0], clip.mel)


def test_a_file_without_a_contrast_has_none_and_a_broken_one_is_named(voice, tmp_path):
    assert load_checkpoint(voice).contrast is None
    config = json.loads((voice / "config.json").read_text())
    zeros, ones = [0.0] * 80, [1.0] * 80
    for broken in (
        {"mean": [0.0], "scale": [1.0]},
        *({"mean": zeros, "scale": [x] * 80} for x in ("1", True, 0.9, -3, 1e300, 10**400)),
        *({"mean": [x] * 80, "scale": ones} for x in (float("nan"), 10**400)),
        {"mean": zeros},
        None,
        3,
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"contrast": broken}))
        with pytest.raises(DataError, match=r"config\.json: not a checkpoint's config"):
            load_checkpoint(tmp_path)
