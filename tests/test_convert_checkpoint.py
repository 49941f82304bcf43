"""convert_checkpoint.py: the peers' names, weights there and back, unusable files and targets."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchaudio
from torchaudio.pipelines._tts.utils import _get_phones

import convert_checkpoint
from command_line.files import DataError
from convert_checkpoint import SYMBOLS, model_from_peer, peer_name
from dataset import AudioConfig
from model import Tacotron2, Tacotron2Config
from peer_weights import (
    COQUI_CONFIG,
    COQUI_SHAPES,
    LAYOUTS,
    NVIDIA_SHAPES,
    OUR_SIZES,
    error_of,
    run_cli,
    small_peer,
    small_state,
)
from speech import coqui
from speech.voice import load_checkpoint, write_config
from text.tokenizer import DEFAULT_SYMBOLS, Tokenizer


@pytest.fixture
def voice_dir(tmp_path: Path) -> Path:
    """A checkpoint folder made from torchaudio's small model."""
    torch.save(small_peer().state_dict(), tmp_path / "peer.pt")
    run_cli("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    return tmp_path / "voice"


def write_voice(directory: Path, config: Tacotron2Config) -> Path:
    """Write a checkpoint folder as training does."""
    directory.mkdir()
    torch.manual_seed(0)
    safetensors.torch.save_file(Tacotron2(config).state_dict(), directory / "model.safetensors")
    tokenizer = Tokenizer(DEFAULT_SYMBOLS[: config.vocab_size])
    write_config(directory, config, AudioConfig(num_mels=config.num_mels), tokenizer)
    return directory


def import_error(tmp_path: Path, content: object, *flags: str | Path) -> str:
    """Save content as torchaudio's weights and return the sentence that refuses them."""
    torch.save(content, tmp_path / "peer.pt")
    ends = ("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "refused")
    message = error_of(*ends, *flags)
    assert not (tmp_path / "refused").exists()
    return message


def test_names_and_shapes_are_the_peers():
    with torch.device("meta"):
        ours = Tacotron2(Tacotron2Config(vocab_size=148)).state_dict()
        theirs = torchaudio.models.Tacotron2().state_dict()
    converted = {peer_name(name, "torchaudio"): tensor.shape for name, tensor in ours.items()}
    assert converted == {name: tensor.shape for name, tensor in theirs.items()}
    converted = {peer_name(name, "nvidia"): (*tensor.shape,) for name, tensor in ours.items()}
    assert converted == NVIDIA_SHAPES


def small_coqui(n_frames: int) -> dict[str, torch.Tensor]:
    """Return small_peer's weights as Coqui's, of 29 symbols and n_frames a step."""
    ours = model_from_peer(small_peer().state_dict(), "torchaudio", Path("peer.pt")).state_dict()
    state = {peer_name(name, "coqui"): tensor for name, tensor in ours.items()}
    shapes = {"linear_projection": (14 * n_frames, 44), "stopnet.1": (1, 20 + 14 * n_frames)}
    for name, shape in shapes.items():
        state[f"decoder.{name}.linear_layer.weight"] = torch.rand(shape)
        state[f"decoder.{name}.linear_layer.bias"] = torch.rand(shape[0])
    state["decoder.attention.v.linear_layer.bias"] = torch.ones(1)
    state["coarse_decoder.attention.v.linear_layer.bias"] = torch.ones(1)
    return state | {"embedding.weight": state["embedding.weight"][:29]}


def test_coquis_names_and_shapes():
    with torch.device("meta"):
        ours = Tacotron2(Tacotron2Config(vocab_size=29, frames_per_step=2)).state_dict()
        theirs = {name: torch.empty(shape) for name, shape in COQUI_SHAPES.items()}
    folded = coqui.to_frames_per_step(theirs, 2, 80)
    names = {peer_name(name, "coqui"): tensor.shape for name, tensor in ours.items()}
    assert names == {name: tensor.shape for name, tensor in folded.items()}


def test_coquis_stop_token_reads_the_frames():
    state = small_coqui(3)
    hidden_context = torch.rand(44)
    projection, stop = (
        [state[f"decoder.{name}.linear_layer.{kind}"] for kind in ("weight", "bias")]
        for name in ("linear_projection", "stopnet.1")
    )
    frames = projection[0] @ hidden_context + projection[1]  # all 3, though 2 are returned
    expected = stop[0] @ torch.cat([hidden_context[:20], frames]) + stop[1]
    folded = coqui.to_frames_per_step(state, 2, 14)
    name = "decoder.stopnet.1.linear_layer."
    logits = folded[name + "weight"] @ hidden_context + folded[name + "bias"]
    assert logits[0] == coqui.NEVER  # the first of a step's two frames cannot be the last
    assert torch.allclose(logits[1:], expected, rtol=1e-4)


COQUI_AUDIO = {**COQUI_CONFIG["audio"], "num_mels": 14}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_norm", "sigmoid"),
        ("use_gst", True),
        ("use_forward_attn", True),
        ("r", 4),
        ("audio.signal_norm", True),
    ],
)
def test_what_our_model_lacks_is_refused_by_coquis_name(tmp_path, field, value):
    torch.save({"model": small_coqui(3)}, tmp_path / "best_model.pth")
    ends = ("--from", "coqui", tmp_path / "best_model.pth", "--to", tmp_path / "voice")
    assert "config.json: cannot be read" in error_of(*ends)
    config = {**COQUI_CONFIG, "audio": COQUI_AUDIO}
    place = {**config, field: value}
    if field.startswith("audio."):
        place = {**config, "audio": {**COQUI_AUDIO, field.removeprefix("audio."): value}}
    (tmp_path / "config.json").write_text(json.dumps(place))
    assert f"{field} is {value!r}" in error_of(*ends)
    assert not (tmp_path / "voice").exists()


