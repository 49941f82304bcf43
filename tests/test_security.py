"""No file that a user may be handed runs code, and none makes files where it should not.

Every test puts a real payload into a file, a pickle that makes a marker file when it is loaded,
and the first shows that it works where it is let. Archives that would write outside their folder
are in test_prep_splits_download.py.
"""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import training.reporting as reporting
from conftest import RATE
from model import Tacotron2
from test_train_taco import run_flags
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
    """Runs a script that must refuse, in one sentence, and returns the sentence."""
    code, said = run(script, *flags, capsys=capsys)
    assert code == 1 and said.startswith(f"{script}.py: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("writer", WRITERS)
def test_the_payload_works_where_it_is_let(tmp_path, marker, writer):
    WRITERS[writer]({"state": Payload(marker)}, tmp_path / "file")
    assert not marker.exists()
    if writer == "pickle":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()


# ---- checkpoint folders

FILES_OF_ACCELERATE = (
    "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "random_states_1.pkl", "scaler.pt",
    "sampler.bin", "dl_state_dict.bin", "custom_checkpoint_0.pkl", "pytorch_model.bin",
)  # fmt: skip


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


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer_state.json"])
@pytest.mark.parametrize("keep", ["instead", "beside"])
def test_resuming_takes_no_pickle_for_what_is_none(world, marker, capsys, name, keep):
    """A pickle under a name that is never unpickled; or, of the weights, under the old name."""
    checkpoint = world.copy_run()
    if keep == "instead":
        torch.save({"state": Payload(marker)}, checkpoint / name)
    else:
        (checkpoint / name).unlink()
        torch.save({"state": Payload(marker)}, checkpoint / Path(name).with_suffix(".bin"))
        torch.save({"state": Payload(marker)}, checkpoint / "pytorch_model.bin")
    flags = run_flags(world.corpus, world.out, "--resume_from_checkpoint", "checkpoint_0")
    refused("train_taco", *flags, capsys=capsys)
    assert not marker.exists()


def readers(world, folder):
    """The command lines that read a checkpoint's weights, each with a place of its own to write."""
    speak = ("--checkpoint", folder, "--device", "cpu", "--max_decoder_steps", 4)
    manifest = ("--path_to_manifest", world.corpus.test_manifest)
    return [
        ("synthesize", *speak, "--text", "Hello.", "--output_dir", world.out / "spoken"),
        ("evaluate", *speak, *manifest, "--output_json", world.out / "report.json"),
        ("convert_checkpoint", "--from", folder, "--to", "nvidia", world.out / "nvidia.pt"),
        ("train_taco", *run_flags(world.corpus, world.out), "--warm_start", folder),
    ]


@pytest.mark.parametrize("reader", range(4))
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_weights_and_config_are_never_unpickled(world, marker, capsys, reader, name):
    folder = world.copy_voice()
    (folder / "model.safetensors").unlink()
    torch.save({"encoder.embedding.weight": Payload(marker)}, folder / name)
    before = snapshot(world.folder)
    said = refused(*readers(world, folder)[reader], capsys=capsys)
    assert str(folder) in said
    assert not marker.exists() and snapshot(world.folder) == before


@pytest.mark.parametrize("reader", range(3))
def test_pickles_beside_sound_weights_are_left_alone(world, marker, capsys, reader):
    folder = world.copy_voice()
    for name in FILES_OF_ACCELERATE:
        torch.save({"state": Payload(marker)}, folder / name)
    command = readers(world, folder)[reader]
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
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("layout", ["nvidia", "torchaudio"])
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
    shutil.copytree(world.voice, world.folder / "voice")
    torch.save({"embedding.weight": torch.ones(5, 8)}, world.folder / "peer.pt")
    peer = ("--from", "nvidia", world.folder / "peer.pt", "--to", world.out / "voice")
    for command in (
        ("train_taco", *run_flags(world.corpus, world.out), "--path_to_symbols", path),
        (*readers(world, world.voice)[1], "--word_times", path),
        ("convert_checkpoint", *peer, "--symbols", path),
        ("make_demo_corpus", "--path_to_save", world.out, "--sentences", path),
        ("prep_splits", "--path_to_ljspech", world.ljspeech(path.read_bytes()),
         "--path_to_save", world.out),
    ):  # fmt: skip
        code, said = run(*command, capsys=capsys)
        assert code == 1 and "Traceback" not in said
        assert not marker.exists() and not world.out.exists()


def test_a_pickle_for_a_frame_of_the_film_is_left_out(tmp_path, marker, capsys):
    hostile = np.empty((5, 4), dtype=object)
    hostile[0, 0] = Payload(marker)
    np.savez(tmp_path / "epoch_001.npz", alignment=hostile, mel=hostile)
    rng = np.random.default_rng(0)
    sound = {"alignment": rng.random((5, 4)), "mel": rng.random((5, 80))}
    np.savez(tmp_path / "epoch_002.npz", **sound)
    np.savez(tmp_path / "epoch_003.npz", **sound)
    pickle_plainly(Payload(marker), tmp_path / "epoch_004.npz")
    np.savez(tmp_path / "epoch_005.npz", alignment=rng.random((9, 4)), mel=rng.random((9, 80)))
    np.savez(tmp_path / "epoch_006.npz", **sound)
    rows = [{"epoch": epoch, "train_loss": 1.0, "free_running_score": 0.0} for epoch in range(1, 7)]
    reporting.make_film(tmp_path, rows, "abcd", 0.01)
    assert (tmp_path / "alignment.gif").is_file() and not marker.exists()
    said = capsys.readouterr().err
    assert "epoch_001.npz" in said and "epoch_004.npz" in said and said.count("\n") == 2
    np.load(tmp_path / "epoch_001.npz", allow_pickle=True)["alignment"]
    assert marker.exists(), "the payload is real: opened carelessly it runs"


# ---- names

NAMES = ("../x", "/tmp/x", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "x" * 300)


@pytest.mark.parametrize("flag", ["--experiment_name", "--run_name"])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_a_run_stay_plain(world, capsys, flag, name):
    before = snapshot(world.folder.parent)
    code, said = run("train_taco", *run_flags(world.corpus, world.out), flag, name, capsys=capsys)
    sentence = said.strip().split("\n")[-1]
    assert code == 2 and f"{flag} must be a plain name" in sentence and "Traceback" not in said
    assert snapshot(world.folder.parent) == before


def test_transcripts_and_clip_names_make_no_files(world, tmp_path, capsys):
    """They are data to every script: none becomes a path of what is written."""
    outside = world.folder / "clips"
    outside.mkdir()
    texts = ("../../../escape", "/tmp/escape", "a; touch marker", "$(touch marker)", "`touch x`")
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
