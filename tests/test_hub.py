"""Checkpoints by their names on the Hugging Face Hub."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import export_mels
import train_taco
from command_line.files import DataError
from fake_hub import fake_hub
from runs import run_flags
from speech.hub import find_checkpoint
from speech.voice import load_checkpoint

TOKEN = "hf_secretsecretsecret"
NAME = "someone/a-voice"


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
    for name in (NAME, "nowhere", "../a", "a/b/c", "/tmp/gone"):  # the Hub has no such names
        with pytest.raises(DataError, match=f"^{name}: no such checkpoint folder$"):
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
