"""What a run shows: every number, picture and sound, on values that are told from each other."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import training.reporting as reporting
from conftest import SENTENCES, speak
from dataset import AudioConfig, Utterance, audio_to_mel
from model import Tacotron2Output
from stub_model import StubModel, free_running
from text.tokenizer import Tokenizer
from training.config import TrainConfig
from training.reporting import (
    Meter,
    draw_losses,
    draw_sample,
    make_film,
    print_epoch,
    thin_out,
)

CONFIG = AudioConfig()
STEPS = (  # seconds, losses, frames; a step without losses was skipped
    (1.0, {"loss": 1.0, "stop_loss": 0.5}, 100.0),
    (3.0, {"loss": 2.0, "stop_loss": 0.25}, 300.0),
    (2.0, {"loss": 4.0, "stop_loss": 2.0}, 500.0),
    (5.0, {"loss": 3.0, "stop_loss": 1.0}, 200.0),
    (1.0, {}, 100.0),
    (1.0, {"loss": 6.0, "stop_loss": 8.0}, 1100.0),
)


@pytest.fixture
def show_steps(monkeypatch):
    """Steps 25 to 30 of a run, 5 to 10 of the third of five epochs, on a clock set by hand."""

    def show_steps(
        is_main_process: bool = True, flag: str | None = "log_wandb"
    ) -> tuple[Meter, list[tuple]]:
        now, logged = [50.0], []
        monkeypatch.setattr(reporting, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        accelerator = SimpleNamespace(is_main_process=is_main_process)
        flags = {flag: True} if flag else {}
        config = TrainConfig(
            *"wstv", training_epochs=5, console_out_iters=3, wandb_log_iters=2, **flags
        )
        tracking = SimpleNamespace(log_step=lambda *what: logged.append(what))
        meter = Meter(accelerator, config, tracking, epoch=2, epoch_step=4, steps_per_epoch=10)
        for i, (seconds, losses, n_frames) in enumerate(STEPS, start=5):
            now[0] += seconds
            scalars = {"learning_rate": i / 1000, "grad_norm": i / 10}
            meter.update(i, 20 + i, losses, torch.tensor(n_frames), scalars)
        meter.bar.close()
        return meter, logged

    return show_steps


def test_lines_of_the_console(show_steps, capsys):
    """Means and speed since the last show; the time left from all of this epoch's steps.

    Step 26 goes to wandb, 27 to the console, 28 to wandb and 30 to both. At step 27, 3 steps have
    taken 6 s and 23 are left; at step 30, 6 have taken 13 s and 20 are left.
    """
    show_steps()
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "epoch 3  step 7/10  loss 4.000  stop 2.000  frames/s 250  left 0:00:46",
        "epoch 3  step 10/10  loss 6.000  stop 8.000  frames/s 600  left 0:00:43",
    ]
    assert said.err == ""


def test_only_the_main_process_shows(show_steps, capsys):
    show_steps(is_main_process=False)
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal(show_steps, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    meter, _ = show_steps()
    said = capsys.readouterr()
    last = said.err.strip().split("\r")[-1]
    assert last.startswith("epoch 3/5: 100%") and "10/10" in last and said.out == ""
    assert "loss=6.000, stop=8.000, frames/s=600, left=0:00:43" in last
    assert meter.bar.initial == 4


@pytest.mark.parametrize("flag", ["log_wandb", "log_tensorboard"])
def test_scalars_of_the_trackers(show_steps, flag):
    _, logged = show_steps(flag=flag)
    by_hand = {26: (1.5, 0.375, 100.0), 28: (3.0, 1.0, 40.0), 30: (6.0, 8.0, 600.0)}
    assert logged == [
        (
            {
                "loss": loss,
                "stop_loss": stop_loss,
                "learning_rate": (step - 20) / 1000,
                "grad_norm": (step - 20) / 10,
                "frames_per_second": speed,
            },
            step,
            2 + (step - 20) / 10,  # epochs
        )
        for step, (loss, stop_loss, speed) in by_hand.items()
    ]


def test_the_lines_after_an_epoch(capsys):
    """Aligned from epoch to epoch; no longer than a terminal of 110 columns."""
    row = {"train_loss": 1.25, "train_stop_loss": 9.0, "val_loss": 2.5, "val_stop_loss": 9.0}
    scores = {"focus": 0.75, "coverage": 0.875, "monotonicity": 1.0, "stopped_by_itself": 0.9375}
    scores |= {"free_running_focus": 0.5, "free_running_coverage": 0.625}
    scores |= {"free_running_monotonicity": 0.125, "free_running_score": 0.625}
    print_epoch({"epoch": 3, "step": 30, **row, **scores, "learning_rate": 0.5}, n_skipped=0)
    print_epoch({"epoch": 4, "step": 40, "train_loss": 1.125}, n_skipped=0)
    scores["free_running_score"] = 0.375
    print_epoch({"epoch": 250, **row, **scores, "train_loss": 12.5}, n_skipped=2)
    second = (
        "forced / free   focus 0.750 / 0.500  coverage 0.875 / 0.625  monotonicity 1.000 / 0.125"
        "  stopped_by_itself 0.938"
    )
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "epoch 3 done    train_loss  1.250  val_loss  2.500  free_running_score 0.625 (good)",
        second,
        "epoch 4 done    train_loss  1.125",
        "epoch 250 done  train_loss 12.500  val_loss  2.500  free_running_score 0.375 "
        "(fair: 0.5 to 0.8 is good)  skipped_steps 2",
        second,
    ]
    assert len(second) <= 112 and len(said[0]) <= 90


@pytest.fixture
def drawn(monkeypatch):
    """What would be drawn, by the picture's name, in place of the picture."""
    drawn = {}

    def note(*arguments, title):
        return (*arguments, title)

    monkeypatch.setattr(reporting, "summary_figure", note)
    monkeypatch.setattr(reporting, "loss_figure", lambda history: history)
    monkeypatch.setattr(reporting, "save_figure", lambda figure, path: drawn.update({path: figure}))
    return drawn


