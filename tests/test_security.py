"""No file that a user may be handed runs code, and none makes files where it should not.

Every test puts a real payload into a file: a pickle that makes a marker file when it is loaded. The
first test shows that it does. Archives that would write outside their folder are in
test_prep_splits_download.py.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from conftest import RATE
from model import Tacotron2
from runs import run_flags
from training.pictures import read_frame
from world import HEADER, PLAIN, run, snapshot


class Payload:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def pickle_plainly(content, path):
    path.write_bytes(pickle.dumps(content))


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = {"zip": torch.save, "legacy": save_legacy, "pickle": pickle_plainly}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def refused(script, *flags, capsys):
    """Run a script that must refuse in one sentence; return the sentence."""
    code, said = run(script, *flags, capsys=capsys)
    assert code == 1 and said.startswith(f"{script}.py: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("writer", WRITERS)
def test_the_payload_works(tmp_path, marker, writer):
    WRITERS[writer]({"state": Payload(marker)}, tmp_path / "file")
    assert not marker.exists()
    if writer == "pickle":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()


# ---- checkpoint folders

FILES_OF_ACCELERATE = ["optimizer.bin", "scaler.pt", "random_states_0.pkl", "pytorch_model.bin"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("name", "writer"),
    [(name, "zip") for name in FILES_OF_ACCELERATE]
    + [(name, kind) for name in ("optimizer.bin", "scaler.pt") for kind in ("legacy", "pickle")],
)
def test_resuming_refuses_a_pickle(world, marker, capsys, name, writer):
    WRITERS[writer]({"state": Payload(marker)}, world.copy_run() / name)
    before = snapshot(world.folder)
    flags = run_flags(world.corpus, world.out, "--resume_from_checkpoint", "checkpoint_0")
    said = refused("train_taco", *flags, capsys=capsys)
    assert f"{name}: refused" in said
    assert not marker.exists() and snapshot(world.folder) == before


def test_resuming_takes_no_pickle_for_another_file(world, marker, capsys):
    path = world.copy_run() / "trainer_state.json"
    path.unlink()
    torch.save({"state": Payload(marker)}, path)
    flags = run_flags(world.corpus, world.out, "--resume_from_checkpoint", "checkpoint_0")
    refused("train_taco", *flags, capsys=capsys)
    assert not marker.exists()


def readers(world, folder):
    """Return the command lines that read a checkpoint's weights."""
    speak = ("--checkpoint", folder, "--device", "cpu", "--max_decoder_steps", 4)
    manifest = ("--path_to_manifest", world.corpus.test_manifest)
    return [
        ("synthesize", *speak, "--text", "Hello.", "--output_dir", world.out / "spoken"),
        ("evaluate", *speak, *manifest, "--output_json", world.out / "report.json"),
        ("convert_checkpoint", "--from", folder, "--to", "nvidia", world.out / "nvidia.pt"),
        ("train_taco", *run_flags(world.corpus, world.out), "--warm_start", folder),
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_weights_and_config_are_never_unpickled(world, marker, capsys, name):
    folder = world.copy_voice()
    (folder / "model.safetensors").unlink()
    torch.save({"encoder.embedding.weight": Payload(marker)}, folder / name)
    before = snapshot(world.folder)
    for command in readers(world, folder):
        assert str(folder) in refused(*command, capsys=capsys)
        assert not marker.exists() and snapshot(world.folder) == before


def test_pickles_beside_sound_weights_are_left_alone(world, marker, capsys):
    folder = world.copy_voice()
    for name in FILES_OF_ACCELERATE:
        torch.save({"state": Payload(marker)}, folder / name)
    for command in readers(world, folder)[:3]:
        code, said = run(*command, capsys=capsys)
        assert code == (2 if command[0] == "synthesize" else 0), said  # it does not end in 4 steps
    assert not marker.exists()


def test_from_pretrained_opens_no_pickle(world, marker):
    folder = world.copy_voice()
    torch.save({"state": Payload(marker)}, folder / "pytorch_model.bin")
    Tacotron2.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        Tacotron2.from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("writer", "layout"),
    [("zip", "nvidia"), ("legacy", "nvidia"), ("pickle", "nvidia"), ("zip", "torchaudio")],
)
def test_weights_of_others_are_refused_unopened(world, marker, capsys, writer, layout):
    state = {"embedding.weight": torch.ones(148, 8), "payload": Payload(marker)}
    path = world.folder / "hostile.pt"
    WRITERS[writer](state, path)
    before = snapshot(world.folder)
    flags = ("--from", layout, path, "--to", world.out / "voice")
    said = refused("convert_checkpoint", *flags, capsys=capsys)
    assert "hostile.pt: refused, cannot be read as plain tensors" in said
    assert not marker.exists() and snapshot(world.folder) == before


