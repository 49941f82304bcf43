"""Checkpoints by their names on the Hugging Face Hub, and how they get there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import export_mels
import train_taco
from command_line.files import DataError
from extras import publish
from fake_hub import fake_hub
from runs import run_flags
from speech.hub import find_checkpoint
from speech.voice import load_checkpoint

TOKEN = "hf_secretsecretsecret"
NAME = "someone/a-voice"
REPORT = {
    "clips": 3, "step": 7, "manifest": "/home/someone/data/test_metadata.csv",
    "checkpoint": "/home/someone/final_checkpoint", "asr": "/home/someone/ear",
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
def stocked(hub, voice):
    """The hub with the small checkpoint."""
    names = ("config.json", "model.safetensors")
    hub.repos[NAME] = {name: (voice / name).read_bytes() for name in names}
    hub.repos[NAME]["optimizer.bin"] = b"not to be downloaded"
    return hub


@pytest.fixture
def run(voice, tmp_path):
    """What a run leaves: demo/work_dir/demo/final_checkpoint, and the rest around it."""
    checkpoint = tmp_path / "demo/work_dir/demo/final_checkpoint"
    shutil.copytree(voice, checkpoint)
    for name in ("optimizer.bin", "random_states_0.pkl"):
        (checkpoint / name).write_bytes(b"not to be published")
    (checkpoint / "trainer_state.json").write_text('{"step": 7, "flags": "/home/someone"}')
    demo = tmp_path / "demo"
    (demo / "report.json").write_text(json.dumps(REPORT))
    for folder in ("validation", "spoken"):
        (demo / folder).mkdir()
    for epoch in ("009", "010"):
        picture = demo / f"validation/epoch_{epoch}_free_running.png"
        picture.write_bytes(f"picture of {epoch}".encode())
    (demo / "validation/loss.png").write_bytes(b"losses")
    for number in ("001", "002", "003"):
        (demo / f"spoken/{number}.wav").write_bytes(f"sound {number}".encode())
    (demo / "spoken/001.txt").write_text("hear me.\n")
    return checkpoint


def publish_it(checkpoint, *flags) -> None:
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, *map(str, flags)])


def refused(*flags) -> str:
    with pytest.raises(SystemExit) as end:
        publish_it(*flags)
    return str(end.value.code)


def test_a_voice_is_published_and_loaded_again(hub, run, capsys):
    publish_it(run, "--private", "--data", "LJSpeech", "--license", "cc0-1.0")
    said = capsys.readouterr()
    assert said.out == f"published: {hub.url}/{NAME}\n" and "left out" not in said.err
    assert hub.created[0]["visibility"] == "private"
    files = hub.repos[NAME]
    assert set(files) == {
        "README.md", "config.json", "model.safetensors", "alignment.png", "loss.png",
        "sound_1.wav", "sound_2.wav",
    }  # fmt: skip
    assert files["alignment.png"] == b"picture of 010" and files["sound_2.wav"] == b"sound 002"
    assert all(b"/home/someone" not in content for content in files.values())
    uploads = [token for method, _, token in hub.asked if method == "POST"]
    assert uploads and set(uploads) == {f"Bearer {TOKEN}"}
    assert TOKEN not in said.out + said.err and TOKEN.encode() not in b"".join(files.values())
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
    assert "| free-running score | 0.594 | 0.550 to 0.650 |" in text
    assert f'load_checkpoint("{NAME}")' in text and "7 steps" in text
    assert "ear counted the word" in text and "/home/someone" not in text
    assert "hear me." in text and f"/{NAME}/resolve/main/sound_1.wav" in text
    assert "](alignment.png)" in text and "](loss.png)" in text and "test_metadata.csv" in text


def test_what_is_missing_is_left_out_and_said(voice, tmp_path, capsys):
    alone = shutil.copytree(voice, tmp_path / "a/b/c/alone")
    publish_it(alone, "--dry_run", "--output_dir", tmp_path / "card")
    said = capsys.readouterr().err
    for flag in ("--report", "--samples", "--sounds", "--data", "--license"):
        assert flag in said
    text = (tmp_path / "card/README.md").read_text()
    assert not any(word in text for word in ("![", "<audio", "## Numbers", "model-index"))


def test_a_report_of_another_step_is_not_the_voices(run, tmp_path, capsys):
    (run / "trainer_state.json").write_text('{"step": 8}')
    path = run.parents[2] / "report.json"
    flags = ("--dry_run", "--output_dir", tmp_path / "card")
    assert "is of step 7, the checkpoint of step 8" in refused(run, *flags, "--report", path)
    assert not (tmp_path / "card").exists()
    publish_it(run, *flags)
    assert "is of step 7" in capsys.readouterr().err
    assert "## Numbers" not in (tmp_path / "card/README.md").read_text()


def test_what_cannot_be_published_is_told(hub, run, tmp_path, monkeypatch, capsys):
    there = ("--dry_run", "--output_dir", run)
    assert "is already there" in refused(run, *there)
    assert "no such checkpoint folder" in refused(tmp_path / "gone")
    assert "is not a report" in refused(run, "--report", run / "config.json")
    hub.refusal = 403
    said = refused(run)
    assert f"--repo_id {NAME}: the Hub refused it" in said and TOKEN not in said
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "not logged in" in refused(run)
    for flags in (["--repo_id", "alone"], ["--dry_run"], ["--repo_id", "a/b@c"]):
        with pytest.raises(SystemExit) as end:
            publish.main(["--checkpoint", "x", "--repo_id", NAME, *flags])
        assert end.value.code == 2
    capsys.readouterr()


def test_a_name_is_loaded_like_the_folder(stocked, voice):
    own = load_file(voice / "model.safetensors")
    for name in (NAME, f"{NAME}@main"):
        loaded = load_checkpoint(name).model.state_dict()
        assert all(torch.equal(loaded[key], weight) for key, weight in own.items())
    got = {path.split("/")[-1] for method, path, _ in stocked.asked if method == "GET"}
    assert got == {"config.json", "model.safetensors"}
    folder = find_checkpoint(NAME)
    stocked.shutdown()
    stocked.server_close()
    assert find_checkpoint(NAME) == folder, "a downloaded checkpoint needs no network"


def test_a_warm_start_and_an_export_take_a_name(stocked, tiny_corpus, tmp_path):
    name, manifest = "someone/nothing", str(tiny_corpus.test_manifest)
    warm_start = run_flags(tiny_corpus, tmp_path / "run", "--warm_start", name)
    export = ["--checkpoint", name, "--path_to_manifest", manifest, "--output_dir", "mels"]
    for script, flags in ((train_taco, warm_start), (export_mels, export)):
        with pytest.raises(SystemExit) as end:
            script.main(flags)
        assert "no repository of this name" in str(end.value.code)


def test_a_folder_wins(stocked, voice):
    shutil.copytree(voice, "someone/a-voice")
    assert find_checkpoint(NAME) == Path(NAME)
    shutil.rmtree(NAME)  # but its parent is left: a misspelled path
    with pytest.raises(DataError, match=f"^{NAME}: no such checkpoint folder$"):
        load_checkpoint(NAME)
    assert stocked.asked == []


def test_a_name_that_the_hub_cannot_have_is_a_folder(stocked):
    for name in ("nowhere", "../a", "a/b/c", "/tmp/gone", "a b/c"):
        with pytest.raises(DataError, match=r": no such checkpoint folder$"):
            load_checkpoint(name)
    assert stocked.asked == []


def test_what_the_hub_does_not_have_is_named(stocked):
    stocked.repos["someone/bert"] = {"config.json": b'{"architectures": ["Bert"]}'}
    stocked.repos["someone/empty"] = {}
    stocked.repos["someone/half"] = {"config.json": stocked.repos[NAME]["config.json"]}
    stocked.repos["someone/gated"] = {}
    stocked.gated.add("someone/gated")
    for name, expected in {
        "someone/nothing": "no repository of this name",
        f"{NAME}@v9": "no revision v9",
        "someone/bert": "not one of these checkpoints",
        "someone/empty": "has no config.json",
        "someone/half": "has no model.safetensors",
        "someone/gated": "only to those who have asked",
        "someone/" + "x" * 200: "no such checkpoint folder",
    }.items():
        with pytest.raises(DataError) as error:
            load_checkpoint(name)
        assert expected in str(error.value) and name in str(error.value), name
        assert TOKEN not in str(error.value) and "\n" not in str(error.value)
    got = [path for method, path, _ in stocked.asked if method == "GET"]
    assert not any("bert/resolve" in path and "safetensors" in path for path in got)


def test_a_hub_out_of_reach_is_named(stocked, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts, 24 s in all
    stocked.shutdown()
    stocked.server_close()
    with pytest.raises(DataError, match="cannot be reached"):
        load_checkpoint(NAME)
