"""extras/publish.py: what it uploads, and the model card."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from extras import publish
from fake_hub import fake_hub
from speech.voice import load_checkpoint

TOKEN = "hf_secretsecretsecret"
NAME = "someone/a-voice"
REPORT = {
    "clips": 3, "step": 7, "manifest": "/home/someone/data/test_metadata.csv",
    "checkpoint": "/home/someone/demo/final_checkpoint", "asr": "/home/someone/ear",
    "stopped_by_itself": 1.0,
    "free_running_score": 0.5939, "mcd_db_median": float("nan"), "focus": 0.61,
    "intervals": {"free_running_score": [0.55, 0.65]},
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    with fake_hub(str(tmp_path / "cache")) as hub:
        yield hub


@pytest.fixture
def run(voice, tmp_path):
    """Make the files of a run: demo/work_dir/demo/final_checkpoint, and the others around it."""
    demo = tmp_path / "demo"
    checkpoint = Path(shutil.copytree(voice, demo / "work_dir/demo/final_checkpoint"))
    for name, content in {
        checkpoint / "optimizer.bin": "not to be published",
        checkpoint / "trainer_state.json": '{"step": 7, "flags": "/home/someone"}',
        demo / "report.json": json.dumps(REPORT),
        demo / "validation/demo/epoch_999_free_running.png": "picture of 999",
        demo / "validation/demo/epoch_1000_free_running.png": "picture of 1000",
        demo / "validation/demo/loss.png": "losses",
        **{demo / f"spoken/00{i}.wav": f"sound 00{i}" for i in (1, 2, 3)},
        demo / "spoken/001.txt": "hear me.\n",
    }.items():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(content)
    return checkpoint


def publish_it(checkpoint, *flags) -> None:
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, *map(str, flags)])


def refused(*flags) -> str:
    with pytest.raises(SystemExit) as end:
        publish_it(*flags)
    return str(end.value.code)


def test_a_voice_is_published_and_loaded_again(hub, run, capsys):
    publish_it(run, "--private", "--data", "LJSpeech", "--license", "cc0-1.0")
    printed = capsys.readouterr()
    assert printed.out == f"published: {hub.url}/{NAME}\n" and not printed.err
    assert hub.created[0]["visibility"] == "private"
    files = hub.repos[NAME]
    assert set(files) == {
        "README.md", "config.json", "model.safetensors", "alignment.png", "loss.png",
        "sound_1.wav", "sound_2.wav",
    }  # fmt: skip
    assert files["alignment.png"] == b"picture of 1000" and files["sound_2.wav"] == b"sound 002"
    assert not any(b"/home/someone" in file or TOKEN.encode() in file for file in files.values())
    uploads = [token for method, _, token in hub.asked if method == "POST"]
    assert uploads and set(uploads) == {f"Bearer {TOKEN}"}
    own = load_file(run / "model.safetensors")
    loaded = load_checkpoint(NAME).model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in own.items())


def test_the_card_has_what_the_hub_and_people_read(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    publish_it(run, "--data", "LJSpeech", "--dry_run", "--output_dir", tmp_path / "card")
    _, metadata, text = (tmp_path / "card/README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert metadata["language"] == "en" and metadata["pipeline_tag"] == "text-to-speech"
    (model,) = metadata["model-index"]
    (results,) = model["results"]
    assert model["name"] == "a-voice" and results["dataset"]["name"] == "LJSpeech"
    values = {metric["type"]: metric["value"] for metric in results["metrics"]}
    assert values == {"stopped_by_itself": 1.0, "free_running_score": 0.5939, "focus": 0.61}
    for part in (
        "trained on LJSpeech, 7 steps. Language: en.", f'load_checkpoint("{NAME}")',
        "| free-running score | 0.594 | 0.550 to 0.650 |\n| focus", "on 3 clips of `test_metadata.",
        "; ear counted the word", "hear me.\n\n<audio controls src=", "/resolve/main/sound_2.wav",
        "](alignment.png)", "](loss.png)",
    ):  # fmt: skip
        assert part in text


def test_the_numbers_of_another_voice_stay_off_the_card(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = REPORT | {"checkpoint": "/home/someone/work_dir/first/final_checkpoint"}
    (tmp_path / "demo/report.json").write_text(json.dumps(report))
    publish_it(run, "--dry_run", "--output_dir", tmp_path / "card")
    assert "is of another checkpoint" in capsys.readouterr().err
    assert "0.594" not in (tmp_path / "card/README.md").read_text()


def test_sounds_that_are_older_than_the_weights_stay_off_the_card(hub, run, capsys):
    for path in run.parents[2].glob("spoken/*.wav"):
        os.utime(path, (0, 0))
    publish_it(run)
    assert "sounds (--sounds)" in capsys.readouterr().err
    assert "sound_1.wav" not in hub.repos[NAME]


def test_what_cannot_be_published_is_refused(hub, run, tmp_path, monkeypatch):
    assert "is already there" in refused(run, "--dry_run", "--output_dir", run)
    assert "no such checkpoint folder" in refused(tmp_path / "gone")
    assert "is not a report" in refused(run, "--report", run / "config.json")
    (run / "trainer_state.json").write_text('{"step": 8}')
    sentence = refused(run, "--report", run.parents[2] / "report.json")
    assert "is of step 7, the checkpoint of step 8" in sentence
    hub.refusal = 403
    sentence = refused(run)
    assert f"--repo_id {NAME}: cannot be uploaded (" in sentence and "not yours" in sentence
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(publish, "get_token", lambda: None)
    assert "not logged in" in refused(run)
    for flags in (["--repo_id", "alone"], ["--dry_run"], ["--repo_id", "a/b@c"]):
        assert refused(run, *flags) == "2"
