"""An offline wandb run, read back from the file that wandb writes."""

import json
import struct
from pathlib import Path

import pytest
import soundfile
from PIL import Image
from wandb.proto import wandb_internal_pb2

from forked_run import train
from resuming import read_state
from test_train_taco import launch, run_flags

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
    config, scalars = {}, {}
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
                scalars.setdefault(int(items.get("_step", record.history.step.num)), {}).update(
                    items
                )
    assert config["learning_rate"] == 0.001 and config["attention_dim"] == 8
    assert config["min_db"] == -100.0 and config["run_name"] == "tacotron2_trainer"
    assert {2, 4, 5, 6, 8, 10} <= set(scalars)
    for step in (2, 4, 6, 8, 10):
        assert scalars[step]["train/loss"] > 0 and scalars[step]["train/grad_norm"] > 0
        assert scalars[step]["train/frames_per_second"] > 0
    assert scalars[2]["train/learning_rate"] == scalars[6]["train/learning_rate"] == 0.001
    assert scalars[5]["epoch/epoch"] == 1 and scalars[10]["epoch/epoch"] == 2
    assert 0 <= scalars[10]["epoch/free_running_score"] <= 1

    media = [path for folder in folders for path in (folder / "files").rglob("*.*")]
    pictures = [path for path in media if path.suffix == ".png"]
    sounds = [path for path in media if path.suffix == ".wav"]
    assert len(pictures) == 4 and len(sounds) == 2
    assert all(Image.open(path).size[0] == 800 for path in pictures)
    assert all(soundfile.info(path).samplerate == 22050 for path in sounds)


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
