"""Weights of the peers: names against their own lists, and every way a file can be wrong."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchaudio
from torchaudio.pipelines._tts.utils import _get_phones

from command_line.files import DataError
from convert_checkpoint import SYMBOLS, infer_config, model_from_peer, peer_name
from dataset import AudioConfig
from model import Tacotron2, Tacotron2Config
from peer_weights import (
    LAYOUTS,
    NVIDIA_SHAPES,
    OUR_SIZES,
    error_of,
    nvidia_state,
    run_cli,
    small_peer,
    small_state,
)
from speech.voice import load_checkpoint

# ---------------------------------------------------------------- names, shapes, symbols


def test_names_are_torchaudios():
    with torch.device("meta"):
        ours = Tacotron2(Tacotron2Config(vocab_size=148)).state_dict()
        theirs = torchaudio.models.Tacotron2().state_dict()
    converted = {peer_name(name, "torchaudio"): tensor.shape for name, tensor in ours.items()}
    assert converted == {name: tensor.shape for name, tensor in theirs.items()}


def test_names_are_nvidias():
    with torch.device("meta"):
        ours = Tacotron2(Tacotron2Config(vocab_size=148)).state_dict()
    converted = {peer_name(name, "nvidia"): (*tensor.shape,) for name, tensor in ours.items()}
    assert converted == NVIDIA_SHAPES


def test_symbols_are_the_peers():
    bundle = torchaudio.pipelines.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH
    assert SYMBOLS[38] == tuple(bundle.get_text_processor().tokens)
    assert SYMBOLS[96] == tuple(_get_phones())
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    phones = ["@" + phone for phone in _get_phones()[12:]]
    assert SYMBOLS[148] == ("_", "-", *"!'(),.:;? ", *letters, *phones)
    assert all(len(set(table)) == len(table) == size for size, table in SYMBOLS.items())


@LAYOUTS
def test_sizes_are_read_off_the_shapes(layout):
    assert infer_config(small_state(layout), layout) == OUR_SIZES


def test_default_sizes_of_a_published_file(tmp_path, capsys):
    """NVIDIA's file in full: the training state beside the weights is passed over."""
    training = {"iteration": 5, "optimizer": {"state": {}}, "learning_rate": 1.0}
    torch.save({"state_dict": nvidia_state(), **training}, tmp_path / "nvidia.pt")
    run_cli("--from", "nvidia", tmp_path / "nvidia.pt", "--to", tmp_path / "voice")
    voice = load_checkpoint(tmp_path / "voice")
    assert voice.model.config == Tacotron2Config(vocab_size=148)
    assert voice.audio_config == AudioConfig(mel_scaling="log")
    assert voice.tokenizer.symbols == SYMBOLS[148]
    assert all((tensor == 1).all() for tensor in voice.model.state_dict().values())
    assert "148 symbols" in capsys.readouterr().out


# ---------------------------------------------------------------- what files can look like