@pytest.mark.parametrize(
    ("max_decoder_steps", "limit", "stopped"), [(2000, 204, True), (150, 150, False)]
)
def test_sample_of_an_epoch(drawn, tmp_path, max_decoder_steps, limit, stopped):
    """Each array, title and file; the sound is free running's, at its level and length."""
    tokenizer, text = Tokenizer(), SENTENCES[5]
    wav = torch.from_numpy(speak(text)).float()
    free_mel, tokens = audio_to_mel(wav, CONFIG), tokenizer.encode(text)
    true, before, after = (torch.full((52, 80), value) for value in (-1.0, 0.5, 1.0))
    forced = Tacotron2Output(
        before[None], after[None], torch.zeros(1, 52), torch.full((1, 52, len(tokens)), 0.25)
    )
    free_alignment = torch.full((len(free_mel), len(tokens)), 0.75)
    model = StubModel(forced, free_running(free_mel, free_alignment, stopped))
    torch.manual_seed(0)
    media = draw_sample(
        model, Utterance(tokens, true, text, "clip.wav"), CONFIG, tokenizer, max_decoder_steps,
        tmp_path, 7,
    )  # fmt: skip

    (_, forward), (_, infer) = model.calls
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
        assert set(content) == {"alignment", "mel"}
        np.testing.assert_array_equal(content["alignment"], forced.alignments[0])
        np.testing.assert_array_equal(content["mel"], after)

    spoken, rate = soundfile.read(media["spoken"].path, dtype="float32")
    assert rate == 22050 and len(spoken) == 256 * len(free_mel)
    assert np.std(spoken) == pytest.approx(float(wav.std()), rel=0.1)
    again = audio_to_mel(torch.from_numpy(spoken), CONFIG)
    assert (again - free_mel)[free_mel > 0].abs().mean() < 0.3  # 3.75 dB, of what is above -50 dB


