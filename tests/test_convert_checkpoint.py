"""Weights there and back, and where they may be written; what files hold: test_convert_peers.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchaudio

import convert_checkpoint
from convert_checkpoint import SYMBOLS, main, peer_name
from dataset import AudioConfig
from model import Tacotron2, Tacotron2Config
from peer_weights import LAYOUTS, NVIDIA_SHAPES, OUR_SIZES, error_of, run_cli, small_peer
from speech.voice import load_checkpoint, write_config
from synthesize import synthesize
from text.tokenizer import DEFAULT_SYMBOLS, Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def voice_dir(tmp_path: Path) -> Path:
    """A checkpoint folder made from torchaudio's small model."""
    torch.save(small_peer().state_dict(), tmp_path / "peer.pt")
    run_cli("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    return tmp_path / "voice"


def write_voice(directory: Path, config: Tacotron2Config, audio_config: AudioConfig) -> Path:
    """A checkpoint folder as training writes it."""
    directory.mkdir()
    torch.manual_seed(0)
    model = Tacotron2(config)
    safetensors.torch.save_file(model.state_dict(), directory / "model.safetensors")
    write_config(directory, config, audio_config, Tokenizer(DEFAULT_SYMBOLS[: config.vocab_size]))
    return directory


# ---------------------------------------------------------------- there and back


def test_import_carries_every_tensor(voice_dir):
    voice = load_checkpoint(voice_dir)
    theirs, ours = small_peer().state_dict(), voice.model.state_dict()
    assert len(ours) == len(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[peer_name(name, "torchaudio")]), name
    assert voice.audio_config == AudioConfig(num_mels=14, mel_scaling="log")
    assert voice.tokenizer.symbols == SYMBOLS[38]
    assert sorted(os.listdir(voice_dir)) == ["config.json", "model.safetensors"]


@LAYOUTS
def test_round_trip_is_bit_equal(tmp_path, voice_dir, layout):
    run_cli("--from", voice_dir, "--to", layout, tmp_path / "out.pt")
    run_cli("--from", layout, tmp_path / "out.pt", "--to", tmp_path / "again")
    before = safetensors.torch.load_file(voice_dir / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert (voice_dir / "config.json").read_text() == (tmp_path / "again/config.json").read_text()


def test_nvidia_file_has_nvidias_names(tmp_path, voice_dir):
    run_cli("--from", voice_dir, "--to", "nvidia", tmp_path / "out.pt")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(content) == ["state_dict"]
    expected = {
        name
        for name in NVIDIA_SHAPES  # this model has fewer convolutions
        if not name.startswith(("encoder.convolutions.2", "postnet.convolutions.4"))
    }
    assert set(content["state_dict"]) == expected


@pytest.mark.filterwarnings("ignore:Reached max decoder steps")
def test_exported_file_loads_in_torchaudio_and_speaks_the_same(tmp_path, monkeypatch):
    sizes = {"vocab_size": 38, "num_mels": 14, "character_embed_dim": 24, "encoder_embed_dim": 24}
    config = Tacotron2Config(**sizes, decoder_prenet_dropout_p=0.0)
    folder = write_voice(tmp_path / "voice", config, AudioConfig(num_mels=14))
    run_cli("--from", folder, "--to", "torchaudio", tmp_path / "deep" / "out.pt")
    peer = torchaudio.models.Tacotron2(
        n_symbol=38,
        n_mels=14,
        symbol_embedding_dim=24,
        encoder_embedding_dim=24,
        decoder_max_step=9,
    ).eval()
    state = torch.load(tmp_path / "deep" / "out.pt", weights_only=True)
    peer.load_state_dict(state, strict=True)
    monkeypatch.setattr(F, "dropout", lambda x, *args, **kwargs: x)  # the prenet's is always on
    tokens = torch.tensor([[5, 17, 23, 30, 2]])
    ours = load_checkpoint(folder).model.infer(tokens, max_decoder_steps=9)
    with torch.no_grad():
        mels, lengths, alignments = peer.infer(tokens)
    assert lengths.tolist() == ours.mel_lengths.tolist()
    assert torch.allclose(ours.mels, mels.mT, rtol=0, atol=1e-5)
    assert torch.allclose(ours.alignments, alignments, rtol=0, atol=1e-5)


def test_imported_checkpoint_speaks(voice_dir):
    result = synthesize("Printing, in 1465!", load_checkpoint(voice_dir), 6, seed=0)
    said = load_checkpoint(voice_dir).tokenizer.encode("Printing, in 1465!")
    assert result.alignment.shape == (len(result.mel), len(said))
    assert len(result.wav) == len(result.mel) * 256 and torch.isfinite(result.wav).all()


def test_converted_folder_works_with_from_pretrained(voice_dir):
    model = Tacotron2.from_pretrained(voice_dir)
    assert model.config == OUR_SIZES
    expected = load_checkpoint(voice_dir).model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


def test_save_pretrained_round_trip(tmp_path):
    torch.manual_seed(0)
    model = Tacotron2(OUR_SIZES)
    model.save_pretrained(tmp_path / "saved")
    again = Tacotron2.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


# ---------------------------------------------------------------- targets


def test_scaled_mels_are_announced(tmp_path, voice_dir, capsys):
    folder = write_voice(tmp_path / "own", OUR_SIZES, AudioConfig(num_mels=14))
    capsys.readouterr()
    run_cli("--from", folder, "--to", "torchaudio", tmp_path / "own.pt")
    assert "the mels are scaled_db, torchaudio expects log mels" in capsys.readouterr().out
    run_cli("--from", voice_dir, "--to", "torchaudio", tmp_path / "log.pt")
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("field", ["decoder_prenet_depth", "character_embed_dim"])
def test_sizes_that_the_peers_lack_are_refused(tmp_path, field):
    config = Tacotron2Config(**{**vars(OUR_SIZES), field: 3})
    folder = write_voice(tmp_path / "own", config, AudioConfig(num_mels=14))
    message = error_of("--from", folder, "--to", "nvidia", tmp_path / "out.pt")
    assert f"nvidia needs --{field}" in message and "found 3" in message
    assert not (tmp_path / "out.pt").exists()


def test_existing_targets_are_kept_without_overwrite(tmp_path, voice_dir):
    peer, out = tmp_path / "peer.pt", tmp_path / "out.pt"
    out.write_text("mine")
    assert "exists already" in error_of("--from", voice_dir, "--to", "nvidia", out)
    assert out.read_text() == "mine"
    run_cli("--from", voice_dir, "--to", "nvidia", out, "--overwrite")
    assert "state_dict" in torch.load(out, weights_only=True)

    changed = {name: tensor + 1 for name, tensor in small_peer().state_dict().items()}
    torch.save(changed, peer)
    ends = ("--from", "torchaudio", peer, "--to", voice_dir)
    before = (voice_dir / "model.safetensors").read_bytes()
    assert "exists already" in error_of(*ends)
    assert (voice_dir / "model.safetensors").read_bytes() == before
    run_cli(*ends, "--overwrite")
    weights = load_checkpoint(voice_dir).model.state_dict()
    assert torch.equal(weights["encoder.embedding.weight"], changed["embedding.weight"])


def test_overwrite_spares_what_this_script_did_not_write(tmp_path, voice_dir):
    (voice_dir / "trainer_state.json").write_text("{}")
    ends = ("--from", "torchaudio", tmp_path / "peer.pt", "--to", voice_dir, "--overwrite")
    assert "is not replaced" in error_of(*ends)
    ends = ("--from", voice_dir, "--to", "torchaudio", tmp_path, "--overwrite")
    assert "is not replaced" in error_of(*ends)
    assert len(os.listdir(voice_dir)) == 3 and (tmp_path / "peer.pt").exists()


@pytest.mark.parametrize("failure", [OSError("disk full"), RuntimeError("disk full")])
def test_interrupted_write_leaves_nothing(tmp_path, voice_dir, monkeypatch, failure):
    def fail(content, path, *args) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(convert_checkpoint.torch, "save", fail)
    monkeypatch.setattr(convert_checkpoint.safetensors.torch, "save_file", fail)
    before = sorted(os.listdir(tmp_path))
    ends = ("--from", voice_dir, "--to", "nvidia", tmp_path / "out.pt")
    assert "disk full" in error_of(*ends)
    ends = ("--from", "torchaudio", tmp_path / "peer.pt", "--to", voice_dir, "--overwrite")
    assert "disk full" in error_of(*ends)
    assert sorted(os.listdir(tmp_path)) == before
    assert load_checkpoint(voice_dir).model.config == OUR_SIZES


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        (("--from", "torchaudio", "--to", "x"), "--from takes a folder"),
        (("--from", "espnet", "a.pt", "--to", "x"), "--from takes a folder"),
        (("--from", "nvidia", "a.pt", "--to", "x", "y", "z"), "--to takes a folder"),
        (("--from", "a", "--to", "b"), "one of --from and --to"),
        (("--from", "nvidia", "a.pt", "--to", "torchaudio", "b.pt"), "one of --from and --to"),
        (("--from", "a", "--to", "nvidia", "b.pt", "--symbols", "s"), "--symbols is for weights"),
        (("--from", "nowhere", "--to", "nvidia", "b.pt"), "nowhere: no such checkpoint folder"),
    ],
)
def test_unusable_ends_are_refused(tmp_path, monkeypatch, ends, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in error_of(*ends)
    assert os.listdir(tmp_path) == []


def test_command_line_fails_with_one_sentence(tmp_path):
    argv = ["--from", "nvidia", str(tmp_path / "none.pt"), "--to", str(tmp_path / "voice")]
    script = [sys.executable, str(REPOSITORY / "convert_checkpoint.py")]
    done = subprocess.run([*script, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    expected = f"convert_checkpoint.py: {tmp_path / 'none.pt'}: no such file"
    assert done.stderr.splitlines() == [expected]
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--over"])
    assert caught.value.code == 2, "flags are not abbreviated"
