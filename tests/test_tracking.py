"""What wandb and TensorBoard get of a run, and runs that go on where one of them fails."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from accelerate import Accelerator
from PIL import Image

import train_taco
from config import TrainConfig, parse_args
from forked_run import train
from resuming import read_state
from test_train_taco import run_flags
from tracking import EVENTS_FOLDER, TensorBoard, Tracking, Wandb, start_tracking

ROW = {"epoch": 2, "step": 30, "train_loss": 1.0, "free_running_score": 0.5}


def test_wandb_gets_the_run_and_every_score_picture_and_sound(monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    calls, logged = [], []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    stub = SimpleNamespace(
        init=lambda **arguments: calls.append(arguments) or run,
        Image=lambda path: ("image", path),
        Audio=lambda path: ("audio", path),
    )
    monkeypatch.setitem(sys.modules, "wandb", stub)
    tracking = Tracking()
    tracking.start("wandb", lambda: Wandb("project", "run", {"flag": 1}, None))
    Wandb("project", "run", {"flag": 1}, "abc")
    first = {"project": "project", "name": "run", "config": {"flag": 1}, "id": None, "resume": None}
    assert calls == [first, {**first, "id": "abc", "resume": "allow"}]

    files = {"teacher_forced": "forced.png", "free_running": "free.png", "audio": "free.wav"}
    tracking.log_epoch(ROW, files)
    values = {
        "epoch/epoch": 2, "epoch/step": 30, "epoch/train_loss": 1.0,
        "epoch/free_running_score": 0.5, "teacher_forced": ("image", "forced.png"),
        "free_running": ("image", "free.png"), "audio": ("audio", "free.wav"),
    }  # fmt: skip
    assert logged == [(30, values)]


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


def test_tensorboard_holds_flags_scalars_pictures_and_sound_of_a_resumed_run(resumed_run):
    events = read_events(resumed_run / "work/tiny" / EVENTS_FOLDER)
    tags = events.Tags()
    for name in ("loss", "mel_after_loss", "grad_norm", "learning_rate", "frames_per_second"):
        steps = [event.step for event in events.Scalars(f"train/{name}")]
        assert steps == list(range(1, 11)), f"each step of the run that went on, once: {name}"
    history = read_state(resumed_run / "work/tiny/final_checkpoint")[0].history
    assert [row["step"] for row in history] == [5, 10]
    for name in history[0]:
        expected = {row["step"]: pytest.approx(row[name], rel=1e-6) for row in history}
        assert scalars_of(events, f"epoch/{name}") == expected, name
    losses = scalars_of(events, "train/loss")
    assert np.mean([losses[i] for i in range(6, 11)]) == pytest.approx(history[1]["train_loss"])

    assert set(tags["images"]) == {"teacher_forced", "free_running"} and tags["audio"] == ["audio"]
    for name in tags["images"]:
        pictures = {event.step: event.encoded_image_string for event in events.Images(name)}
        assert set(pictures) == {5, 10}
        for epoch, step in ((1, 5), (2, 10)):
            file = Image.open(resumed_run / f"samples/epoch_{epoch:03d}_{name}.png")
            shown = Image.open(io.BytesIO(pictures[step]))
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(file.convert("RGB")))
    sounds = {event.step: event for event in events.Audio("audio")}
    assert set(sounds) == {5, 10}
    shown, rate = soundfile.read(io.BytesIO(sounds[10].encoded_audio_string))
    samples, file_rate = soundfile.read(resumed_run / "samples/epoch_002_free_running.wav")
    assert rate == file_rate == 22050
    np.testing.assert_allclose(shown, samples, atol=2 / 32768)

    texts = events.Tensors("flags/text_summary")
    assert [event.step for event in texts] == [0, 5]
    flags = json.loads(texts[-1].tensor_proto.string_val[0])
    assert (flags["experiment_name"], flags["min_db"], flags["attention_dim"]) == ("tiny", -100, 8)


def test_what_has_been_logged_is_on_the_disk(tmp_path):
    """As when a run is killed: nothing is closed."""
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path, {}, 0)
    for step in (1, 2):
        board.log({"loss": step / 4}, step, {})
    assert scalars_of(read_events(tmp_path), "loss") == {1: 0.25, 2: 0.5}
    board.finish()


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
    assert "no TensorBoard today; pip install -r requirements-tensorboard.txt" in done.stderr
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

    def finish(self):
        raise ValueError


def test_what_fails_later_is_left_out_and_the_other_goes_on(capsys):
    heard = []
    other = SimpleNamespace(
        log=lambda *what: heard.append(what), finish=lambda: heard.append("finish")
    )
    tracking = Tracking()
    tracking.start("wandb", Broken)
    tracking.start("TensorBoard", lambda: other)
    tracking.log({"train/loss": 1.0}, 5)
    tracking.log_epoch({"step": 6}, {"audio": "a.wav"})
    assert heard == [({"train/loss": 1.0}, 5, {}), ({"epoch/step": 6}, 6, {"audio": "a.wav"})]
    said = capsys.readouterr().err
    assert said == "train_taco.py: going on without wandb (the disk is full)\n", "once"
    tracking.start("late", Broken)
    tracking.finish()
    assert heard[-1] == "finish"
    assert capsys.readouterr().err == "train_taco.py: going on without late (ValueError)\n"
