"""What wandb and TensorBoard get of a run, and runs that go on where one of them fails."""

import io
import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

from forked_run import train
from runs import run_flags
from training.checkpoints import read_state
from training.config import TrainConfig
from training.tracking import Tracking


def config_for(folder: Path, **flags) -> TrainConfig:
    return TrainConfig(str(folder), *"stv", experiment_name="project", run_name="run", **flags)


@pytest.fixture(scope="module")
def resumed_run(tiny_corpus, tmp_path_factory):
    """The folder of two epochs of five steps, the second done once more from checkpoint_1."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--log_tensorboard", "--log_wandb", "--wandb_log_iters", 1, "--num_workers", 1]
    flags = run_flags(tiny_corpus, folder, *flags)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROJECT", "NAME", "ENTITY", "RUN_GROUP"):
            patch.setenv(f"WANDB_{name}", f"my_{name.lower()}")
        for name, value in (("MODE", "offline"), ("DIR", str(folder)), ("SILENT", "true")):
            patch.setenv(f"WANDB_{name}", value)
        train(flags, pictures=True)
        done = train([*flags, "--resume_from_checkpoint", "checkpoint_1"], pictures=True)
    assert "continues without" not in done.stderr and "Traceback" not in done.stderr
    return folder


def read_events(folder):
    """Read what TensorBoard shows of a folder by its own reader."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    kinds = ("scalars", "images", "audio", "tensors")
    return accumulator.EventAccumulator(str(folder), dict.fromkeys(kinds, 0)).Reload()


def scalars_of(events, name):
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.slow
def test_tensorboard_holds_the_scalars_and_flags_of_a_resumed_run(resumed_run, tiny_corpus):
    """Each step of the run that went on, once."""
    events = read_events(resumed_run / "work/tiny/tensorboard")
    for name in ("loss", "mel_after_loss", "grad_norm", "learning_rate", "frames_per_second"):
        assert [event.step for event in events.Scalars(f"train/{name}")] == [*range(1, 11)], name
    history = read_state(resumed_run / "work/tiny/final_checkpoint").history
    shown = {
        "train_loss": "train/epoch_loss", "learning_rate": "train/epoch_learning_rate",
        "val_loss": "val/loss", "focus": "val/focus", "stopped_by_itself": "free/stopped_by_itself",
        "text_match": "free/text_match", "text_gain": "val/text_gain",
    }  # fmt: skip
    for name, tag in shown.items():
        expected = {row["step"]: pytest.approx(row[name], rel=1e-6) for row in history}
        assert scalars_of(events, tag) == expected, name
    assert scalars_of(events, "epoch") == {i: pytest.approx(i / 5) for i in range(1, 11)}
    losses, rates = (scalars_of(events, f"train/{name}") for name in ("loss", "learning_rate"))
    for row in history:
        steps = range(row["step"] - 4, row["step"] + 1)
        assert np.mean([losses[i] for i in steps]) == pytest.approx(row["train_loss"])
    assert rates[5] == pytest.approx(1e-3) and rates[10] == pytest.approx(1e-3 * 0.01**0.8)

    texts = events.Tensors("flags/text_summary")
    flags = json.loads(texts[-1].tensor_proto.string_val[0])
    assert (flags["experiment_name"], flags["min_db"], flags["attention_dim"]) == ("tiny", -100, 8)
    hours = pd.read_csv(tiny_corpus.train_manifest)["duration"].sum() / 3600
    assert flags["train_clips"] == 9 and flags["train_hours"] == pytest.approx(hours, abs=1e-3)
    assert flags["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_tensorboard_holds_the_pictures_and_sounds(resumed_run):
    events, samples = read_events(resumed_run / "work/tiny/tensorboard"), resumed_run / "samples"
    tags = events.Tags()
    assert set(tags["images"]) == {"media/teacher_forced", "media/free_running"}
    assert set(tags["audio"]) == {"media/spoken", "media/recording"}
    for tag in tags["images"]:
        name = tag.split("/")[1]
        caption = events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()
        assert caption.startswith(f"epoch 2, {name.replace('_', ' ')}")
        pictures = {event.step: event.encoded_image_string for event in events.Images(tag)}
        assert set(pictures) == {5, 10}
        file = Image.open(samples / f"tiny/epoch_002_{name}.png")
        shown = Image.open(io.BytesIO(pictures[10]))
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(file.convert("RGB")))
    sound = events.Audio("media/spoken")[-1].encoded_audio_string
    shown, rate = soundfile.read(io.BytesIO(sound))
    written, _ = soundfile.read(samples / "tiny/epoch_002_free_running.wav")
    assert rate == 22050
    np.testing.assert_allclose(shown, written, rtol=0, atol=2 / 32768)