def test_a_voice_of_coquis_is_imported(tmp_path):
    torch.save({"model": small_coqui(3), "r": 2, "optimizer": {}}, tmp_path / "best_model.pth")
    (tmp_path / "config.json").write_text(json.dumps({**COQUI_CONFIG, "audio": COQUI_AUDIO}))
    run_cli("--from", "coqui", tmp_path / "best_model.pth", "--to", tmp_path / "voice")
    voice = load_checkpoint(tmp_path / "voice")
    changed = {"vocab_size": 29, "frames_per_step": 2, "decoder_prenet_dropout_p": 0.0}
    assert voice.model.config == Tacotron2Config(**{**vars(OUR_SIZES), **changed})
    assert voice.audio_config == AudioConfig(num_mels=14, mel_scaling="log")
    # 4 special symbols, "Baabcd", "!'(),-.:;? ", then "abcdefgh": the last of two equal ones counts
    assert voice.tokenizer.encode("Bad!").tolist() == [22, 21, 24, 10]


@pytest.mark.parametrize("layout", ["nvidia", "speechbrain"])
def test_a_prenet_of_several_frames_is_refused(layout):
    state = small_state("nvidia")
    state["decoder.linear_projection.linear_layer.weight"] = torch.ones(42, 44)
    with pytest.raises(DataError, match="n_frames_per_step 3 cannot be converted"):
        model_from_peer(state, layout, Path("peer.pt"))


def test_symbols_are_the_peers():
    bundle = torchaudio.pipelines.TACOTRON2_GRIFFINLIM_CHAR_LJSPEECH
    assert SYMBOLS[38] == tuple(bundle.get_text_processor().tokens)
    assert SYMBOLS[96] == tuple(_get_phones())
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    phones = ["@" + phone for phone in _get_phones()[12:]]
    assert SYMBOLS[148] == ("_", "-", *"!'(),.:;? ", *letters, *phones)
    assert all(len(set(table)) == len(table) == size for size, table in SYMBOLS.items())


def test_an_imported_voice_has_every_tensor(voice_dir):
    voice = load_checkpoint(voice_dir)
    theirs, ours = small_peer().state_dict(), voice.model.state_dict()
    assert len(ours) == len(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[peer_name(name, "torchaudio")]), name
    assert voice.audio_config == AudioConfig(num_mels=14, mel_scaling="log")
    assert voice.tokenizer.symbols == SYMBOLS[38]
    assert sorted(os.listdir(voice_dir)) == ["config.json", "model.safetensors"]
    assert Tacotron2.from_pretrained(voice_dir).config == OUR_SIZES


