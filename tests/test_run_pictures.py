"""The pictures, sounds and films that a training run leaves, and the clip that they show."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import training.pictures as pictures
from conftest import SENTENCES, speak
from dataset import AudioConfig, Utterance, audio_to_mel
from model import Tacotron2Output
from stub_model import StubModel, free_running
from text.tokenizer import Tokenizer
from training.pictures import (
    choose_sample,
    draw_sample,
    film_first_epoch,
    make_film,
    thin_out,
    write_frame,
)

CONFIG = AudioConfig()


@pytest.mark.parametrize(
    ("max_decoder_steps", "limit", "stopped"), [(2000, 204, True), (150, 150, False)]
)
def test_sample_of_an_epoch(monkeypatch, tmp_path, max_decoder_steps, limit, stopped):
    """Each array, title and file; the sound is free running's, at its level and length."""
    tokenizer, text, drawn = Tokenizer(), SENTENCES[5], {}
    wav = torch.from_numpy(speak(text)).float()
    free_mel, tokens = audio_to_mel(wav, CONFIG), tokenizer.encode(text)
    true, before, after = (torch.full((52, 80), value) for value in (-1.0, 0.5, 1.0))
    forced = Tacotron2Output(
        before[None], after[None], torch.zeros(1, 52), torch.full((1, 52, len(tokens)), 0.25)
    )
    free_alignment = torch.full((len(free_mel), len(tokens)), 0.75)
    run = SimpleNamespace(
        bare_model=StubModel(forced, free_running(free_mel, free_alignment, stopped)),
        config=SimpleNamespace(max_decoder_steps=max_decoder_steps, keep_pictures=30),
        audio_config=CONFIG, tokenizer=tokenizer, vocoder=None, pictures=tmp_path,
        val_set=None,
    )  # fmt: skip
    monkeypatch.setattr(
        pictures, "choose_sample", lambda _: Utterance(tokens, true, text, "clip.wav")
    )
    monkeypatch.setattr(pictures, "summary_figure", lambda *what, title: (*what, title))
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.update({path: figure}))
    torch.manual_seed(0)
    media = draw_sample(run, 7)

    (_, forward), (_, infer) = run.bare_model.calls
    expected = (tokens[None], torch.tensor([len(tokens)]), true[None], torch.tensor([52]))
    assert all(torch.equal(a, b) for a, b in zip(forward, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(infer[:2], expected[:2], strict=True))
    assert infer[2:] == (limit,)

    stem = f"{tmp_path}/epoch_007"
    assert {name: medium.path for name, medium in media.items()} == {
        "teacher_forced": f"{stem}_teacher_forced.png",
        "free_running": f"{stem}_free_running.png",
        "spoken": f"{stem}_free_running.wav",
        "recording": "clip.wav",
    }
    ending = "stopped by itself" if stopped else "reached the limit"
    for kind, mel, alignment, title in (
        ("teacher_forced", after, forced.alignments[0], "teacher forced"),
        ("free_running", free_mel, free_alignment, f"free running, {ending}"),
    ):
        *arrays, shown_text, hop_seconds, shown_title = drawn[media[kind].path]
        assert all(torch.equal(a, b) for a, b in zip(arrays, (true, mel, alignment), strict=True))
        assert (shown_text, hop_seconds) == (text.lower(), 256 / 22050)
        assert shown_title == f"epoch 7, {title}"
        assert media[kind].caption == f"epoch 7, {title}: {text.lower()}"
    assert media["spoken"].caption == media["free_running"].caption
    assert media["recording"].caption == f"recording: {text.lower()}"
    with np.load(f"{stem}.npz") as content:
        np.testing.assert_array_equal(content["alignment"], forced.alignments[0])
        np.testing.assert_array_equal(content["mel"], after)

    spoken, rate = soundfile.read(media["spoken"].path, dtype="float32")
    assert rate == 22050 and len(spoken) == 256 * len(free_mel)
    assert np.std(spoken) == pytest.approx(float(wav.std()), rel=0.1)
    again = audio_to_mel(torch.from_numpy(spoken), CONFIG)
    assert (again - free_mel)[free_mel > 0].abs().mean() < 0.3  # 3.75 dB, of what is above -50 dB


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        ([1.0, 5.0, 9.0, 2.0, 8.0], 5.0),
        ([6.0, 1.0, 1.5, 9.0, 2.0], 6.0),  # the median is 2 s: the nearest of 3 s or more
        ([1.0, 2.9, 2.0], 2.0),
    ],
)
def test_the_clip_that_is_shown_is_of_median_length_but_not_short(seconds, shown):
    class Clips(list):
        audio_config = CONFIG
        n_frames = [x * 22050 / 256 for x in seconds]  # noqa: RUF012

    assert choose_sample(Clips(seconds)) == shown