# ---- other files


def test_a_pickle_for_a_json_is_refused(world, marker, capsys):
    path = world.folder / "hostile.json"
    pickle_plainly([Payload(marker)], path)
    torch.save({"embedding.weight": torch.ones(5, 8)}, world.folder / "peer.pt")
    peer = ("--from", "nvidia", world.folder / "peer.pt", "--to", world.out / "voice")
    corpus = ("--path_to_ljspech", world.ljspeech(path.read_bytes()), "--path_to_save", world.out)
    for command in (
        ("train_taco", *run_flags(world.corpus, world.out), "--path_to_symbols", path),
        (*readers(world, world.voice)[1], "--word_times", path),
        ("convert_checkpoint", *peer, "--symbols", path),
        ("corpora.make_demo_corpus", "--path_to_save", world.out, "--sentences", path),
        ("prep_splits", *corpus),
    ):
        code, said = run(*command, capsys=capsys)
        assert code == 1 and "Traceback" not in said
        assert not marker.exists() and not world.out.exists()


def test_a_pickle_for_a_frame_of_the_film_is_refused(tmp_path, marker):
    hostile = np.empty((5, 4), dtype=object)
    hostile[0, 0] = Payload(marker)
    np.savez(tmp_path / "epoch_001.npz", alignment=hostile, mel=hostile)
    pickle_plainly(Payload(marker), tmp_path / "epoch_002.npz")
    for path in tmp_path.glob("*.npz"):
        assert read_frame(path) is None
    assert not marker.exists()
    np.load(tmp_path / "epoch_001.npz", allow_pickle=True)["alignment"]
    assert marker.exists(), "the payload is real: opened carelessly it runs"


# ---- names

NAMES = ("../x", "/tmp/x", "..", "", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "x" * 300)


@pytest.mark.parametrize("flag", ["--experiment_name", "--run_name"])
def test_names_of_a_run_stay_plain(world, capsys, flag):
    before = snapshot(world.folder.parent)
    for name in NAMES:
        flags = run_flags(world.corpus, world.out)
        code, said = run("train_taco", *flags, flag, name, capsys=capsys)
        assert code == 2 and "Traceback" not in said
        assert f"{flag}: must be a plain name" in said.strip().split("\n")[-1]
    assert snapshot(world.folder.parent) == before


@pytest.mark.slow
def test_transcripts_and_clip_names_make_no_files(world, tmp_path, capsys):
    """They are data to every script: none becomes the path of a file that is written."""
    outside = world.folder / "clips"
    outside.mkdir()
    texts = ("../../../escape", "/tmp/escape", "$(touch marker)")
    lines = []
    for i, text in enumerate(texts):
        name = f"..%2f..%2fescape $(touch marker) {i}.wav"
        soundfile.write(outside / name, PLAIN, RATE)
        lines.append(f"clips/../clips/{name},{text},0.55\n")
    manifest = world.file("manifest.csv", HEADER + "".join(lines))
    before = snapshot(tmp_path)
    both = ("--path_to_train_manifest", manifest, "--path_to_val_manifest", manifest)
    flags = run_flags(world.corpus, world.out, "--training_epochs", 1, *both)
    code, said = run("train_taco", *flags, capsys=capsys)
    assert code == 0, said
    checkpoint = world.out / "work/tiny/final_checkpoint"
    for command in readers(world, checkpoint)[:2]:
        speaks = command[0] == "synthesize"
        more = ("--text", *texts) if speaks else ("--path_to_manifest", manifest)
        code, said = run(*command, *more, capsys=capsys)
        assert code == (2 if speaks else 0), said  # no sentence ends within 4 steps
    after = snapshot(tmp_path)
    made = {path for path in after if path not in before}
    assert all(path == str(world.out) or path.startswith(f"{world.out}/") for path in made)
    assert {path: after[path] for path in before} == before
    assert json.loads((world.out / "report.json").read_text())["clips"] == len(texts)
