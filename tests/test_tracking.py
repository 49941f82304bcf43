"""What wandb and TensorBoard get of a run, and runs that go on where one of them fails."""

import io
import json
import platform
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import train_taco
from forked_run import train
from test_train_taco import run_flags
from training.checkpoints import read_state
from training.config import TrainConfig, parse_args
from training.tracking import EVENTS_FOLDER, Media, TensorBoard, Tracking, Wandb, start_tracking

ROW = {
    "epoch": 2, "step": 30, "train_loss": 1.0, "train_stop_loss": 0.2, "val_loss": 0.7,
    "val_stop_loss": 0.1, "focus": 0.6, "stopped_by_itself": 1.0, "free_running_focus": 0.4,
    "free_running_score": 0.5, "skipped_steps": 3,
}  # fmt: skip
VALIDATED = {
    "val/loss": 0.7, "val/stop_loss": 0.1, "val/focus": 0.6, "free/stopped_by_itself": 1.0,
    "free/free_running_focus": 0.4, "free/free_running_score": 0.5,
}  # fmt: skip


def test_wandb_gets_the_run_and_every_score_picture_and_sound(monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    calls, logged, metrics, summary = [], [], [], {}
    run = SimpleNamespace(
        step=0,
        log=lambda values, step, commit: logged.append((step, values, commit)),
        define_metric=lambda name, step_metric=None: metrics.append((name, step_metric)),
        summary=summary,
    )
    stub = SimpleNamespace(
        init=lambda **arguments: calls.append(arguments) or run,
        Image=lambda path, caption: ("image", path, caption),
        Audio=lambda path, caption: ("audio", path, caption),
        __version__="0.1",
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    tracking, flags = Tracking(), {"flag": 1, "versions": {"torch": "2"}}
    tracking.start("wandb", lambda: Wandb("project", "run", flags, None))
    assert metrics == [("step", None), ("*", "step")]
    Wandb("project", "run", flags, "abc")
    sent = {"flag": 1, "versions": {"torch": "2", "wandb": "0.1"}}
    first = {"project": "project", "name": "run", "config": sent, "id": None, "resume": None}
    assert calls == [first, {**first, "id": "abc", "resume": "allow"}]

    media = {
        "free_running": Media("free.png", "epoch 2: hello"),
        "spoken": Media("free.wav", "epoch 2: hello"),
        "recording": Media("clip.flac", "recording: hello"),
    }
    tracking.log_epoch(ROW, media)
    trained = {
        "train/epoch_loss": 1.0,
        "train/epoch_stop_loss": 0.2,
        "train/epoch_skipped_steps": 3,
    }
    shown = {
        "media/free_running": ("image", "free.png", "epoch 2: hello"),
        "media/spoken": ("audio", "free.wav", "epoch 2: hello"),
        "media/recording": ("audio", "clip.flac", "recording: hello"),
    }
    assert logged == [(30, {"step": 30, "epoch": 2, **trained, **VALIDATED, **shown}, True)]
    tracking.note_best(ROW)
    best = {"epoch": 2, "step": 30, **VALIDATED}
    assert summary == {f"best/{name}": value for name, value in best.items()}
    run.step = 80  # as of a run that goes on from an older checkpoint
    tracking.log_step({"loss": 0.9}, 35, 2.5)
    assert logged[1] == (80, {"step": 35, "epoch": 2.5, "train/loss": 0.9}, True)


def read_events(folder):
    """What TensorBoard shows of a folder, read by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = ("scalars", "images", "audio", "tensors")
    events = EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0))
    return events.Reload()


def scalars_of(events, name):
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.fixture(scope="module")
def resumed_run(tiny_corpus, tmp_path_factory):
    """The folder of two epochs of five steps, the second done once more from checkpoint_1."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("run")
    flags = ["--log_tensorboard", "--wandb_log_iters", 1, "--num_workers", 1]
    flags = run_flags(tiny_corpus, folder, *flags)
    train(flags, pictures=True)
    done = train([*flags, "--resume_from_checkpoint", "checkpoint_1"], pictures=True)
    assert "going on without" not in done.stderr and "Traceback" not in done.stderr
    return folder


def test_tensorboard_holds_flags_scalars_pictures_and_sound_of_a_resumed_run(
    resumed_run, tiny_corpus
):
    events = read_events(resumed_run / "work/tiny" / EVENTS_FOLDER)
    tags = events.Tags()
    for name in ("loss", "mel_after_loss", "grad_norm", "learning_rate", "frames_per_second"):
        steps = [event.step for event in events.Scalars(f"train/{name}")]
        assert steps == list(range(1, 11)), f"each step of the run that went on, once: {name}"
    history = read_state(resumed_run / "work/tiny/final_checkpoint")[0].history
    assert [row["step"] for row in history] == [5, 10]
    shown = {
        "train_loss": "train/epoch_loss", "learning_rate": "train/epoch_learning_rate",
        "val_loss": "val/loss", "val_stop_loss": "val/stop_loss", "focus": "val/focus",
        "monotonicity": "val/monotonicity", "stopped_by_itself": "free/stopped_by_itself",
        "free_running_coverage": "free/free_running_coverage",
        "free_running_score": "free/free_running_score",
    }  # fmt: skip
    for name, tag in shown.items():
        expected = {row["step"]: pytest.approx(row[name], rel=1e-6) for row in history}
        assert scalars_of(events, tag) == expected, name
    epochs = {step: pytest.approx(step / 5) for step in range(1, 11)}
    assert scalars_of(events, "epoch") == epochs
    kinds = {tag.split("/")[0] for tag in tags["scalars"]}
    assert kinds == {"epoch", "train", "val", "free"}
    losses = scalars_of(events, "train/loss")
    assert np.mean([losses[i] for i in range(6, 11)]) == pytest.approx(history[1]["train_loss"])

    assert set(tags["images"]) == {"media/teacher_forced", "media/free_running"}
    assert set(tags["audio"]) == {"media/spoken", "media/recording"}
    for tag in tags["images"]:
        name = tag.split("/")[1]
        pictures = {event.step: event.encoded_image_string for event in events.Images(tag)}
        captions = events.Tensors(f"{tag}/text_summary")
        said = [event.tensor_proto.string_val[0].decode() for event in captions]
        assert said[-1].startswith(f"epoch 2, {name.replace('_', ' ')}")
        assert set(pictures) == {5, 10}
        for epoch, step in ((1, 5), (2, 10)):
            file = Image.open(resumed_run / f"samples/epoch_{epoch:03d}_{name}.png")
            shown = Image.open(io.BytesIO(pictures[step]))
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(file.convert("RGB")))
    sounds = {event.step: event for event in events.Audio("media/spoken")}
    assert set(sounds) == {5, 10}
    shown, rate = soundfile.read(io.BytesIO(sounds[10].encoded_audio_string))
    samples, file_rate = soundfile.read(resumed_run / "samples/epoch_002_free_running.wav")
    assert rate == file_rate == 22050
    np.testing.assert_allclose(shown, samples, atol=2 / 32768)
    recording = events.Audio("media/recording")[-1].encoded_audio_string
    shown, _ = soundfile.read(io.BytesIO(recording))
    validated = pd.read_csv(tiny_corpus.test_manifest)["file_path"]
    recordings = [soundfile.read(tiny_corpus.test_manifest.parent / path)[0] for path in validated]
    assert any(
        len(shown) == len(samples) and np.allclose(shown, samples, atol=2 / 32768)
        for samples in recordings
    )

    texts = events.Tensors("flags/text_summary")
    assert [event.step for event in texts] == [0, 5]
    flags = json.loads(texts[-1].tensor_proto.string_val[0])
    assert (flags["experiment_name"], flags["min_db"], flags["attention_dim"]) == ("tiny", -100, 8)
    assert (flags["num_processes"], flags["mixed_precision"]) == (1, "no")
    weights = load_file(resumed_run / "work/tiny/final_checkpoint/model.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    n_parameters = sum(w.numel() for name, w in weights.items() if not name.endswith(buffers))
    assert flags["parameters"] == n_parameters
    manifest = pd.read_csv(tiny_corpus.train_manifest)
    assert flags["train_clips"] == len(manifest)
    assert flags["train_hours"] == pytest.approx(manifest["duration"].sum() / 3600, abs=1e-3)
    assert flags["versions"] == {
        "python": platform.python_version(), "torch": torch.__version__,
        "accelerate": version("accelerate"),
    }  # fmt: skip


def test_what_has_been_logged_is_on_the_disk(tmp_path):
    """As when a run is killed: nothing is closed."""
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path, {}, 0)
    for step in (1, 2):
        board.log({"loss": step / 4}, step, {})
    assert scalars_of(read_events(tmp_path), "loss") == {1: 0.25, 2: 0.5}
    board.finish()


def test_a_sound_of_two_channels_is_mixed(tmp_path):
    pytest.importorskip("tensorboard")
    path, samples = tmp_path / "two.flac", np.tile([[0.5, 0.25]], (800, 1))
    soundfile.write(path, samples, 16000)
    board = TensorBoard(tmp_path / "events", {}, 0)
    board.log({}, 1, {"media/recording": Media(str(path), "recording: hello")})
    board.finish()
    (event,) = read_events(tmp_path / "events").Audio("media/recording")
    shown, rate = soundfile.read(io.BytesIO(event.encoded_audio_string))
    assert rate == 16000 and shown.shape == (800,)
    np.testing.assert_allclose(shown, 0.375, atol=1e-4)


@pytest.mark.parametrize("flags", [["--log_tensorboard"], []])
def test_a_new_run_begins_with_no_events(tiny_corpus, tmp_path, monkeypatch, flags):
    """Those of an earlier one would be taken for its own when it is resumed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = tmp_path / "work/tiny" / EVENTS_FOLDER
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.old").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    configs = parse_args(run_flags(tiny_corpus, tmp_path, *flags), "")
    run, _ = train_taco.prepare(configs, Accelerator())
    run.tracking.finish()
    names = {path.name for path in folder.iterdir()}
    assert "events.out.tfevents.1.old" not in names and "notes.txt" in names
    assert len(names) == 1 + len(flags)


def test_without_the_flag_tensorboard_is_not_imported(tiny_corpus, tmp_path, monkeypatch):
    (tmp_path / "tensorboard.py").write_text("raise RuntimeError('tensorboard was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    done = train(run_flags(tiny_corpus, tmp_path, "--training_epochs", 1), pictures=True)
    assert "imported" not in done.stderr
    assert not (tmp_path / "work/tiny" / EVENTS_FOLDER).exists()


def test_training_goes_on_without_tensorboard(tiny_corpus, tmp_path, monkeypatch):
    (tmp_path / "tensorboard.py").write_text("raise ImportError('no TensorBoard today')")
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--training_epochs", 1, "--log_tensorboard"]
    done = train(run_flags(tiny_corpus, tmp_path, *flags))
    assert done.stderr.count("going on without TensorBoard") == 1 and "Traceback" not in done.stderr
    assert "no TensorBoard today; pip install -r requirements/tensorboard.txt" in done.stderr
    assert "epoch 1 done" in done.stdout


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, []),
        ({"log_wandb": True}, ["wandb"]),
        ({"log_tensorboard": True}, ["TensorBoard"]),
        ({"log_wandb": True, "log_tensorboard": True}, ["wandb", "TensorBoard"]),
    ],
)
def test_each_flag_asks_for_its_own(tmp_path, monkeypatch, flags, names):
    for kind in (Wandb, TensorBoard):
        monkeypatch.setattr(kind, "__init__", lambda self, *_: None)
    tracking = start_tracking(TrainConfig(str(tmp_path), *"stv", **flags), {}, 0, None)
    assert list(tracking.trackers) == names


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    config = TrainConfig(str(tmp_path), *"stv", experiment_name="e", log_tensorboard=True)
    config.folder.mkdir()
    (config.folder / EVENTS_FOLDER).write_text("a file")
    tracking = start_tracking(config, {}, 0, None)
    assert tracking.trackers == {} and tracking.wandb_run_id is None
    said = capsys.readouterr().err
    assert (
        said.startswith("train_taco.py: going on without TensorBoard (") and said.count("\n") == 1
    )


class Broken:
    def log(self, values, step, media):
        raise OSError("the disk\nis full")

    def note_best(self, values):
        raise AssertionError("it has been left out")

    def finish(self):
        raise ValueError


def test_what_fails_later_is_left_out_and_the_other_goes_on(capsys):
    heard = []
    other = SimpleNamespace(
        log=lambda *what: heard.append(what), finish=lambda: heard.append("finish"),
        note_best=heard.append,
    )  # fmt: skip
    tracking = Tracking()
    tracking.start("wandb", Broken)
    tracking.start("TensorBoard", lambda: other)
    tracking.log_step({"loss": 1.0}, 5, 0.5)
    medium = Media("a.wav", "a")
    tracking.log_epoch({"step": 6, "epoch": 1}, {"spoken": medium})
    tracking.note_best({"step": 6, "epoch": 1})
    assert heard == [
        ({"epoch": 0.5, "train/loss": 1.0}, 5, {}), ({"epoch": 1}, 6, {"media/spoken": medium}),
        {"epoch": 1, "step": 6},
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert said == "train_taco.py: going on without wandb (the disk is full)\n", "once"
    tracking.start("late", Broken)
    tracking.finish()
    assert heard[-1] == "finish"
    assert capsys.readouterr().err == "train_taco.py: going on without late (ValueError)\n"
