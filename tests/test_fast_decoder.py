"""The fast decoder: gradients against finite differences, all numbers against model.py's loops."""

import copy
import inspect
import textwrap
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import model as model_module
from fast.decoder import (
    FastDecoder,
    KnownDropout,
    find_difference,
    prepare_cell,
    speed_up,
)
from fast.loops import AttentionLoop, fast_lstm
from fast.postnet import CLIPS_AT_ONCE, ChunkedPostNet
from model import (
    Decoder,
    LocationSensitiveAttention,
    PostNet,
    Tacotron2,
    Tacotron2Config,
    build_padding_mask,
)

SMALL = Tacotron2Config(
    vocab_size=20, num_mels=10, character_embed_dim=24, encoder_embed_dim=24,
    decoder_rnn_embed_dim=32, decoder_prenet_dim=16, decoder_postnet_n_filters=16,
    attention_dim=12, attention_location_n_filters=6, attention_location_kernel_size=7,
    attention_dropout_p=0.4,
)  # fmt: skip
DOUBLE = {"dtype": torch.float64, "requires_grad": True}


def loop_arguments(padding: list[list[int]], with_dropout: bool) -> list[Tensor | None]:
    """Make tiny arguments of AttentionLoop in double precision."""
    torch.manual_seed(0)
    n_frames, prenet, encoder, hidden, attention, kernel = 4, 2, 3, 2, 2, 3
    mask = torch.tensor(padding, dtype=torch.bool)
    batch_size, n_text = mask.shape
    sequences = ((n_frames, batch_size, prenet), (batch_size, n_text, encoder))
    weights = ((4 * hidden, prenet + encoder), (4 * hidden, hidden), (4 * hidden,))
    weights += ((attention, hidden), (attention, 2, kernel), (attention,))
    drops = None
    if with_dropout:
        drops = torch.randint(0, 2, (n_frames, batch_size, hidden)).double() / 0.6
        assert 0 < drops.count_nonzero() < drops.numel()
    return [
        False,
        *(torch.randn(*shape, **DOUBLE) for shape in sequences),
        torch.randn(batch_size, n_text, attention, **DOUBLE),
        mask,
        drops,
        *(torch.randn(*shape, **DOUBLE) for shape in weights),
    ]


@pytest.mark.parametrize(
    ("padding", "with_dropout"),
    [([[0, 0, 0, 1, 1]], False), ([[0, 0, 0], [0, 0, 1], [0, 1, 1]], True)],
    ids=["one", "several"],
)
def test_loop_gradients_in_double_precision(padding, with_dropout):
    assert torch.autograd.gradcheck(AttentionLoop.apply, loop_arguments(padding, with_dropout))