@pytest.fixture
def films(monkeypatch):
    """Titles, alignments and mels of every film, in place of the film."""
    films = []

    def film(alignments, path, text, titles, hop_seconds, mels):
        assert (path.name, text, hop_seconds) == ("alignment.gif", "hi", 0.5)
        films.append((titles, alignments, mels))

    monkeypatch.setattr(reporting, "alignment_film", film)
    return films


def write_frame(folder, epoch, n_characters=2, step=None):
    """An epoch's arrays, which hold its number, or those of a step of the first epoch."""
    shapes = {"alignments": (1, 3, n_characters), "mels_after": (1, 3, 4)}
    arrays = {name: torch.full(shape, (step or epoch) / 100) for name, shape in shapes.items()}
    name = f"epoch_{epoch:03d}" if step is None else f"epoch_000_step_{step:06d}"
    reporting.write_frame(folder / f"{name}.npz", SimpleNamespace(**arrays))


def rows(epochs):
    return [{"epoch": epoch, "free_running_score": 0.5} for epoch in epochs]


def test_film_goes_from_the_first_step_through_the_first_epoch_to_the_last(films, tmp_path):
    for step in (0, 25, 50):
        write_frame(tmp_path, 0, step=step)
    numbers = [2, 999, 1000]  # in the order of numbers, not of letters
    for epoch in [*numbers, 1001, 3]:
        write_frame(tmp_path, epoch)
    make_film(tmp_path, [*rows([1, *numbers]), {"epoch": 3, "train_loss": 1.0}], "hi", 0.5)
    ((titles, alignments, mels),) = films
    assert titles == ("step 0", "step 25", "step 50", "epoch 2", "epoch 999", "epoch 1000")
    for arrays, shape in ((alignments, (3, 2)), (mels, (3, 4))):
        for value, array in zip((0, 25, 50, *numbers), arrays, strict=True):
            np.testing.assert_allclose(array, np.full(shape, value / 100), rtol=1e-3)


def test_film_is_of_the_clip_of_the_last_epoch(films, tmp_path):
    """Other text lengths are those of an earlier choice; what cannot be read is left out."""
    for epoch, n_characters in ((1, 5), (2, 5), (3, 2), (5, 2)):
        write_frame(tmp_path, epoch, n_characters)
    (tmp_path / "epoch_004.npz").write_bytes(b"broken")
    make_film(tmp_path, rows(range(1, 6)), "hi", 0.5)
    assert films[0][0] == ("epoch 3", "epoch 5")


def test_there_is_no_film_of_nothing(films, tmp_path):
    make_film(tmp_path, rows([1]), "hi", 0.5)
    assert films == []


def test_losses_are_drawn(drawn, tmp_path):
    draw_losses(tmp_path, rows([1, 2]))
    assert drawn == {tmp_path / "loss.png": rows([1, 2])}


def test_files_of_old_epochs_thin_out(tmp_path):
    """The first and the last stay, half of the others are of the first tenth of the training."""
    kinds = ("_free_running.wav", "_teacher_forced.png", ".npz")
    others = {"loss.png", "epoch_000_step_000025.npz", *(f"epoch_300{kind}" for kind in kinds)}
    for name in others:
        (tmp_path / name).touch()
    seen = set()
    for epoch in range(1, 251):
        for kind in kinds:
            (tmp_path / f"epoch_{epoch:03d}{kind}").touch()
        thin_out(tmp_path, epoch, 30)
        names = {path.name for path in tmp_path.iterdir()}
        epochs = {int(name[6:9]) for name in names - others}
        assert names == others | {f"epoch_{e:03d}{kind}" for e in epochs for kind in kinds}
        assert len(epochs) == min(epoch, 30) and {1, epoch} <= epochs
        seen |= epochs
    assert seen == set(range(1, 251))
    epochs = sorted(epochs)
    assert set(range(1, 9)) <= set(epochs) and 20 < epochs[15] < 50
    gaps = np.diff(epochs)
    assert max(gaps) < 50 and all(gaps[i] <= 2 * gaps[i + 1] for i in range(len(gaps) - 2))
