"""An offline wandb run, read back from the file that wandb writes."""

import json
import os
import struct
from pathlib import Path

import pytest
import soundfile
from PIL import Image
from wandb.proto import wandb_internal_pb2

from forked_run import CONTEXT, train
from test_train_taco import launch, run_flags
from training.checkpoints import read_state
from training.tracking import Wandb

BLOCK, HEADER = 32768, struct.Struct("<IHB")  # of the LevelDB log that a .wandb file is


def read_records(path: Path):
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log format."""
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


@pytest.fixture
def offline_run(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("PROJECT", "NAME", "ENTITY", "RUN_GROUP"):
        monkeypatch.setenv(f"WANDB_{name}", f"my_{name.lower()}")
    # Loader processes too: wandb refuses to be used, even by an import, in a forked process.
    flags = ["--log_wandb", "--wandb_log_iters", 2, "--num_workers", 1]
    flags = run_flags(tiny_corpus, tmp_path, *flags)
    launch([*flags, "--training_epochs", "1"])
    launch([*flags, "--resume_from_checkpoint", "latest"])
    return tmp_path


def test_an_offline_run_holds_flags_scalars_pictures_and_sound(offline_run):
    folders = sorted((offline_run / "wandb").glob("offline-run-*"))
    assert len({folder.name.split("-")[-1] for folder in folders}) == 1, "a resumed run is the same"
    config, rows, wandb_steps, summary = {}, [], [], {}
    for folder in folders:
        for record in read_records(next(folder.glob("*.wandb"))):
            for update in record.run.config.update if record.HasField("run") else ():
                config[update.key] = json.loads(update.value_json)
            if record.HasField("run"):
                run = record.run
                names = (run.project, run.display_name, run.entity, run.run_group)
                assert names == ("my_project", "my_name", "my_entity", "my_run_group")
            if record.HasField("history"):
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                wandb_steps.append(int(items.get("_step", record.history.step.num)))
                rows.append(items)
            for item in record.summary.update if record.HasField("summary") else ():
                key = item.key or "/".join(item.nested_key)
                summary[key] = json.loads(item.value_json)
    assert config["learning_rate"] == 0.001 and config["attention_dim"] == 8
    assert config["min_db"] == -100.0 and config["run_name"] == "tacotron2_trainer"
    assert (config["num_processes"], config["mixed_precision"]) == (1, "no")
    assert config["train_clips"] == 9 and config["parameters"] > 0 < config["train_hours"]
    assert set(config["versions"]) == {"python", "torch", "accelerate", "wandb"}
    assert wandb_steps == sorted(set(wandb_steps)), "wandb drops what does not come in order"
    scalars, places = {}, [row["step"] for row in rows if "step" in row]
    assert places == [2, 4, 5, 6, 8, 10, 10]
    for row in rows:
        scalars.setdefault(row.get("step"), {}).update(row)
    for step in (2, 4, 6, 8, 10):
        assert scalars[step]["train/loss"] > 0 and scalars[step]["train/grad_norm"] > 0
        assert scalars[step]["train/frames_per_second"] > 0
    assert scalars[2]["train/learning_rate"] == scalars[6]["train/learning_rate"] == 0.001
    assert [scalars[step]["epoch"] for step in (2, 5, 8, 10)] == [0.4, 1, 1.6, 2]
    assert 0 <= scalars[10]["free/free_running_score"] <= 1 and 0 < scalars[10]["val/focus"] <= 1
    best = read_state(offline_run / "work/tiny/best_checkpoint")[0]
    assert summary["best/epoch"] == best.best_epoch
    row = best.history[best.best_epoch - 1]
    assert summary["best/val/loss"] == row["val_loss"]
    assert summary["best/free/free_running_score"] == row["free_running_score"]

    media = [path for folder in folders for path in (folder / "files").rglob("*.*")]
    pictures = [path for path in media if path.suffix == ".png"]
    sounds = [path for path in media if path.suffix == ".wav"]
    assert len(pictures) == 4 and len(sounds) == 4
    assert {path.parent.name for path in pictures + sounds} == {"media"}
    begins = {path.name.split("_")[0] for path in sounds}
    assert begins == {"spoken", "recording"}
    assert all(Image.open(path).size[0] == 800 for path in pictures)
    assert all(soundfile.info(path).samplerate == 22050 for path in sounds)


def log_from_an_older_checkpoint(environment: dict[str, str]) -> None:
    """In a process of its own: wandb changes how Python imports."""
    os.environ.update(environment)
    tracker = Wandb("project", "run", {"versions": {}}, None)
    for step, loss in ((8, 0.8), (10, 0.7), (6, 0.6), (8, 0.5), (12, 0.4)):
        tracker.log({"train/loss": loss}, step, {})
    tracker.finish()


def test_no_point_is_lost_after_going_back(tmp_path):
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    process = CONTEXT.Process(target=log_from_an_older_checkpoint, args=(environment,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    rows, metrics = [], []
    for record in read_records(next(tmp_path.glob("wandb/offline-run-*/*.wandb"))):
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            rows.append((int(items["step"]), float(items["train/loss"])))
        if record.HasField("metric"):
            metrics.append((record.metric.glob_name, record.metric.step_metric))
    assert rows == [(8, 0.8), (10, 0.7), (6, 0.6), (8, 0.5), (12, 0.4)]
    assert ("*", "step") in metrics


def test_without_the_flag_wandb_is_not_imported(tiny_corpus, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise RuntimeError('wandb was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    train(run_flags(tiny_corpus, tmp_path, "--training_epochs", 1), pictures=True)


def test_training_goes_on_without_wandb(offline_run, tiny_corpus, tmp_path, monkeypatch):
    """And a run that goes on for a while without it keeps its id."""
    before = read_state(tmp_path / "work/tiny/final_checkpoint")[0]
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no wandb today')")
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--training_epochs", 3, "--log_wandb", "--resume_from_checkpoint", "latest"]
    done = train(run_flags(tiny_corpus, tmp_path, *flags))
    assert "going on without wandb (no wandb today)" in done.stderr
    assert "epoch 3 done" in done.stdout
    after = read_state(tmp_path / "work/tiny/final_checkpoint")[0]
    assert (before.epoch, after.epoch) == (2, 3) and before.wandb_run_id
    assert after.wandb_run_id == before.wandb_run_id
