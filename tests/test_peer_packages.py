"""The oracles of convert_checkpoint.py: the peers' own code, where its package is installed.

Random weights, dropout off. Nobody here wrote the peers' code. Requirements list neither package:
pip install speechbrain coqui-tts
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model import Tacotron2
from peer_weights import COQUI_CONFIG, COQUI_SHAPES, NVIDIA_SHAPES, run_cli
from speech.voice import Voice, load_checkpoint
from test_torchaudio import without_dropout  # noqa: F401

TOLERANCE = 1e-5
N_STEPS = 12


def make_lively(model: nn.Module, gate: nn.Linear) -> nn.Module:
    """Give batch norms a past, the attention contrast, and the stop token a late start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.weight.uniform_(0.1, 0.5)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
        model.embedding.weight.normal_()
        gate.weight.mul_(5.0)
    return model.eval()


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: (*tensor.shape,) for name, tensor in model.state_dict().items()}


def plain(voice: Voice) -> Tacotron2:
    model = Tacotron2(voice.model.config)
    model.load_state_dict(voice.model.state_dict())
    return model.eval()


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("without_dropout")
@torch.no_grad()
def test_speechbrain_speaks_the_same(tmp_path):
    peers = pytest.importorskip("speechbrain.lobes.models.Tacotron2", reason="pip: speechbrain")
    peer = peers.Tacotron2(max_decoder_steps=N_STEPS)
    assert shapes_of(peer) == NVIDIA_SHAPES
    make_lively(peer, peer.decoder.gate_layer.linear_layer)
    torch.save(peer.state_dict(), tmp_path / "model.ckpt")
    run_cli("--from", "speechbrain", tmp_path / "model.ckpt", "--to", tmp_path / "voice")
    voice = load_checkpoint(tmp_path / "voice")
    symbols = pytest.importorskip("speechbrain.utils.text_to_sequence").symbols
    assert list(voice.tokenizer.symbols) == symbols

    tokens, lengths = torch.randint(1, 148, (1, 9)), torch.tensor([9])
    mels, n_mels = 3.0 * torch.randn(1, N_STEPS, 80), torch.tensor([N_STEPS])
    before, after, stops, alignments = peer((tokens, lengths, mels.mT, N_STEPS, n_mels))
    theirs, _, theirs_alignments = peer.infer(tokens, lengths)
    for model in (plain(voice), voice.model):
        ours = model(tokens, lengths, mels, n_mels)
        assert_close(ours.mels_before, before.mT)
        assert_close(ours.mels_after, after.mT)
        assert_close(ours.stop_logits, stops.reshape(1, -1))
        assert_close(ours.alignments, alignments)
        spoken = model.infer(tokens, max_decoder_steps=N_STEPS)
        assert_close(spoken.mels, theirs.mT)
        assert_close(spoken.alignments, theirs_alignments)

    run_cli("--from", tmp_path / "voice", "--to", "speechbrain", tmp_path / "back.ckpt")
    peer.load_state_dict(torch.load(tmp_path / "back.ckpt", weights_only=True), strict=True)


def build_coqui(r_of_training: int) -> nn.Module:
    """Build Coqui's model from a config.json of its own; skip without the package."""
    peers = pytest.importorskip("TTS.tts.models.tacotron2", reason="pip: coqui-tts")
    configs = pytest.importorskip("TTS.tts.configs.tacotron2_config")
    config = configs.Tacotron2Config()
    config.from_dict(copy.deepcopy(COQUI_CONFIG))
    config.r, config.num_chars, config.out_channels = r_of_training, 29, 80
    config.double_decoder_consistency, config.ddc_r = True, 4
    return peers.Tacotron2(config)


@pytest.mark.slow
@pytest.mark.parametrize(("r_of_training", "r"), [(2, 2), (3, 2), (1, 1)])
@torch.no_grad()
def test_coqui_speaks_the_same(tmp_path: Path, r_of_training: int, r: int):
    peer = build_coqui(r_of_training)
    characters = pytest.importorskip("TTS.tts.utils.text.characters").Graphemes(
        **{k: v for k, v in COQUI_CONFIG["characters"].items() if k[:2] not in ("ch", "vo")},
        characters=COQUI_CONFIG["characters"]["characters"],
    )
    if r_of_training == 2:
        main = {n: s for n, s in shapes_of(peer).items() if not n.startswith("coarse_decoder.")}
        assert main == COQUI_SHAPES
    make_lively(peer, peer.decoder.stopnet[1].linear_layer)
    peer.decoder.stopnet[1].linear_layer.bias.fill_(-30.0)  # Coqui never stops at the first step
    peer.decoder.set_r(r)
    peer.decoder.max_decoder_steps = N_STEPS // r
    torch.save({"model": peer.state_dict(), "r": r}, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps({**COQUI_CONFIG, "r": r_of_training}))
    run_cli("--from", "coqui", tmp_path / "model.pth", "--to", tmp_path / "voice")
    voice = load_checkpoint(tmp_path / "voice")
    assert voice.model.config.frames_per_step == r
    encoded = voice.tokenizer.encode("Bad cab, a face!").tolist()
    assert encoded == [characters.char_to_id(c) for c in "bad cab, a face!"]

    tokens, lengths = torch.randint(1, 29, (1, 9)), torch.tensor([9])
    mels, n_mels = 3.0 * torch.randn(1, N_STEPS, 80), torch.tensor([N_STEPS])
    peer.coarse_decoder.set_r(4)
    forced = peer(tokens, lengths, mels, n_mels)
    theirs = peer.inference(tokens)
    for model in (plain(voice), voice.model):
        ours = model(tokens, lengths, mels, n_mels)
        assert_close(ours.mels_before, forced["decoder_outputs"])
        assert_close(ours.mels_after, forced["model_outputs"])
        assert_close(ours.stop_logits[:, r - 1 :: r], forced["stop_tokens"].reshape(1, -1))
        assert_close(ours.alignments[:, ::r], forced["alignments"])
        spoken = model.infer(tokens, max_decoder_steps=N_STEPS)
        assert_close(spoken.mels, theirs["model_outputs"])
