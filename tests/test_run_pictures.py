"""The pictures, sounds and films that a training run leaves, and the clip that they show."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import training.pictures as pictures
from conftest import SENTENCES, speak
from dataset import AudioConfig, Utterance, audio_to_mel
from model import Tacotron2Output
from runs import random_states
from speech.contrast import Contrast, sharpen
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


def test_sample_of_an_epoch(monkeypatch, tmp_path):
    """Each array, title and file; the sound is free running's, at its level and length."""
    tokenizer, text, drawn = Tokenizer(), SENTENCES[5], {}
    wav = torch.from_numpy(speak(text)).float()
    free_mel, tokens = audio_to_mel(wav, CONFIG), tokenizer.encode(text)
    true, before, after = (torch.full((52, 80), value) for value in (-1.0, 0.5, 1.0))
    forced = Tacotron2Output(
        before[None], after[None], torch.zeros(1, 52), torch.full((1, 52, len(tokens)), 0.25)
    )
    free_alignment = torch.full((len(free_mel), len(tokens)), 0.75)
    contrast = Contrast([0.0] * 80, [1.0] * 40 + [1.2] * 40)
    run = SimpleNamespace(
        bare_model=StubModel(forced, free_running(free_mel, free_alignment)),
        config=SimpleNamespace(max_decoder_steps=2000, keep_pictures=30),
        audio_config=CONFIG, tokenizer=tokenizer, vocoder=None, pictures=tmp_path,
        val_set=None, contrast=contrast,
    )  # fmt: skip
    monkeypatch.setattr(
        pictures, "choose_sample", lambda _: Utterance(tokens, true, text, "clip.wav")
    )
    monkeypatch.setattr(pictures, "summary_figure", lambda *what, title: (*what, title))
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.update({path: figure}))
    torch.manual_seed(0)
    media = draw_sample(run, 7)

    assert run.bare_model.calls[1][1][2] == 204
    stem, spoken_mel = f"{tmp_path}/epoch_007", sharpen(free_mel, CONFIG, contrast)
    assert {name: medium.path for name, medium in media.items()} == {
        "teacher_forced": f"{stem}_teacher_forced.png",
        "free_running": f"{stem}_free_running.png",
        "spoken": f"{stem}_free_running.wav",
        "recording": "clip.wav",
    }
    for kind, mel, alignment, title in (
        ("teacher_forced", after, forced.alignments[0], "teacher forced"),
        ("free_running", spoken_mel, free_alignment, "free running, stopped by itself"),
    ):
        *arrays, shown_text, hop_seconds, shown_title = drawn[media[kind].path]
        assert all(torch.equal(a, b) for a, b in zip(arrays, (true, mel, alignment), strict=True))
        assert (shown_text, hop_seconds) == (text.lower(), 256 / 22050)
        assert shown_title == f"epoch 7, {title}"
        assert media[kind].caption == f"epoch 7, {title}: {text.lower()}"
    spoken, rate = soundfile.read(media["spoken"].path, dtype="float32")
    assert rate == 22050 and len(spoken) == 256 * len(free_mel)
    assert np.std(spoken) == pytest.approx(float(wav.std()), rel=0.1)
    again = audio_to_mel(torch.from_numpy(spoken), CONFIG)
    assert (again - spoken_mel)[spoken_mel > 0].abs().mean() < 0.3  # 3.75 dB, above -50 dB


@pytest.mark.parametrize(
    ("seconds", "shown"),  # where the median is 2 s, the nearest of 3 s or more, if there is one
    [([1.0, 5.0, 9.0, 2.0, 8.0], 5.0), ([6.0, 1.0, 1.5, 9.0, 2.0], 6.0), ([1.0, 2.9, 2.0], 2.0)],
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
    frames = sorted(run.pictures.glob("*.npz"))
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
    assert len(list(run.pictures.glob("*.npz"))) == 8


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
    assert set(range(1, 9)) <= set(epochs) and 20 < epochs[15] < 50 and max(np.diff(epochs)) < 50


def test_a_film_goes_from_the_first_step_to_the_last_epoch(monkeypatch, tmp_path, capsys):
    """In the order of numbers; other texts are of an earlier choice, and broken files left out."""
    frames = {"000_step_000000": 0, "000_step_000025": 1, "002": 2, "999": 3, "1000": 4}
    for name, number in {**frames, "1001": 5}.items():  # not validated, or of another run
        arrays = {"alignments": torch.full((1, 3, 2), number), "mels_after": torch.zeros(1, 3, 4)}
        write_frame(tmp_path / f"epoch_{name}.npz", SimpleNamespace(**arrays))
    longer = {"alignments": torch.ones(1, 3, 5), "mels_after": torch.zeros(1, 3, 4)}
    write_frame(tmp_path / "epoch_001.npz", SimpleNamespace(**longer))
    (tmp_path / "epoch_004.npz").write_bytes(b"broken")
    films = []
    monkeypatch.setattr(pictures, "alignment_film", lambda *what, **more: films.append(what))
    history = [{"epoch": e, "free_running_score": 0.5} for e in (1, 2, 4, 999, 1000)]
    make_film(tmp_path, [*history, {"epoch": 1001, "train_loss": 1.0}], "hi", 0.5)
    ((alignments, path, _, titles, _),) = films
    assert path == tmp_path / "alignment.gif"
    assert titles == ("step 0", "step 25", "epoch 2", "epoch 999", "epoch 1000")
    assert [array[0, 0] for array in alignments] == [0, 1, 2, 3, 4]
    assert "epoch_004.npz" in capsys.readouterr().err
