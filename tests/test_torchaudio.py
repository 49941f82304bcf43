"""The oracle: torchaudio.models.Tacotron2 at its default size, with the same weights.

torchaudio's model is NVIDIA/tacotron2's; nobody here wrote it. Dropout is off in both models, which
draw it in different orders and at different places.
"""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from convert_checkpoint import model_from_peer, peer_name
from fast.decoder import speed_up
from model import Tacotron2
from test_model import NO_DROPOUT

TOLERANCE = 1e-5
both_decoders = pytest.mark.parametrize("fast_decoder", [True, False], ids=["fast", "plain"])


@pytest.fixture(scope="module")
def peer() -> torchaudio.models.Tacotron2:
    """Build the peer: random weights, batch norms that have seen data, attention with contrast.

    The batch norms' weights stay well below 1. In train mode a fresh model's postnet enlarges
    rounding errors until torchaudio's own float32 is 1.3e-5 away from its float64.
    """
    torch.manual_seed(0)
    model = torchaudio.models.Tacotron2()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.weight.uniform_(0.1, 0.5)
                module.bias.normal_(std=0.2)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(7)
        model.embedding.weight.normal_()
        model.decoder.attention_layer.v.weight.mul_(8.0)
    return model.eval()


@pytest.fixture
def without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn dropout off; in places torchaudio's is F.dropout with a fixed 0.5."""
    monkeypatch.setattr(F, "dropout", lambda x, *args, **kwargs: x)


def ours_of(peer: torchaudio.models.Tacotron2, fast_decoder: bool, **config) -> Tacotron2:
    """Build our model with torchaudio's weights."""
    state = peer.state_dict()
    converted = model_from_peer(state, "torchaudio", Path("peer"))
    model = Tacotron2(replace(converted.config, **config))
    model.load_state_dict(converted.state_dict())
    return (speed_up(model) if fast_decoder else model).train(peer.training)


def equal_batch(batch_size: int = 3, n_text: int = 12, n_mel: int = 20) -> tuple[Tensor, ...]:
    """Make tokens, token_lengths, mels and mel_lengths of clips of equal length."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 148, (batch_size, n_text), generator=generator)
    mels = 5.0 * torch.randn(batch_size, n_mel, 80, generator=generator)
    return tokens, torch.full((batch_size,), n_text), mels, torch.full((batch_size,), n_mel)


def run_peer(peer: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return torchaudio's outputs in our order and shapes: mels (B, T_mel, num_mels)."""
    tokens, token_lengths, mels, mel_lengths = batch
    before, after, stop, alignments = peer(tokens, token_lengths, mels.mT, mel_lengths)
    return before.mT, after.mT, stop, alignments


def largest_difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    assert [o.shape for o in ours] == [t.shape for t in theirs]
    return max((o - t).detach().abs().max().item() for o, t in zip(ours, theirs, strict=True))


@both_decoders
def test_forward_in_eval_mode(peer, without_dropout, fast_decoder):
    batch = equal_batch()
    # Ours keeps all its dropouts but the prenet's: eval mode alone must turn them off.
    model = ours_of(peer, fast_decoder, decoder_prenet_dropout_p=0.0)
    with torch.no_grad():
        ours, theirs = model(*batch), run_peer(peer, batch)
    assert theirs[3].max() > 0.3, "the attention should prefer some character"
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.slow
def test_forward_in_double_precision(peer, without_dropout):
    tokens, token_lengths, mels, mel_lengths = equal_batch()
    batch = (tokens, token_lengths, mels.double(), mel_lengths)
    double = copy.deepcopy(peer).double().train()
    model = ours_of(double, True, **NO_DROPOUT).double()
    with torch.no_grad():
        assert largest_difference(model(*batch), run_peer(double, batch)) < 1e-11


