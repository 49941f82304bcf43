"""Weights there and back: names against the peers' own lists, and every way a file can be wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from torchaudio.pipelines._tts.utils import _get_phones

import convert_checkpoint
from convert_checkpoint import SYMBOLS, infer_config, main, model_from_peer, peer_name
from dataset import AudioConfig, DataError
from model import Tacotron2, Tacotron2Config
from synthesize import load_checkpoint, synthesize, write_config
from tokenizer import DEFAULT_SYMBOLS, Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
LAYOUTS = pytest.mark.parametrize("layout", ["torchaudio", "nvidia"])
# None of these is a default, and no two are the same.
PEER_SIZES = {
    "n_mels": 14,
    "n_symbol": 38,
    "symbol_embedding_dim": 24,
    "encoder_embedding_dim": 24,
    "encoder_n_convolution": 2,
    "encoder_kernel_size": 3,
    "decoder_rnn_dim": 20,
    "attention_rnn_dim": 20,
    "attention_hidden_dim": 12,
    "attention_location_n_filter": 6,
    "attention_location_kernel_size": 9,
    "prenet_dim": 10,
    "postnet_n_convolution": 4,
    "postnet_kernel_size": 7,
    "postnet_embedding_dim": 16,
}
OUR_SIZES = Tacotron2Config(
    vocab_size=38,
    num_mels=14,
    character_embed_dim=24,
    encoder_embed_dim=24,
    encoder_n_convolutions=2,
    encoder_kernel_size=3,
    decoder_rnn_embed_dim=20,
    attention_dim=12,
    attention_location_n_filters=6,
    attention_location_kernel_size=9,
    decoder_prenet_dim=10,
    decoder_postnet_num_convs=4,
    decoder_postnet_kernel_size=7,
    decoder_postnet_n_filters=16,
)


def batch_norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    fields = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{f}": (size,) for f in fields}, f"{name}.num_batches_tracked": ()}


# NVIDIA/tacotron2's model.py and layers.py with hparams.py's sizes, written down name by name.
NVIDIA_SHAPES = {
    "embedding.weight": (148, 512),
    "encoder.convolutions.0.0.conv.weight": (512, 512, 5),
    "encoder.convolutions.0.0.conv.bias": (512,),
    **batch_norm("encoder.convolutions.0.1", 512),
    "encoder.convolutions.1.0.conv.weight": (512, 512, 5),
    "encoder.convolutions.1.0.conv.bias": (512,),
    **batch_norm("encoder.convolutions.1.1", 512),
    "encoder.convolutions.2.0.conv.weight": (512, 512, 5),
    "encoder.convolutions.2.0.conv.bias": (512,),
    **batch_norm("encoder.convolutions.2.1", 512),
    "encoder.lstm.weight_ih_l0": (1024, 512),
    "encoder.lstm.weight_hh_l0": (1024, 256),
    "encoder.lstm.bias_ih_l0": (1024,),
    "encoder.lstm.bias_hh_l0": (1024,),
    "encoder.lstm.weight_ih_l0_reverse": (1024, 512),
    "encoder.lstm.weight_hh_l0_reverse": (1024, 256),
    "encoder.lstm.bias_ih_l0_reverse": (1024,),
    "encoder.lstm.bias_hh_l0_reverse": (1024,),
    "decoder.prenet.layers.0.linear_layer.weight": (256, 80),
    "decoder.prenet.layers.1.linear_layer.weight": (256, 256),
    "decoder.attention_rnn.weight_ih": (4096, 768),
    "decoder.attention_rnn.weight_hh": (4096, 1024),
    "decoder.attention_rnn.bias_ih": (4096,),
    "decoder.attention_rnn.bias_hh": (4096,),
    "decoder.attention_layer.query_layer.linear_layer.weight": (128, 1024),
    "decoder.attention_layer.memory_layer.linear_layer.weight": (128, 512),
    "decoder.attention_layer.v.linear_layer.weight": (1, 128),
    "decoder.attention_layer.location_layer.location_conv.conv.weight": (32, 2, 31),
    "decoder.attention_layer.location_layer.location_dense.linear_layer.weight": (128, 32),
    "decoder.decoder_rnn.weight_ih": (4096, 1536),
    "decoder.decoder_rnn.weight_hh": (4096, 1024),
    "decoder.decoder_rnn.bias_ih": (4096,),
    "decoder.decoder_rnn.bias_hh": (4096,),
    "decoder.linear_projection.linear_layer.weight": (80, 1536),
    "decoder.linear_projection.linear_layer.bias": (80,),
    "decoder.gate_layer.linear_layer.weight": (1, 1536),
    "decoder.gate_layer.linear_layer.bias": (1,),
    "postnet.convolutions.0.0.conv.weight": (512, 80, 5),
    "postnet.convolutions.0.0.conv.bias": (512,),
    **batch_norm("postnet.convolutions.0.1", 512),
    "postnet.convolutions.1.0.conv.weight": (512, 512, 5),
    "postnet.convolutions.1.0.conv.bias": (512,),
    **batch_norm("postnet.convolutions.1.1", 512),
    "postnet.convolutions.2.0.conv.weight": (512, 512, 5),
    "postnet.convolutions.2.0.conv.bias": (512,),
    **batch_norm("postnet.convolutions.2.1", 512),
    "postnet.convolutions.3.0.conv.weight": (512, 512, 5),
    "postnet.convolutions.3.0.conv.bias": (512,),
    **batch_norm("postnet.convolutions.3.1", 512),
    "postnet.convolutions.4.0.conv.weight": (80, 512, 5),
    "postnet.convolutions.4.0.conv.bias": (80,),
    **batch_norm("postnet.convolutions.4.1", 80),
}


def nvidia_state() -> dict[str, Tensor]:
    """The published file's names, shapes and kinds, full of ones."""
    kinds = {True: torch.int64, False: torch.float32}
    return {
        name: torch.ones(shape, dtype=kinds[name.endswith("num_batches_tracked")])
        for name, shape in NVIDIA_SHAPES.items()
    }


def small_peer() -> torchaudio.models.Tacotron2:
    """Small, with no two entries alike and counters that are not 0."""
    torch.manual_seed(0)
    model = torchaudio.models.Tacotron2(**PEER_SIZES)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(9)
        else:
            tensor.uniform_(0.1, 0.9)
    return model.eval()


def small_state(layout: str) -> dict[str, Tensor]:
    """small_peer's weights in either layout. NVIDIA's names hang on the literal list above."""
    state = small_peer().state_dict()
    if layout == "nvidia":
        ours = Tacotron2(OUR_SIZES).state_dict()
        state = {peer_name(n, "nvidia"): state[peer_name(n, "torchaudio")] for n in ours}
    return state


def run_cli(*argv: str | Path) -> None:
    main([str(value) for value in argv])


def error_of(*argv: str | Path) -> str:
    """The one sentence that a failing conversion ends with."""
    with pytest.raises(SystemExit) as caught:
        run_cli(*argv)
    message = caught.value.code
    assert isinstance(message, str), f"exit status {message}: argparse's, not ours"
    assert message.startswith("convert_checkpoint.py: ") and "\n" not in message
    return message


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
        ("{", "cannot be used"),
        (None, "cannot be used"),
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