def test_data_parallel_prefix_is_dropped(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in small_state("nvidia").items()}
    torch.save({"state_dict": state}, tmp_path / "peer.pt")
    run_cli("--from", "nvidia", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert load_checkpoint(tmp_path / "voice").model.config == OUR_SIZES


def test_prefix_on_one_entry_is_an_error(tmp_path):
    state = small_state("torchaudio")
    state["module.embedding.weight"] = state["embedding.weight"] + 1
    torch.save(state, tmp_path / "peer.pt")
    message = error_of("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert "module.embedding.weight is unknown" in message


def test_half_precision_becomes_float32(tmp_path):
    state = {n: t.half() if t.is_floating_point() else t for n, t in small_state("nvidia").items()}
    torch.save(state, tmp_path / "peer.pt")
    run_cli("--from", "nvidia", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    weights = safetensors.torch.load_file(tmp_path / "voice" / "model.safetensors")
    assert weights["encoder.embedding.weight"].dtype == torch.float32
    assert torch.equal(weights["encoder.embedding.weight"], state["embedding.weight"].float())


def test_absent_batch_counters_are_0_and_said_so(tmp_path, capsys):
    state = small_state("nvidia")
    state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "peer.pt")
    run_cli("--from", "nvidia", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert "6 num_batches_tracked entries are absent and are set to 0" in capsys.readouterr().out
    weights = load_checkpoint(tmp_path / "voice").model.state_dict()
    assert weights["postnet.convolutions.0.1.num_batches_tracked"] == 0


@LAYOUTS
def test_every_missing_extra_or_misshapen_entry_is_named(layout):
    state, path = small_state(layout), Path("peer.pt")

    def message(changed: dict) -> str:
        with pytest.raises(DataError) as caught:
            model_from_peer(changed, layout, path)
        return str(caught.value)

    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            without = {n: t for n, t in state.items() if n != name}
            assert f": {name} is missing" in message(without)
        assert f": {name} is (1," in message({**state, name: tensor[None]})
        # One more row of embeddings is one more symbol, and of location_conv: see below.
        if tensor.ndim and not ("embedding" in name or "location_conv" in name):
            longer = torch.cat([tensor, tensor[:1]])
            assert f": {name} is {(*longer.shape,)} instead" in message({**state, name: longer})
        other = torch.float32 if name.endswith("num_batches_tracked") else torch.int64
        assert f": {name} is {other}" in message({**state, name: tensor.to(other)})
        extra = f"{name}.more"
        assert message({**state, extra: tensor}).endswith(f": {extra} is unknown")


def test_default_size_decides_between_two_tensors():
    """Only location_conv and location_dense tell the number of location filters."""
    with torch.device("meta"):
        state = nvidia_state()
        name = "decoder.attention_layer.location_layer.location_conv.conv.weight"
        state[name] = torch.empty(33, 2, 31)
        with pytest.raises(DataError, match=rf"{name} is \(33, 2, 31\) instead of \(32, 2, 31\)"):
            model_from_peer(state, "nvidia", Path("peer.pt"))


def test_wrong_layout_names_entries(tmp_path):
    torch.save(small_state("nvidia"), tmp_path / "peer.pt")
    message = error_of("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert "encoder.convolutions.0.0.weight is missing" in message and "more such" in message
    assert not (tmp_path / "voice").exists()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"state_dict": 3}, "holds no state dict"),
        ({"embedding.weight": 3}, "entry embedding.weight is not a plain tensor"),
        ({"a": torch.eye(2).to_sparse()}, "entry a is not a plain tensor"),
        ({"a": torch.eye(2)}, "embedding.weight is missing"),
    ],
)
def test_other_content_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "peer.pt")
    message = error_of("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert reason in message
    assert not (tmp_path / "voice").exists()


def test_broken_and_missing_files_are_refused(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save(small_peer().state_dict(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("cut.pt", "text.pt", "empty.pt"):
        message = error_of("--from", "nvidia", tmp_path / name, "--to", tmp_path / "voice")
        assert f"{name}: refused, cannot be read as plain tensors" in message
    missing = error_of("--from", "nvidia", tmp_path / "none.pt", "--to", tmp_path / "voice")
    assert "none.pt: no such file" in missing


# ---------------------------------------------------------------- symbols


def test_symbols_file_overrides_and_is_needed_for_other_counts(tmp_path):
    state = small_state("torchaudio")
    torch.save(state, tmp_path / "38.pt")
    torch.save({**state, "embedding.weight": state["embedding.weight"][:5]}, tmp_path / "5.pt")
    (tmp_path / "table.json").write_text(json.dumps(["PAD", "é", "b", "c", "ab"]))
    from_five = ("--from", "torchaudio", tmp_path / "5.pt", "--to", tmp_path / "voice")
    assert "no table of 5 symbols is known" in error_of(*from_five)
    run_cli(*from_five, "--symbols", tmp_path / "table.json")
    assert load_checkpoint(tmp_path / "voice").tokenizer.symbols == ("PAD", "é", "b", "c", "ab")

    other = ["PAD", *reversed(SYMBOLS[38][1:])]
    (tmp_path / "other.json").write_text(json.dumps(other))
    to_other = ("--to", tmp_path / "other", "--symbols", tmp_path / "other.json")
    run_cli("--from", "torchaudio", tmp_path / "38.pt", *to_other)
    assert load_checkpoint(tmp_path / "other").tokenizer.symbols == tuple(other)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('["a", "b"]', "not a JSON list of 38 strings"),
        (json.dumps(dict.fromkeys(SYMBOLS[38], 1)), "not a JSON list of 38 strings"),
        (json.dumps([*SYMBOLS[38][:-1], 7]), "not a JSON list of 38 strings"),
        (json.dumps([*SYMBOLS[38][:-1], "a"]), "found twice: a"),
        ("{", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_unusable_symbols_are_refused(tmp_path, text, reason):
    torch.save(small_peer().state_dict(), tmp_path / "peer.pt")
    if text is not None:
        (tmp_path / "table.json").write_text(text)
    ends = ("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    message = error_of(*ends, "--symbols", tmp_path / "table.json")
    assert "table.json" in message and reason in message
    assert not (tmp_path / "voice").exists()


def test_phonemes_are_announced(tmp_path, capsys):
    state = small_state("torchaudio")
    state["embedding.weight"] = torch.ones(96, 24)
    torch.save(state, tmp_path / "peer.pt")
    run_cli("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert "text cannot be spoken" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "voice").tokenizer.symbols == SYMBOLS[96]