def test_the_film_begins_before_the_first_step_and_training_goes_on_as_if_it_did_not(
    begin, monkeypatch
):
    """Eight frames of an epoch of 100 steps, each with the same dropout."""
    run, state = begin()
    monkeypatch.setattr(type(run), "steps_per_epoch", 100)
    before, weights = random_states(), [p.clone() for p in run.model.state_dict().values()]
    for state.epoch_step in range(100):
        state.step = state.epoch_step
        film_first_epoch(run, state)
    steps = [0, 12, 25, 37, 50, 62, 75, 87]
    frames = sorted(run.pictures.iterdir())
    assert [path.name for path in frames] == [f"epoch_000_step_{step:06d}.npz" for step in steps]
    assert len({path.read_bytes() for path in frames}) == 1
    assert random_states() == before and run.model.training
    now = run.model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(now, weights, strict=True))
    clip = run.val_set[1]
    lengths = torch.tensor([len(clip.tokens)]), torch.tensor([len(clip.mel)])
    with run.evaluation():
        output = run.model(clip.tokens[None], lengths[0], clip.mel[None], lengths[1])
    with np.load(frames[0]) as content:
        for name, array in (("alignment", output.alignments), ("mel", output.mels_after)):
            np.testing.assert_allclose(content[name], array[0], rtol=1e-3, atol=1e-3)
    state.epoch, state.epoch_step = 1, 0
    film_first_epoch(run, state)
    assert len(list(run.pictures.iterdir())) == 8


def random_states() -> list:
    numpy_state = np.random.get_state()[1]  # noqa: NPY002
    return [torch.get_rng_state().tolist(), numpy_state.tolist(), random.getstate()]


@pytest.fixture
def film(monkeypatch, tmp_path):
    """Make a film of the epochs of these numbers; its titles, alignments and mels."""

    def film(epochs):
        films = []

        def note(alignments, path, text, titles, hop_seconds, mels):
            assert (path, text, hop_seconds) == (tmp_path / "alignment.gif", "hi", 0.5)
            films.append((titles, alignments, mels))

        monkeypatch.setattr(pictures, "alignment_film", note)
        history = [{"epoch": epoch, "free_running_score": 0.5} for epoch in epochs]
        make_film(tmp_path, [*history, {"epoch": 3000, "train_loss": 1.0}], "hi", 0.5)
        return films[0] if films else None

    return film


def write_frame_of(number: int, path: Path, n_characters: int = 2) -> None:
    """Write a frame whose arrays hold the number."""
    shapes = {"alignments": (1, 3, n_characters), "mels_after": (1, 3, 4)}
    arrays = {name: torch.full(shape, number / 100) for name, shape in shapes.items()}
    write_frame(path, SimpleNamespace(**arrays))


def test_film_goes_from_the_first_step_through_the_first_epoch_to_the_last(film, tmp_path):
    """In the order of numbers; epochs that were not validated, or that come later, are no part."""
    assert film([1, 2]) is None
    for step in (0, 25, 50):
        write_frame_of(step, tmp_path / f"epoch_000_step_{step:06d}.npz")
    numbers = [2, 999, 1000]
    for epoch in [*numbers, 1001, 3000]:
        write_frame_of(epoch, tmp_path / f"epoch_{epoch:03d}.npz")
    titles, alignments, mels = film([1, *numbers])
    assert titles == ("step 0", "step 25", "step 50", "epoch 2", "epoch 999", "epoch 1000")
    for arrays, shape in ((alignments, (3, 2)), (mels, (3, 4))):
        for value, array in zip((0, 25, 50, *numbers), arrays, strict=True):
            np.testing.assert_allclose(array, np.full(shape, value / 100), rtol=1e-3)


def test_film_is_of_the_clip_of_the_last_epoch(film, tmp_path, capsys):
    """Other text lengths are those of an earlier choice; what cannot be read is left out."""
    for epoch, n_characters in ((1, 5), (3, 2), (5, 2)):
        write_frame_of(epoch, tmp_path / f"epoch_{epoch:03d}.npz", n_characters)
    (tmp_path / "epoch_004.npz").write_bytes(b"broken")
    assert film(range(1, 6))[0] == ("epoch 3", "epoch 5")
    assert "epoch_004.npz" in capsys.readouterr().err


def test_files_of_old_epochs_thin_out(tmp_path):
    """The first and the last stay, half of the others are of the first tenth of the training."""
    kinds = ("_free_running.wav", ".npz")
    others = {"loss.png", "epoch_000_step_000025.npz", *(f"epoch_300{kind}" for kind in kinds)}
    for name in others:
        (tmp_path / name).touch()
    for epoch in range(1, 251):
        for kind in kinds:
            (tmp_path / f"epoch_{epoch:03d}{kind}").touch()
        thin_out(tmp_path, epoch, 30)
        names = {path.name for path in tmp_path.iterdir()}
        epochs = sorted({int(name[6:9]) for name in names - others})
        assert names == others | {f"epoch_{e:03d}{kind}" for e in epochs for kind in kinds}
        assert len(epochs) == min(epoch, 30) and {1, epoch} <= set(epochs)
    assert set(range(1, 9)) <= set(epochs) and 20 < epochs[15] < 50
    gaps = np.diff(epochs)
    assert max(gaps) < 50 and all(gaps[i] <= 2 * gaps[i + 1] for i in range(len(gaps) - 2))
