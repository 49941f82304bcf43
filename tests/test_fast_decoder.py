"""The hand-written loop: its gradients against numbers, all of it against the plain loop."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import fast_decoder
import fast_steps
from fast_decoder import _LSTM, AttentionLoop, attention_loop, fast_lstm
from fast_steps import repeated_attention, repeated_cell
from model import Tacotron2, Tacotron2Config, Tacotron2Output, build_padding_mask

SMALL = Tacotron2Config(
    vocab_size=20,
    num_mels=10,
    character_embed_dim=24,
    encoder_embed_dim=24,
    decoder_rnn_embed_dim=32,
    decoder_prenet_dim=16,
    decoder_postnet_n_filters=16,
    attention_dim=12,
    attention_location_n_filters=6,
    attention_location_kernel_size=7,
    attention_dropout_p=0.4,
)
BF16_OUTPUT, BF16_GRADIENT = 0.05, 0.1  # of the norm; 8 bits are 0.004 at each operation
DOUBLE = {"dtype": torch.float64, "requires_grad": True}


def test_lstm_gradients_in_double_precision():
    torch.manual_seed(0)
    n_in, n_hidden = 3, 2
    shapes = ((4, 2, n_in), (4 * n_hidden, n_in), (4 * n_hidden, n_hidden), (4 * n_hidden,))
    assert torch.autograd.gradcheck(_LSTM.apply, [torch.randn(*s, **DOUBLE) for s in shapes])


def loop_arguments(padding: list[list[int]], with_dropout: bool) -> list[Tensor | None]:
    """What AttentionLoop takes, tiny, in double precision."""
    torch.manual_seed(0)
    n_frames, prenet, encoder, hidden, attention, kernel = 4, 2, 3, 2, 2, 3
    mask = torch.tensor(padding, dtype=torch.bool)
    batch_size, n_text = mask.shape
    sequences = ((n_frames, batch_size, prenet), (batch_size, n_text, encoder))
    weights = (
        (4 * hidden, prenet + encoder),
        (4 * hidden, hidden),
        (4 * hidden,),
        (attention, hidden),
        (attention, 2, kernel),
        (attention,),
    )
    drops = None
    if with_dropout:
        drops = torch.randint(0, 2, (n_frames, batch_size, hidden)).double() / 0.6
        assert 0 < drops.count_nonzero() < drops.numel()
    return [
        None,
        *(torch.randn(*shape, **DOUBLE) for shape in sequences),
        torch.randn(batch_size, n_text, attention, **DOUBLE),
        mask,
        drops,
        *(torch.randn(*shape, **DOUBLE) for shape in weights),
    ]


@pytest.mark.parametrize("with_dropout", [False, True])
@pytest.mark.parametrize(
    "padding",
    [
        [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
        [[0, 0, 0, 1, 1]],
        [[0, 0, 0], [1, 1, 1]],
    ],
    ids=["mixed", "one", "all_padding"],
)
def test_loop_gradients_in_double_precision(padding, with_dropout):
    assert torch.autograd.gradcheck(AttentionLoop.apply, loop_arguments(padding, with_dropout))


def make_batch(lengths: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """tokens, token_lengths, mels, mel_lengths of (characters, frames), padded."""
    torch.manual_seed(3)
    token_lengths, mel_lengths = map(torch.tensor, zip(*lengths, strict=True))
    tokens = torch.randint(1, SMALL.vocab_size, (len(lengths), int(token_lengths.max())))
    mels = torch.randn(len(lengths), int(mel_lengths.max()), SMALL.num_mels)
    tokens = tokens.masked_fill(build_padding_mask(token_lengths), 0)
    mels = mels.masked_fill(build_padding_mask(mel_lengths)[:, :, None], -4.0)
    return tokens, token_lengths, mels, mel_lengths


def train_step(
    model: Tacotron2,
    batch: tuple[Tensor, ...],
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
) -> tuple[Tacotron2Output, dict[str, Tensor]]:
    """Outputs and gradients of a random projection of all outputs, dropout drawn from the seed."""
    model.train().zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        output = model(*batch)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(part.shape, generator=generator) for part in output]
    sum((part * w).mean() for part, w in zip(output, weights, strict=True)).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return Tacotron2Output(*(part.detach().to(batch[2].dtype) for part in output)), gradients


def fast_and_plain(contrast: float) -> tuple[Tacotron2, Tacotron2]:
    """The same weights in both loops; more contrast, more pointed alignments."""
    torch.manual_seed(0)
    fast = Tacotron2(SMALL)
    with torch.no_grad():
        fast.decoder.attention.v.weight.mul_(contrast)
        for module in fast.postnet.modules():
            if isinstance(module, nn.BatchNorm1d):  # in train mode it enlarges rounding errors
                module.weight.fill_(0.3)
    plain = Tacotron2(replace(SMALL, fast_decoder=False))
    plain.load_state_dict(fast.state_dict())
    return fast, plain


@pytest.mark.parametrize(
    "lengths",
    [[(9, 17), (4, 21), (7, 2)], [(6, 15)], [(1, 3), (5, 1)]],
    ids=["mixed", "one", "shortest"],
)
def test_fast_equals_plain_with_dropout_of_the_same_seed(lengths):
    tokens, token_lengths, mels, mel_lengths = make_batch(lengths)
    batch = tokens, token_lengths, mels.double(), mel_lengths
    fast, plain = (model.double() for model in fast_and_plain(contrast=8.0))
    for seed in range(3):
        fast_output, fast_gradients = train_step(fast, batch, torch.float64, seed)
        plain_output, plain_gradients = train_step(plain, batch, torch.float64, seed)
        torch.testing.assert_close(
            {**fast_output._asdict(), **fast_gradients},
            {**plain_output._asdict(), **plain_gradients},
            rtol=1e-9,
            atol=1e-11,
        )


@pytest.mark.parametrize("lengths", [[(9, 17), (4, 21), (7, 2)], [(6, 15)]], ids=["mixed", "one"])
def test_bfloat16_is_close_to_float32(lengths):
    """As close as the plain loop under autocast is: rounding to 8 bits, not another function."""
    batch = make_batch(lengths)
    fast, plain = fast_and_plain(contrast=2.0)
    exact_output, exact_gradients = train_step(plain, batch)
    for model in (fast, plain):
        output, gradients = train_step(model, batch, torch.bfloat16)
        for name, half, exact in zip(output._fields, output, exact_output, strict=True):
            assert (half - exact).norm() < BF16_OUTPUT * exact.norm(), name
            assert not torch.equal(half, exact), f"{name}: autocast was off"
        for name in ("decoder.attention_rnn.weight_hh", "decoder.decoder_rnn.weight_hh_l0"):
            exact = exact_gradients[name]
            assert (gradients[name] - exact).norm() < BF16_GRADIENT * exact.norm(), name


def test_fast_lstm_equals_torchs():
    torch.manual_seed(0)
    lstm = nn.LSTM(5, 7).double()
    inputs = torch.randn(11, 3, 5, **DOUBLE)
    weights = torch.randn(11, 3, 7, dtype=torch.float64)
    gradients = []
    for run in (lambda: fast_lstm(inputs, lstm), lambda: lstm(inputs)[0]):
        output = run()
        targets = [inputs, *lstm.parameters()]
        gradients.append((output, *torch.autograd.grad((output * weights).sum(), targets)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_padded_characters_get_nothing():
    torch.manual_seed(0)
    _, prenet, encoder, keys, mask, drops, *_ = loop_arguments([[0, 0, 0, 1, 1]], False)
    cell = nn.LSTMCell(5, 2).double()
    shapes = ((2, 2), (2, 2, 3), (2,))
    weights = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    _, contexts, alignments = attention_loop(prenet, encoder, keys, mask, drops, cell, *weights)
    assert not alignments[..., 3:].any()
    assert torch.allclose(alignments.sum(dim=2), torch.ones(4, 1, dtype=torch.float64))
    contexts.square().sum().backward()
    assert encoder.grad[:, :3].any() and not encoder.grad[:, 3:].any()
    assert keys.grad[:, :3].any() and not keys.grad[:, 3:].any()


def test_stepped_attention_equals_the_plain_one():
    model = fast_and_plain(contrast=2.0)[0]
    mask = build_padding_mask(torch.tensor([7, 4]))
    encoder_outputs = torch.randn(2, 7, SMALL.encoder_embed_dim)
    attention = model.decoder.attention
    keys = attention.key_layer(encoder_outputs)
    attend = repeated_attention(encoder_outputs, keys, mask, *attention.folded_weights())
    query = torch.randn(2, SMALL.decoder_rnn_embed_dim)
    alignment = torch.rand(2, 7).masked_fill(mask, 0.0)
    for ours, plain in zip(
        attend(query, alignment, 2 * alignment),
        attention(encoder_outputs, keys, mask, query, alignment, 2 * alignment),
        strict=True,
    ):
        assert ours.shape == plain.shape
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


def stepped_and_plain(lstm: nn.LSTMCell) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    weights = (lstm.weight_ih, lstm.weight_hh, lstm.bias_ih, lstm.bias_hh)
    x, h, c = (
        torch.linspace(-1, 1, 3 * n, device=lstm.weight_hh.device).view(3, n) for n in (5, 7, 7)
    )
    return repeated_cell(*weights)(x, h, c), lstm(x, (h, c))


CHANGES = {
    "nothing": lambda lstm: None,
    "in place": lambda lstm: lstm.weight_ih.mul_(2.0),
    "a bias": lambda lstm: lstm.bias_hh.add_(1),
    # An average of weights is put in place like this; no tensor's version moves on.
    "data.copy_": lambda lstm: lstm.weight_ih.data.copy_(torch.rand(28, 5)),
    "data": lambda lstm: setattr(lstm.weight_hh, "data", torch.rand(28, 7)),
    "vector_to_parameters": lambda lstm: nn.utils.vector_to_parameters(
        torch.rand(28 * (5 + 7 + 1 + 1)), lstm.parameters()
    ),
}


@pytest.mark.parametrize("inference_mode", [False, True], ids=["no_grad", "inference_mode"])
def test_stepped_cells_follow_their_weights(inference_mode):
    """Blocked weights are made once, and again after any change to the weights."""
    torch.manual_seed(0)
    with torch.inference_mode() if inference_mode else torch.no_grad():
        lstm = nn.LSTMCell(5, 7)  # in inference mode, its weights have no version
        for name, change in CHANGES.items():
            change(lstm)
            for ours, plain in zip(*stepped_and_plain(lstm), strict=True):
                torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0, msg=name)
            weights = (lstm.weight_ih, lstm.weight_hh, lstm.bias_ih, lstm.bias_hh)
            assert repeated_cell(*weights) is repeated_cell(*weights), "made once"


def test_stepped_cells_follow_their_weights_to_a_gpu(monkeypatch):
    """Where a CPU's blocked weights would fail. The move leaves Parameters and their versions."""
    lstm, activated = nn.LSTMCell(5, 7), []

    def activate_cell(*args: Tensor) -> Tensor:
        activated.append("on the GPU")
        return fast_decoder.activate_cell(*args)

    with torch.no_grad():
        stepped_and_plain(lstm)
        with monkeypatch.context() as patch:  # the same tensors, now taken for a GPU's
            gpu = SimpleNamespace(activate_cell=activate_cell)
            patch.setattr(fast_steps, "load_fused", lambda device, dtype: gpu)
            patch.setattr(fast_decoder, "can_block", lambda weight: False)
            ours, plain = stepped_and_plain(lstm)
            assert activated == ["on the GPU"]
            torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)
            lstm.weight_hh.data.mul_(2.0)
        ours, plain = stepped_and_plain(lstm)  # back on the CPU
        assert len(activated) == 1
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)


def test_equal_weights_of_another_device_or_type_are_not_the_same():
    x = torch.ones(3)
    assert fast_steps._same(x, x.clone())
    assert not fast_steps._same(x, x.double()) and not fast_steps._same(x, x.to("meta"))


def test_a_model_made_in_inference_mode_speaks():
    with torch.inference_mode():
        torch.manual_seed(0)
        model = Tacotron2(SMALL).eval()
        outputs = model.infer(torch.tensor([[1, 2, 3]]), None, 5, 1.0)
    assert outputs.mels.shape == (1, 5, SMALL.num_mels) and outputs.mels.isfinite().all()