BLOCK, HEADER = 32768, struct.Struct("<IHB")  # of the LevelDB log that a .wandb file is


def read_records(path: Path):
    """Read the records of a .wandb file: 7 bytes of header, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, record, position = path.read_bytes(), b"", 7
    while position + HEADER.size <= len(data):
        if BLOCK - position % BLOCK < HEADER.size:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(data, position)
        if kind == 0:
            break
        position += HEADER.size
        record += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def read_items(items) -> dict:
    return {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items}


@pytest.mark.slow
def test_an_offline_wandb_run_holds_flags_scalars_pictures_and_sounds(resumed_run):
    folders = sorted((resumed_run / "wandb").glob("offline-run-*"))
    assert len({folder.name.split("-")[-1] for folder in folders}) == 1, "a resumed run is the same"
    config, summary, metrics, by_process = {}, {}, [], []
    for folder in folders:
        rows = []
        for record in read_records(next(folder.glob("*.wandb"))):
            if record.HasField("run"):
                run = record.run
                config |= read_items(run.config.update)
                names = (run.project, run.display_name, run.entity, run.run_group)
                assert names == ("my_project", "my_name", "my_entity", "my_run_group")
            if record.HasField("history"):
                rows.append(read_items(record.history.item))
            if record.HasField("metric"):
                metrics.append((record.metric.glob_name, record.metric.step_metric))
            if record.HasField("summary"):
                summary |= read_items(record.summary.update)
        by_process.append(rows)
    assert config["attention_dim"] == 8 and config["run_name"] == "tacotron2_trainer"
    assert ("*", "step") in metrics
    steps = [[row["step"] for row in rows if "step" in row] for rows in by_process]
    assert steps == [[*range(1, 6), *range(5, 11), 10], [*range(6, 11), 10]]
    final = read_state(resumed_run / "work/tiny/final_checkpoint")
    last = {name: value for row in by_process[1] for name, value in row.items()}
    assert last["train/epoch_loss"] == final.history[1]["train_loss"]
    assert last["free/text_match"] == final.history[1]["text_match"]
    assert final.wandb_run_id == folders[0].name.split("-")[-1]
    best = read_state(resumed_run / "work/tiny/best_checkpoint")
    assert summary["best/epoch"] == best.best_epoch
    assert summary["best/val/loss"] == best.history[best.best_epoch - 1]["val_loss"]
    media = [path for folder in folders for path in (folder / "files").rglob("*.*")]
    assert sum(path.suffix == ".png" and Image.open(path).size[0] == 800 for path in media) == 6
    sounds = [path for path in media if path.suffix == ".wav"]
    assert {path.name.split("_")[0] for path in sounds} == {"spoken", "recording"}
    assert [soundfile.info(path).samplerate for path in sounds] == [22050] * 6


def test_a_new_run_begins_with_no_events(begin, tmp_path):
    """Those of an earlier one would be taken for its own when it is resumed."""
    pytest.importorskip("tensorboard")
    folder = tmp_path / "work/tiny/tensorboard"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.old").touch()
    (folder / "notes.txt").touch()
    run, _ = begin("--log_tensorboard")
    run.progress.finish()
    new, notes = sorted(path.name for path in folder.iterdir())
    assert new != "events.out.tfevents.1.old" and notes == "notes.txt"


def test_a_tracker_that_fails_is_left_out_and_the_other_goes_on(tmp_path, capsys):
    def fail(*_):
        raise OSError("the disk\nis full")

    logged = []
    tracking = Tracking(config_for(tmp_path), {}, 0, None)
    assert tracking.trackers == {}, "without the flags there is none"
    tracking.trackers = {"wandb": SimpleNamespace(log=fail)}
    tracking.trackers["TensorBoard"] = SimpleNamespace(log=lambda *what: logged.append(what))
    for _ in range(2):
        tracking.log_step({"loss": 1.0}, 5, 0.5)
    assert logged == [({"epoch": 0.5, "train/loss": 1.0}, 5, {})] * 2
    said = capsys.readouterr().err
    assert said.endswith("training continues without wandb (the disk is full)\n")
    assert said.count("\n") == 1


def test_a_tracker_that_cannot_start_is_left_out(tmp_path, monkeypatch, capsys):
    """And a run that goes on for a while without wandb keeps its id."""

    def fail(**_):
        raise OSError("no wandb today")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fail))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracking = Tracking(config_for(tmp_path, log_wandb=True, log_tensorboard=True), {}, 7, "abc")
    assert tracking.trackers == {} and tracking.wandb_run_id == "abc"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "continues without wandb (no wandb today)" in said[0]
    assert "without TensorBoard (" in said[1] and "-r requirements/tensorboard.txt" in said[1]