@pytest.mark.slow
@both_decoders
def test_forward_and_gradients_in_train_mode(peer, without_dropout, fast_decoder):
    batch = equal_batch()
    trained = copy.deepcopy(peer).train()
    model = ours_of(trained, fast_decoder, **NO_DROPOUT)
    ours, theirs = model(*batch), run_peer(trained, batch)
    assert largest_difference(ours, theirs) < TOLERANCE
    for outputs in (ours, theirs):
        generator = torch.Generator().manual_seed(2)
        sum((o * torch.randn(o.shape, generator=generator)).sum() for o in outputs).backward()

    before, after = peer.state_dict(), trained.state_dict()
    our_state = {peer_name(name, "torchaudio"): t for name, t in model.state_dict().items()}
    statistics = [name for name in after if "running" in name]
    counts = [name for name in after if "num_batches_tracked" in name]
    assert len(statistics) == 16 and len(counts) == 8
    for name in statistics:
        assert not torch.equal(after[name], before[name]), "train mode should move the statistics"
        assert (our_state[name] - after[name]).abs().max() < TOLERANCE, name
    assert all(our_state[name] == after[name] == 8 for name in counts)
    gradients = {name: parameter.grad for name, parameter in trained.named_parameters()}
    for name, parameter in model.named_parameters():
        check_gradient(peer_name(name, "torchaudio"), parameter.grad, gradients)


def check_gradient(name: str, ours: Tensor, gradients: dict[str, Tensor]) -> None:
    """Compare the norm of the difference with 1e-4 of theirs."""
    theirs = gradients[name]
    scale = theirs.norm()
    if ".0.bias" in name and "convolutions" in name:
        # Batch norm removes a constant: the gradient is rounding error around 0, small beside
        # that of the convolution's own weight.
        scale = gradients[name.replace("bias", "weight")].norm()
        assert theirs.norm() < 1e-4 * scale, name
    assert scale > 1e-6, f"{name} should have a gradient"
    assert (ours - theirs).norm() < 1e-4 * scale, name


def stopping_peer(peer: nn.Module, tokens: Tensor, n_frames: int) -> nn.Module:
    """Copy the peer so that its clips stop at different frames, one of them never.

    The gate's weights are enlarged so that its logit moves, and its bias lies between the highest
    logits of two clips.
    """
    peer = copy.deepcopy(peer)
    with torch.no_grad():
        peer.decoder.gate_layer.weight.mul_(20.0)
        peer.decoder.gate_layer.bias.zero_()
        peer.decoder.decoder_max_step, peer.decoder.decoder_early_stopping = n_frames, False
        lengths = torch.full((len(tokens),), tokens.shape[1])
        memory = peer.encoder(peer.embedding(tokens).mT, lengths)
        logits = peer.decoder.infer(memory, lengths)[2]  # (B, T_mel)
        highest = logits.cummax(dim=1).values
        peer.decoder.gate_layer.bias.fill_(-float(highest[:, -1].sort().values[:2].mean()))
        peer.decoder.decoder_early_stopping = True
    return peer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Reached max decoder steps")
@both_decoders
def test_free_running(peer, without_dropout, fast_decoder):
    n_frames = 24
    tokens, token_lengths, _, _ = equal_batch(batch_size=6)
    stopping = stopping_peer(peer, tokens, n_frames)
    model = ours_of(stopping, fast_decoder, decoder_prenet_dropout_p=0.0)
    ours = model.infer(tokens, token_lengths, max_decoder_steps=n_frames)
    with torch.no_grad():
        mels, lengths, alignments = stopping.infer(tokens, token_lengths)
        alone = [stopping.infer(tokens[i : i + 1]) for i in range(len(tokens))]

    assert len(set(lengths.tolist())) >= 3, f"lengths should differ, found {lengths}"
    assert ours.mel_lengths.tolist() == lengths.tolist()
    assert ours.reached_limit.tolist() == [length == n_frames for length in lengths.tolist()]
    assert ours.reached_limit.any() and not ours.reached_limit.all()
    assert largest_difference((ours.alignments,), (alignments,)) < TOLERANCE
    reach = 5 * 2  # frames on each side that the postnet's five convolutions of width 5 see
    for i, length in enumerate(lengths.tolist()):
        own_mel, own_lengths, own_alignment = alone[i]
        assert own_lengths.item() == length
        assert (ours.mels[i, :length] - own_mel[0].mT).abs().max() < TOLERANCE
        assert (ours.alignments[i, :length] - own_alignment[0]).abs().max() < TOLERANCE
        assert not ours.mels[i, length:].any()
        # In a batch, theirs lets the frames after the stop into the postnet, ours does not.
        inner = max(length - reach, 0) if length < mels.shape[2] else length
        assert torch.allclose(ours.mels[i, :inner], mels[i].mT[:inner], rtol=0, atol=TOLERANCE)
