"""The model by itself: padding, causality, stopping, losses, and that it can learn."""

import math
from typing import get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fast.decoder import speed_up
from model import (
    Tacotron2,
    Tacotron2Config,
    Tacotron2Output,
    build_padding_mask,
    guided_attention_penalty,
    tacotron2_loss,
)

SMALL = {
    "vocab_size": 30,
    "num_mels": 20,
    "character_embed_dim": 24,
    "encoder_embed_dim": 32,
    "decoder_rnn_embed_dim": 40,
    "decoder_prenet_dim": 16,
    "decoder_postnet_n_filters": 24,
    "attention_dim": 16,
    "attention_location_n_filters": 8,
    "attention_location_kernel_size": 7,
}
NO_DROPOUT = {
    "encoder_dropout_p": 0.0,
    "decoder_dropout_p": 0.0,
    "decoder_prenet_dropout_p": 0.0,
    "decoder_postnet_dropout_p": 0.0,
    "attention_dropout_p": 0.0,
}
BOTH_DECODERS = pytest.mark.parametrize("fast_decoder", [True, False])


def make_batch(token_lengths=(9, 6, 4), mel_lengths=(17, 20, 8), num_mels=20, seed=0):
    rng = torch.Generator().manual_seed(seed)
    token_lengths, mel_lengths = torch.tensor(token_lengths), torch.tensor(mel_lengths)
    shape = (len(token_lengths), int(token_lengths.max()))
    tokens = torch.randint(1, 30, shape, generator=rng)
    tokens[build_padding_mask(token_lengths)] = 0
    mels = torch.randn(len(mel_lengths), int(mel_lengths.max()), num_mels, generator=rng)
    mels[build_padding_mask(mel_lengths)] = -4.0
    return tokens, token_lengths, mels, mel_lengths


def make_model(seed=0, fast_decoder=True, **changes):
    torch.manual_seed(seed)
    model = Tacotron2(Tacotron2Config(**{**SMALL, **NO_DROPOUT, **changes}))
    return speed_up(model) if fast_decoder else model