def make_batch(lengths: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Make tokens, token_lengths, mels and mel_lengths of clips of (characters, frames)."""
    torch.manual_seed(3)
    token_lengths, mel_lengths = map(torch.tensor, zip(*lengths, strict=True))
    tokens = torch.randint(1, SMALL.vocab_size, (len(lengths), int(token_lengths.max())))
    mels = torch.randn(len(lengths), int(mel_lengths.max()), SMALL.num_mels)
    tokens = tokens.masked_fill(build_padding_mask(token_lengths), 0)
    mels = mels.masked_fill(build_padding_mask(mel_lengths)[:, :, None], -4.0)
    return tokens, token_lengths, mels, mel_lengths


def train_step(model: Tacotron2, batch: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
    """Compute outputs, and gradients of their random projection; dropout is a known factor."""
    model.train().zero_grad()
    with KnownDropout():
        output = model(*batch)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(part.shape, generator=generator) for part in output]
    sum((part * w).mean() for part, w in zip(output, weights, strict=True)).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {name: part.detach() for name, part in output._asdict().items()} | gradients


def fast_and_plain(contrast: float = 1.0, **sizes: int) -> tuple[Tacotron2, Tacotron2]:
    """Build both decoders with the same weights; more contrast makes more pointed alignments."""
    torch.manual_seed(0)
    plain = Tacotron2(replace(SMALL, **sizes))
    with torch.no_grad():
        plain.decoder.attention.v.weight.mul_(contrast)
        for module in plain.postnet.modules():
            if isinstance(module, nn.BatchNorm1d):  # in train mode it enlarges rounding errors
                module.weight.fill_(0.3)
    fast = copy.deepcopy(plain)
    return speed_up(fast), plain


@pytest.mark.parametrize(
    "lengths", [[(9, 17), (4, 21), (7, 2)], [(1, 3), (5, 1)]], ids=["mixed", "shortest"]
)
@pytest.mark.parametrize("frames_per_step", [1, 3])
def test_fast_equals_plain(lengths, frames_per_step):
    """Outputs and every gradient, with dropout as a known factor of each channel."""
    tokens, token_lengths, mels, mel_lengths = make_batch(lengths)
    batch = tokens, token_lengths, mels.double(), mel_lengths
    fast, plain = (model.double() for model in fast_and_plain(8.0, frames_per_step=frames_per_step))
    assert type(fast.decoder) is FastDecoder and type(plain.decoder) is Decoder
    for seed in range(2):
        ours, expected = (train_step(model, batch, seed) for model in (fast, plain))
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


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
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


CHANGES = {
    "nothing": lambda lstm: None,
    "a bias": lambda lstm: lstm.bias_hh.add_(1),
    "data": lambda lstm: setattr(lstm.weight_hh, "data", torch.rand(28, 7)),
}


@pytest.mark.parametrize("inference_mode", [False, True], ids=["no_grad", "inference_mode"])
def test_stepped_cells_follow_their_weights(inference_mode):
    """Blocked weights are made once, and again after any change to the weights."""
    torch.manual_seed(0)
    with torch.inference_mode() if inference_mode else torch.no_grad():
        lstm = nn.LSTMCell(5, 7)  # in inference mode, its weights have no version
        x, h, c = (torch.linspace(-1, 1, 3 * n).view(3, n) for n in (5, 7, 7))
        for name, change in CHANGES.items():
            change(lstm)
            ours = prepare_cell(lstm)(x, h, c)
            torch.testing.assert_close(ours, lstm(x, (h, c)), atol=1e-6, rtol=0, msg=name)
            assert prepare_cell(lstm) is prepare_cell(lstm), "made once"


def test_the_postnet_gives_the_same_numbers_in_chunks():
    """More clips than a chunk, of different lengths; training still sees the whole batch."""
    fast, plain = fast_and_plain()
    assert (type(fast.postnet), type(plain.postnet)) == (ChunkedPostNet, PostNet)
    n_clips = 2 * CLIPS_AT_ONCE + 1
    mels = torch.randn(n_clips, 30, SMALL.num_mels)
    mask = build_padding_mask(torch.arange(n_clips) + 30 - n_clips + 1)
    for mode in (True, False):  # training first moves the statistics of both
        with torch.no_grad(), KnownDropout():
            ours, expected = (model.train(mode).postnet(mels, mask) for model in (fast, plain))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    sizes = []
    fast.postnet.convolutions[0].register_forward_hook(lambda _, args, __: sizes.append(len(*args)))
    with torch.no_grad():
        fast.postnet(mels, mask)
    fast.postnet(mels, mask)
    assert sizes == [CLIPS_AT_ONCE, CLIPS_AT_ONCE, 1, n_clips], "with a gradient, all at once"


def changed(name: str, text: str, replacement: str):
    """Change the source of a method of model.py; return what monkeypatch.setattr takes."""
    owner, method = {
        "step": (Decoder, "step"),
        "attention": (LocationSensitiveAttention, "forward"),
    }[name]
    source = inspect.getsource(getattr(owner, method))
    assert source.count(text) == 1
    namespace: dict = {}
    exec(textwrap.dedent(source.replace(text, replacement)), vars(model_module), namespace)
    return owner, method, namespace[method]


SUM = "state.cumulative_alignment + alignment"
EDITS = {  # which method, what is replaced, by what
    "sharper softmax": ("attention", "F.softmax(energies", "F.softmax(1.01 * energies"),
    "another rate of dropout": ("step", "attention_dropout_p", "decoder_dropout_p"),
    "no gradient through the sum": ("step", SUM, f"{SUM}.detach()"),
    "a part that is gone": ("step", "self.stop_projection(output)", "self.stop(output)"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_model_py_is_noticed(monkeypatch, capsys, edit):
    """The plain loops run, and one line says why."""
    monkeypatch.setattr(*changed(*EDITS[edit]))
    model = speed_up(Tacotron2(SMALL))
    assert type(model.decoder) is Decoder
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fast/decoder.py does not fit this model: ")
    assert "--no-fast_decoder" in line


def test_a_part_that_is_not_model_pys_is_named():
    hooked, replaced = (Tacotron2(SMALL).decoder for _ in range(2))
    hooked.attention.register_forward_hook(lambda *_: None)
    assert "decoder.attention has a hook" in find_difference(hooked)
    replaced.attention.v = nn.Sequential(nn.Linear(SMALL.attention_dim, 1))
    assert "decoder.attention.v is a Sequential" in find_difference(replaced)
    other = type("OtherDecoder", (Decoder,), {})(SMALL)
    assert "its decoder is a OtherDecoder" in find_difference(other)


def test_speed_up_changes_nothing_but_decoder_and_postnet():
    """Weights, their order and names, the mode, and the random numbers of training."""
    model = Tacotron2(SMALL).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters, random_state = list(model.parameters()), torch.get_rng_state()
    assert speed_up(model) is model and type(model.decoder) is FastDecoder
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
