"""model.py by itself: first weights, padding, causality, stopping and losses."""

import math

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
    tacotron2_loss,
)

SMALL = {
    "vocab_size": 30, "num_mels": 20, "character_embed_dim": 24, "encoder_embed_dim": 32,
    "decoder_rnn_embed_dim": 40, "decoder_prenet_dim": 16, "decoder_postnet_n_filters": 24,
    "attention_dim": 16, "attention_location_n_filters": 8, "attention_location_kernel_size": 7,
}  # fmt: skip
PARTS = ("encoder", "decoder", "decoder_prenet", "decoder_postnet", "attention")
NO_DROPOUT = {f"{part}_dropout_p": 0.0 for part in PARTS}
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
    """Give batch norms the statistics of some data, so that eval mode is not the identity."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.normal_(module.bias)
    return model.eval()


def test_first_weights_are_xaviers():
    """Uniform in +-gain * sqrt(6 / (fan_in + fan_out)); LSTMs begin as PyTorch's do."""
    relu, tanh, sigmoid = math.sqrt(2), 5 / 3, 1
    gains = {
        "encoder.convolutions": relu,
        "query_layer": tanh,
        "key_layer": tanh,
        "location_layer": tanh,
        "stop_projection": sigmoid,
        "postnet": tanh,
    }
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
def test_a_clip_gives_the_same_alone_and_padded_in_a_batch(fast_decoder):
    model = lively(make_model(fast_decoder=fast_decoder))
    # Sorting these lengths and sorting them back are different permutations.
    tokens, token_lengths, mels, mel_lengths = make_batch(token_lengths=(6, 4, 9))
    together = model(tokens, token_lengths, mels, mel_lengths)
    padding, silence = build_padding_mask(token_lengths), build_padding_mask(mel_lengths)
    noise = mels.masked_fill(silence[:, :, None], 100.0)
    garbage = model(tokens.masked_fill(padding, 7), token_lengths, noise, mel_lengths)
    torch.testing.assert_close(garbage.mels_after, together.mels_after)
    assert not together.mels_before[silence].any() and not together.mels_after[silence].any()
    assert not together.alignments[padding[:, None].expand_as(together.alignments)].any()
    torch.testing.assert_close(together.alignments.sum(dim=2), torch.ones(3, 20))
    for i in range(3):
        n, t = int(token_lengths[i]), int(mel_lengths[i])
        one = slice(i, i + 1)
        alone = model(tokens[one, :n], token_lengths[one], mels[one, :t], mel_lengths[one])
        for name in ("mels_before", "mels_after", "stop_logits"):
            padded = getattr(together, name)[one, :t]
            torch.testing.assert_close(getattr(alone, name), padded, atol=1e-5, rtol=0)
        padded = together.alignments[one, :t, :n]
        torch.testing.assert_close(alone.alignments, padded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fast_decoder", [True, False])
def test_one_character_and_one_frame_can_be_trained(fast_decoder):
    """Batch norm of a single value per channel: normalised as in eval mode, counted nowhere."""
    model = make_model(fast_decoder=fast_decoder, encoder_dropout_p=0.0)
    batch = make_batch(token_lengths=(1,), mel_lengths=(1,))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    output = model.train()(*batch)
    torch.testing.assert_close(dict(model.named_buffers()), before)
    for ours, expected in zip(output, model.eval()(*batch), strict=True):
        torch.testing.assert_close(ours, expected)
    tacotron2_loss(output, batch[2], batch[1], batch[3], torch.ones(1, 1), 1.0)["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.train()(*make_batch(token_lengths=(2,), mel_lengths=(2,)))  # two values: as always
    assert all(b == 1 for name, b in model.named_buffers() if "num_batches" in name)


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
@pytest.mark.parametrize("frames_per_step", [1, 2, 3])
def test_free_running_is_teacher_forcing_on_its_own_frames(fast_decoder, frames_per_step):
    """Each step begins with the last frame of the step before, whoever made that frame."""
    sizes = {"frames_per_step": frames_per_step}
    model = make_model(fast_decoder=fast_decoder, **sizes).eval()
    tokens, token_lengths, *_ = make_batch()
    padding_mask = build_padding_mask(token_lengths)
    with torch.no_grad():
        encoder_outputs = model.encoder(tokens, token_lengths, padding_mask)
        free = model.decoder.infer(encoder_outputs, padding_mask, 20, 1.0)
        forced = model.decoder(encoder_outputs, padding_mask, free[0])
    assert [x.shape[1] for x in free] == [20, 20, 20], "the limit counts frames"
    torch.testing.assert_close(free, forced, atol=1e-5, rtol=1e-5)
    steps = free[2][:, ::frames_per_step].repeat_interleave(frames_per_step, dim=1)[:, :20]
    assert torch.equal(free[2], steps), "the frames of a step share its alignment"
    changed = free[0].clone()
    changed[:, 0] += 1.0
    again, *_ = model.decoder(encoder_outputs, padding_mask, changed)
    same = (again == forced[0]).all(dim=2).all(dim=0)  # (20,)
    is_read = frames_per_step == 1  # with more, the first frame is not the last of its step
    assert same.all() != is_read and same[:frames_per_step].all()


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


def test_a_clip_that_has_stopped_once_stays_stopped(monkeypatch):
    decoder = make_model(fast_decoder=False).eval().decoder
    step, logits = decoder.step, iter([[9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0]])

    def step_with_logits(*args):
        frame, _, *others = step(*args)
        return frame, torch.tensor(next(logits))[:, None], *others

    monkeypatch.setattr(decoder, "step", step_with_logits)
    text, no_padding = torch.zeros(2, 3, 32), torch.zeros(2, 3, dtype=torch.bool)
    assert decoder.infer(text, no_padding, 3, 0.5)[1].shape == (2, 2)


@BOTH_DECODERS
def test_the_limit_ends_what_never_stops(fast_decoder):
    model = make_model(fast_decoder=fast_decoder).eval()
    tokens, token_lengths, *_ = make_batch()
    output = model.infer(tokens, token_lengths, max_decoder_steps=12, stop_threshold=1.0)
    assert output.mel_lengths.tolist() == [12, 12, 12] and output.reached_limit.all()
    assert output.mels.shape == (3, 12, 20) and output.alignments.shape == (3, 12, 9)
    with pytest.raises(ValueError, match="max_decoder_steps"):
        model.infer(tokens, token_lengths, max_decoder_steps=0)


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
    sums, absolute, tail = np.zeros(4), np.zeros(2), 0.0
    for i, (n, t) in enumerate(zip(token_lengths.tolist(), mel_lengths.tolist(), strict=True)):
        for frame in range(t):
            true = mels[i, frame].numpy()
            before, after = (x[i, frame].numpy() - true for x in output[:2])
            sums[:2] += (before**2).mean(), (after**2).mean()
            absolute += abs(before).mean(), abs(after).mean()
            probability = 1 / (1 + np.exp(-float(output.stop_logits[i, frame])))
            sums[2] -= np.log(probability if frame == t - 1 else 1 - probability)
            for character in range(n):
                off = 1 - np.exp(-((character / n - frame / t) ** 2) / (2 * 0.3**2))
                sums[3] += 2.0 * off * float(output.alignments[i, frame, character])
        output.alignments[i, :, n:] = 0.0
        tail += np.log1p(np.exp(-output.stop_logits[i, t : t + 2].numpy())).sum()
    expected = sums / mel_lengths.sum().item()
    losses = tacotron2_loss(output, mels, token_lengths, mel_lengths, stop_targets, 2.0, 0.3)
    names = ("mel_before_loss", "mel_after_loss", "stop_loss", "guided_attention_loss")
    np.testing.assert_allclose([losses[name].item() for name in names], expected, rtol=1e-4)
    assert losses["loss"].item() == pytest.approx(expected.sum(), rel=1e-4)
    # A batch that is half of a step's frames has half of the step's loss.
    arguments = output, mels, token_lengths, mel_lengths, stop_targets, 2.0, 0.3
    half = tacotron2_loss(*arguments, n_frames=2 * mel_lengths.sum())["loss"]
    torch.testing.assert_close(half, losses["loss"] / 2)
    with_l1 = tacotron2_loss(*arguments, l1_weight=3.0)
    added = [(with_l1[name] - losses[name]).item() for name in names]
    np.testing.assert_allclose(added, [*3 * absolute / mel_lengths.sum().item(), 0, 0], rtol=1e-4)
    with_tail = tacotron2_loss(*arguments, stop_tail_frames=2)
    added = [(with_tail[name] - losses[name]).item() for name in names]
    np.testing.assert_allclose(added, [0, 0, tail / mel_lengths.sum().item(), 0], rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("encoder_kernel_size", (4, -1)),
        ("decoder_postnet_kernel_size", (0, 10**9 + 1)),
        ("decoder_prenet_dropout_p", (1.0, -0.1)),
        ("encoder_embed_dim", (33, 0)),
        ("vocab_size", (0, -1, 10**30)),
    ],
)
def test_a_size_out_of_bounds_is_refused_by_its_name(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"--{field} must be "):
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