@LAYOUTS
def test_a_round_trip_is_bit_equal(tmp_path, voice_dir, layout):
    run_cli("--from", voice_dir, "--to", layout, tmp_path / "out.pt")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert (list(content) == ["state_dict"]) == (layout == "nvidia")
    run_cli("--from", layout, tmp_path / "out.pt", "--to", tmp_path / "again")
    before = safetensors.torch.load_file(voice_dir / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype
    assert (voice_dir / "config.json").read_text() == (tmp_path / "again/config.json").read_text()


@pytest.mark.filterwarnings("ignore:Reached max decoder steps")
def test_an_exported_file_loads_in_torchaudio_and_speaks_the_same(tmp_path, monkeypatch, capsys):
    sizes = {"vocab_size": 38, "num_mels": 14, "character_embed_dim": 24, "encoder_embed_dim": 24}
    folder = write_voice(tmp_path / "voice", Tacotron2Config(**sizes, decoder_prenet_dropout_p=0.0))
    run_cli("--from", folder, "--to", "torchaudio", tmp_path / "deep" / "out.pt")
    assert "the mels are scaled_db, torchaudio expects log mels" in capsys.readouterr().out
    peer = torchaudio.models.Tacotron2(
        n_symbol=38, n_mels=14, symbol_embedding_dim=24, encoder_embedding_dim=24,
        decoder_max_step=9,
    ).eval()  # fmt: skip
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


@pytest.mark.parametrize("field", ["decoder_prenet_depth", "frames_per_step"])
def test_sizes_that_the_peers_lack_are_refused(tmp_path, field):
    config = Tacotron2Config(**{**vars(OUR_SIZES), field: 3})
    folder = write_voice(tmp_path / "voice", config)
    message = error_of("--from", folder, "--to", "nvidia", tmp_path / "out.pt")
    assert f"nvidia needs --{field}" in message and "found 3" in message
    assert not (tmp_path / "out.pt").exists()


def test_a_published_file_has_default_sizes(tmp_path):
    """NVIDIA's file in full: the training state beside the weights is skipped."""
    state = {
        name: torch.ones(shape, dtype=torch.float32 if shape else torch.int64)
        for name, shape in NVIDIA_SHAPES.items()
    }
    training = {"iteration": 5, "optimizer": {"state": {}}, "learning_rate": 1.0}
    torch.save({"state_dict": state, **training}, tmp_path / "nvidia.pt")
    run_cli("--from", "nvidia", tmp_path / "nvidia.pt", "--to", tmp_path / "voice")
    voice = load_checkpoint(tmp_path / "voice")
    assert voice.model.config == Tacotron2Config(vocab_size=148)
    assert voice.audio_config == AudioConfig(mel_scaling="log")
    assert voice.tokenizer.symbols == SYMBOLS[148]
    assert all((tensor == 1).all() for tensor in voice.model.state_dict().values())


def test_an_old_parallel_half_precision_file_is_read(tmp_path, capsys):
    state = small_state("nvidia")
    state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    torch.save({f"module.{n}": t.half() for n, t in state.items()}, tmp_path / "peer.pt")
    run_cli("--from", "nvidia", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert "6 num_batches_tracked entries are absent and are set to 0" in capsys.readouterr().out
    weights = safetensors.torch.load_file(tmp_path / "voice" / "model.safetensors")
    assert weights["encoder.embedding.weight"].dtype == torch.float32
    expected = state["embedding.weight"].half().float()
    assert torch.equal(weights["encoder.embedding.weight"], expected)
    assert weights["postnet.convolutions.0.1.num_batches_tracked"] == 0


def with_entry(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**small_state("torchaudio"), name: tensor}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_entry("module.embedding.weight", torch.ones(1)), "embedding.weight is unknown"),
        (with_entry("embedding.weight", torch.ones(1, 38, 24)), "is (1, 38, 24) instead of"),
        (with_entry("encoder.lstm.bias_hh_l0", torch.ones(48).long()), "is torch.int64 instead of"),
        ([1, 2], "holds no state dict"),
        ({"a": torch.eye(2).to_sparse()}, "entry a is not a plain tensor"),
        (small_state("nvidia"), "encoder.convolutions.0.0.weight is missing"),
    ],
)
def test_content_that_does_not_fit_is_refused(tmp_path, content, reason):
    assert reason in import_error(tmp_path, content)