def lively(model):
    """Batch norms that have seen data, so that eval mode is not the identity."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.normal_(module.bias)
    return model.eval()


def test_weights_begin_as_xavier_says():
    """Uniform in +-gain * sqrt(6 / (fan_in + fan_out)); LSTMs begin as PyTorch's do."""
    relu, tanh, sigmoid = math.sqrt(2), 5 / 3, 1
    gains = {"encoder.convolutions": relu, "query_layer": tanh, "key_layer": tanh,
             "location_layer": tanh, "stop_projection": sigmoid, "postnet": tanh}  # fmt: skip
    last = "postnet.convolutions.4"
    torch.manual_seed(0)
    n_checked = 0
    for name, weight in Tacotron2(Tacotron2Config()).named_parameters():
        if weight.ndim < 2 or "lstm" in name or "rnn" in name:
            continue
        fans = (weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()
        gain = next((g for part, g in gains.items() if part in name and last not in name), 1)
        bound = gain * math.sqrt(6 / fans)
        assert weight.abs().max() <= bound, name
        variance = weight.square().mean() * (1 + ("embedding" in name) / 39)  # one row is 0
        assert variance.item() == pytest.approx(bound**2 / 3, rel=6 / math.sqrt(weight.numel()))
        n_checked += 1
    assert n_checked == 18


@BOTH_DECODERS
def test_alignment_rows_sum_to_one_and_are_zero_on_padding(fast_decoder):
    batch = make_batch()
    output = make_model(fast_decoder=fast_decoder)(*batch)
    torch.testing.assert_close(output.alignments.sum(dim=2), torch.ones(3, 20))
    padding = build_padding_mask(batch[1])[:, None].expand_as(output.alignments)
    assert (output.alignments[padding] == 0).all()
    assert (output.alignments[~padding] > 0).all()


@BOTH_DECODERS
def test_an_utterance_alone_equals_itself_padded_in_a_batch(fast_decoder):
    model = lively(make_model(fast_decoder=fast_decoder))
    # Sorting these lengths and sorting them back are different permutations.
    tokens, token_lengths, mels, mel_lengths = make_batch(token_lengths=(6, 4, 9))
    together = model(tokens, token_lengths, mels, mel_lengths)
    for i in range(3):
        n, t = int(token_lengths[i]), int(mel_lengths[i])
        alone = model(
            tokens[i : i + 1, :n], token_lengths[i : i + 1], mels[i : i + 1, :t],
            mel_lengths[i : i + 1],
        )  # fmt: skip
        for name in ("mels_before", "mels_after", "stop_logits"):
            padded = getattr(together, name)[i : i + 1, :t]
            torch.testing.assert_close(getattr(alone, name), padded, atol=1e-5, rtol=0)
        padded = together.alignments[i : i + 1, :t, :n]
        torch.testing.assert_close(alone.alignments, padded, atol=1e-5, rtol=0)


def test_padded_frames_and_padded_characters_change_nothing():
    model = lively(make_model())
    tokens, token_lengths, mels, mel_lengths = make_batch()
    output = model(tokens, token_lengths, mels, mel_lengths)
    tokens = tokens.masked_fill(build_padding_mask(token_lengths), 7)
    mels = mels.masked_fill(build_padding_mask(mel_lengths)[:, :, None], 100.0)
    garbage = model(tokens, token_lengths, mels, mel_lengths)
    torch.testing.assert_close(garbage.mels_after, output.mels_after)
    torch.testing.assert_close(garbage.alignments[1], output.alignments[1])
    padding = build_padding_mask(mel_lengths)
    assert not output.mels_before[padding].any() and not output.mels_after[padding].any()


@BOTH_DECODERS
def test_no_frame_sees_itself_or_the_future(fast_decoder):
    model = make_model(fast_decoder=fast_decoder).eval()
    tokens, token_lengths, mels, mel_lengths = make_batch()
    before = model(tokens, token_lengths, mels, mel_lengths)
    changed_mels = mels.clone()
    changed_mels[:, 10:] += 1.0
    after = model(tokens, token_lengths, changed_mels, mel_lengths)
    assert torch.equal(before.mels_before[:, :11], after.mels_before[:, :11])
    assert torch.equal(before.alignments[:, :11], after.alignments[:, :11])
    assert not torch.equal(before.mels_before[1, 11:], after.mels_before[1, 11:])


@BOTH_DECODERS
def test_inference_stops_each_item_by_itself(fast_decoder):
    """With stop forced by a bias, every item ends at once; without, every one hits the limit."""
    model = make_model(fast_decoder=fast_decoder).eval()
    tokens, token_lengths, *_ = make_batch()
    with torch.no_grad():
        model.decoder.stop_projection.bias.fill_(100.0)
    output = model.infer(tokens, token_lengths, max_decoder_steps=12)
    assert output.mel_lengths.tolist() == [1, 1, 1] and not output.reached_limit.any()
    with torch.no_grad():
        model.decoder.stop_projection.bias.fill_(-100.0)
    output = model.infer(tokens, token_lengths, max_decoder_steps=12)
    assert output.mel_lengths.tolist() == [12, 12, 12] and output.reached_limit.all()
    assert output.mels.shape == (3, 12, 20) and output.alignments.shape == (3, 12, 9)


@BOTH_DECODERS
def test_batched_inference_equals_one_by_one(fast_decoder):
    model = lively(make_model(fast_decoder=fast_decoder))
    tokens, token_lengths, *_ = make_batch()
    with torch.no_grad():
        model.decoder.stop_projection.weight.neg_()  # so that the untrained stop rises with time
    never = torch.sigmoid(model.infer(tokens, token_lengths, 15, 1.0).stop_logits)  # (3, 15)
    ends = {  # threshold -> the step at which each item would stop
        threshold: (never <= threshold).sum(dim=1).tolist()
        for threshold in (never.flatten() - 1e-4).tolist()
    }
    threshold = max(ends, key=lambda threshold: len(set(ends[threshold])))
    steps = []
    model.decoder.prenet.register_forward_hook(lambda *_: steps.append(None))
    together = model.infer(tokens, token_lengths, 15, threshold)
    assert len(steps) == int(together.mel_lengths.max()), "steps after the last item has stopped"
    assert len(set(together.mel_lengths.tolist())) > 1, "the items should end at different steps"
    assert together.mel_lengths.tolist() == [min(n + 1, 15) for n in ends[threshold]]
    for i in range(3):
        n = int(token_lengths[i])
        alone = model.infer(tokens[i : i + 1, :n], None, 15, threshold)
        length = int(alone.mel_lengths)
        assert length == int(together.mel_lengths[i])
        assert bool(alone.reached_limit) == bool(together.reached_limit[i])
        torch.testing.assert_close(alone.mels[0], together.mels[i, :length], atol=1e-5, rtol=0)
        assert (together.mels[i, length:] == 0).all()


def test_an_item_that_has_said_stop_once_has_stopped(monkeypatch):
    """Whatever its later frames say."""
    decoder = make_model(fast_decoder=False).eval().decoder
    step, said = decoder.step, iter([[9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0]])

    def say(*args):
        frame, _, *others = step(*args)
        return frame, torch.tensor(next(said)), *others

    monkeypatch.setattr(decoder, "step", say)
    text, no_padding = torch.zeros(2, 3, 32), torch.zeros(2, 3, dtype=torch.bool)
    assert decoder.infer(text, no_padding, 3, 0.5)[1].shape == (2, 2)


def test_inference_refuses_no_steps():
    with pytest.raises(ValueError, match="max_decoder_steps"):
        make_model().infer(torch.ones(1, 3, dtype=torch.int64), None, max_decoder_steps=0)


def test_losses_are_means_over_valid_frames():
    """Against a loop in numpy that never sees the padding."""
    _, token_lengths, mels, mel_lengths = make_batch()
    rng = torch.Generator().manual_seed(1)
    output = Tacotron2Output(
        torch.randn(mels.shape, generator=rng),
        torch.randn(mels.shape, generator=rng),
        torch.randn(mels.shape[:2], generator=rng),
        torch.rand(3, 20, 9, generator=rng),
    )
    stop_targets = build_padding_mask(mel_lengths - 1, 20).float()
    losses = tacotron2_loss(output, mels, token_lengths, mel_lengths, stop_targets, 2.0, 0.3)
    sums = np.zeros(4)
    for i, (n, t) in enumerate(zip(token_lengths.tolist(), mel_lengths.tolist(), strict=True)):
        for frame in range(t):
            true = mels[i, frame].numpy()
            sums[0] += ((output.mels_before[i, frame].numpy() - true) ** 2).mean()
            sums[1] += ((output.mels_after[i, frame].numpy() - true) ** 2).mean()
            probability = 1 / (1 + np.exp(-float(output.stop_logits[i, frame])))
            sums[2] -= np.log(probability if frame == t - 1 else 1 - probability)
            for character in range(n):
                off = 1 - np.exp(-((character / n - frame / t) ** 2) / (2 * 0.3**2))
                sums[3] += 2.0 * off * float(output.alignments[i, frame, character])
        output.alignments[i, :, n:] = 0.0
    expected = sums / mel_lengths.sum().item()
    losses = tacotron2_loss(output, mels, token_lengths, mel_lengths, stop_targets, 2.0, 0.3)
    names = ("mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")
    np.testing.assert_allclose([losses[name].item() for name in names], expected, rtol=1e-4)
    assert losses["loss"].item() == pytest.approx(expected.sum(), rel=1e-4)


def test_loss_of_two_halves_is_that_of_the_whole():
    """With the frame count of both, as gradient accumulation and several processes have it."""
    tokens, token_lengths, mels, mel_lengths = make_batch((9, 6, 4, 5), (17, 20, 8, 11))
    model = make_model().eval()

    def loss_of(rows):
        output = model(tokens[rows], token_lengths[rows], mels[rows], mel_lengths[rows])
        targets = build_padding_mask(mel_lengths[rows] - 1, 20).float()
        return tacotron2_loss(
            output, mels[rows], token_lengths[rows], mel_lengths[rows], targets, 1.0,
            n_frames=mel_lengths.sum(),
        )["loss"]  # fmt: skip

    halves = loss_of(slice(0, 2)) + loss_of(slice(2, 4))
    torch.testing.assert_close(halves, loss_of(slice(0, 4)))


def test_guided_attention_spares_the_diagonal():
    alignments = torch.zeros(1, 10, 10)
    penalty = guided_attention_penalty(torch.tensor([10]), torch.tensor([10]), 0.2, alignments)[0]
    assert (penalty.diagonal() == 0).all()
    assert penalty[0, 9] > 0.99 and penalty[9, 0] > 0.99
    assert (penalty.diff(dim=1)[0] > 0).all()


@BOTH_DECODERS
def test_one_batch_can_be_learnt(fast_decoder):
    """Loss falls below what predicting each bin's mean over the batch would reach."""
    model = make_model(fast_decoder=fast_decoder)
    tokens, token_lengths, _, mel_lengths = make_batch()
    time = torch.arange(20)[None, :, None] / 20
    mels = torch.sin(time * 6 + torch.arange(20)) * torch.tensor([1.0, 2.0, 1.5])[:, None, None]
    valid = ~build_padding_mask(mel_lengths)
    untrainable = mels[valid].var(dim=0, correction=0).mean().item()
    targets = build_padding_mask(mel_lengths - 1, 20).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        output = model(tokens, token_lengths, mels, mel_lengths)
        losses = tacotron2_loss(output, mels, token_lengths, mel_lengths, targets)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["mel_after_loss"].item() < 0.2 * untrainable
    assert losses["stop_loss"].item() < 0.1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_kernel_size", 4),
        ("decoder_postnet_kernel_size", 0),
        ("attention_location_kernel_size", 30),
        ("encoder_dropout_p", 1.0),
        ("decoder_prenet_dropout_p", -0.1),
        ("encoder_embed_dim", 33),
        ("decoder_rnn_embed_dim", 0),
        ("decoder_prenet_depth", 0),
        ("decoder_postnet_num_convs", 0),
        ("num_mels", 0),
        ("attention_location_n_filters", -1),
    ],
)
def test_sizes_that_make_no_sense_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        Tacotron2Config(**{field: value})


def test_save_and_from_pretrained(tmp_path):
    model = lively(make_model(fast_decoder=False))
    model.save_pretrained(tmp_path)
    again = Tacotron2.from_pretrained(tmp_path)
    assert again.config == model.config
    batch = make_batch()
    assert torch.equal(again(*batch).mels_after, model(*batch).mels_after)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["decoder.attention.v.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"decoder\.attention\.v\.weight"):
        Tacotron2.from_pretrained(tmp_path)


SIZES = [name for name, kind in get_type_hints(Tacotron2Config).items() if kind is int]
SIZES.remove("pad_token_id")


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", [10**9 + 1, 10**30 + 1, -1])
def test_a_size_out_of_bounds_is_refused_before_anything_is_built(field, value):
    with pytest.raises(ValueError, match=f"--{field} must be "):
        Tacotron2Config(**{field: value})