def test_sizes_of_a_model_that_no_memory_holds_are_refused():
    """Expanded tensors are small on disk."""
    state = small_state("torchaudio")
    state["decoder.attention_rnn.weight_hh"] = torch.ones(1, 1).expand(65_536, 16_384)
    with pytest.raises(DataError, match=r"the sizes make a model of .* parameters"):
        model_from_peer(state, "torchaudio", Path("peer.pt"))


def test_broken_and_missing_files_are_refused(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save(small_peer().state_dict(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:5000])
    message = error_of("--from", "nvidia", tmp_path / "cut.pt", "--to", tmp_path / "voice")
    assert "cut.pt: refused, cannot be read as plain tensors" in message
    missing = error_of("--from", "nvidia", tmp_path / "none.pt", "--to", tmp_path / "voice")
    assert "none.pt: no such file" in missing


def test_a_symbols_file_overrides_the_peers_table(tmp_path):
    state = small_state("torchaudio")
    state["embedding.weight"] = state["embedding.weight"][:5]
    assert "no table of 5 symbols is known" in import_error(tmp_path, state)
    (tmp_path / "table.json").write_text(json.dumps(["PAD", "é", "b", "c", "ab"]))
    ends = ("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    run_cli(*ends, "--symbols", tmp_path / "table.json")
    assert load_checkpoint(tmp_path / "voice").tokenizer.symbols == ("PAD", "é", "b", "c", "ab")
    for text, reason in (('["a", "b"]', "the weights have 5 symbols, not 2"), ("{", "cannot be")):
        (tmp_path / "table.json").write_text(text)
        message = import_error(tmp_path, state, "--symbols", tmp_path / "table.json")
        assert "table.json" in message and reason in message


def test_a_voice_that_speaks_phonemes_only_is_announced(tmp_path, capsys):
    state = small_state("torchaudio")
    state["embedding.weight"] = torch.ones(96, 24)
    torch.save(state, tmp_path / "peer.pt")
    run_cli("--from", "torchaudio", tmp_path / "peer.pt", "--to", tmp_path / "voice")
    assert "cannot speak text, only phonemes" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "voice").tokenizer.symbols == SYMBOLS[96]


def test_existing_targets_are_kept_without_overwrite(tmp_path, voice_dir):
    out = tmp_path / "out.pt"
    out.write_text("mine")
    assert "exists already" in error_of("--from", voice_dir, "--to", "nvidia", out)
    assert out.read_text() == "mine"
    run_cli("--from", voice_dir, "--to", "nvidia", out, "--overwrite")
    assert "state_dict" in torch.load(out, weights_only=True)

    changed = {name: tensor + 1 for name, tensor in small_peer().state_dict().items()}
    torch.save(changed, tmp_path / "peer.pt")
    ends = ("--from", "torchaudio", tmp_path / "peer.pt", "--to", voice_dir)
    assert "exists already" in error_of(*ends)
    run_cli(*ends, "--overwrite")
    weights = load_checkpoint(voice_dir).model.state_dict()
    assert torch.equal(weights["encoder.embedding.weight"], changed["embedding.weight"])
    (voice_dir / "trainer_state.json").write_text("{}")  # which this script does not write
    assert "is not replaced" in error_of(*ends, "--overwrite")
    assert len(os.listdir(voice_dir)) == 3


def test_an_interrupted_write_leaves_nothing(tmp_path, voice_dir, monkeypatch):
    def fail(content, path, *args) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("disk full")  # as torch does

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
        (("--from", "a", "--to", "b"), "one of --from and --to"),
        (("--from", "a", "--to", "nvidia", "b.pt", "--symbols", "s"), "--symbols is for weights"),
    ],
)
def test_unusable_ends_are_refused(tmp_path, monkeypatch, ends, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in error_of(*ends)
    assert os.listdir(tmp_path) == []
