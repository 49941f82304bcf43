"""Each of the five dropouts by itself: its rate, its place, and the modes in which it is on.

The weights are set so that every number of the model can be followed by hand: linear layers and
convolutions are the identity, batch norms add SHIFT, LSTMs have open input and output gates and a
closed forget gate, and all characters get the same attention. Without dropout all clips and all
channels are equal. With it each number is one draw from a distribution that is worked out below.
"""

import math
from collections import defaultdict
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from fast.decoder import speed_up
from model import Tacotron2, Tacotron2Config
from test_model import BOTH_DECODERS, make_batch, make_model

Distribution = dict[float, float]  # value -> probability
WIDTH, N_ITEMS = 64, 64  # so 4096 draws
SHIFT = 0.5  # of the batch norms and of the attention LSTM's input
DROPOUTS = {
    "encoder_dropout_p": 0.3,
    "decoder_prenet_dropout_p": 0.4,
    "attention_dropout_p": 0.25,
    "decoder_dropout_p": 0.35,
    "decoder_postnet_dropout_p": 0.45,
}


def identity_(weight: Tensor) -> None:
    """Set a weight to the identity, 0 beyond it; of convolutions of width 1 too."""
    weight.zero_()
    weight.flatten(1).fill_diagonal_(1.0)


def open_lstm_(lstm: nn.LSTM | nn.LSTMCell, shift: float, recurrent: float) -> None:
    """Make an LSTM compute squash(input + shift + recurrent * its output of the frame before)."""
    for name, weight in lstm.named_parameters():
        input_gate, forget_gate, cell_gate, output_gate = weight.zero_().chunk(4)
        if name.startswith("weight_ih"):  # the reverse direction, if any, reads the second half
            first = len(cell_gate) if name.endswith("_reverse") else 0
            cell_gate[:, first:].fill_diagonal_(1.0)
        elif name.startswith("weight_hh"):
            cell_gate.fill_diagonal_(recurrent)
        elif name.startswith("bias_ih"):
            for gate, value in ((input_gate, 1e3), (forget_gate, -1e3), (output_gate, 1e3)):
                gate.fill_(value)
            cell_gate.fill_(shift)


def transparent_model(fast_decoder: bool, **dropouts: float) -> Tacotron2:
    """Build a model whose mel bins [:WIDTH] are the decoder LSTM's output, [WIDTH:] the context."""
    sizes = ["character_embed_dim", "encoder_embed_dim", "decoder_rnn_embed_dim"]
    sizes += ["decoder_prenet_dim", "decoder_postnet_n_filters", "attention_dim"]
    widths = {**dict.fromkeys(sizes, WIDTH), "num_mels": 2 * WIDTH}
    kernels = {"encoder_kernel_size": 1, "decoder_postnet_kernel_size": 1}
    rates = {**dict.fromkeys(DROPOUTS, 0.0), **dropouts}
    config = Tacotron2Config(**widths, **kernels, **rates)
    model = Tacotron2(config).double()
    model = speed_up(model) if fast_decoder else model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                identity_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm1d):
                module.running_var.fill_(1.0 - module.eps)
                module.bias.fill_(SHIFT)
        model.encoder.embedding.weight.fill_(1.0)
        open_lstm_(model.encoder.lstm, 0.0, 0.0)
        open_lstm_(model.decoder.attention_rnn, SHIFT, 1.0)
        open_lstm_(model.decoder.decoder_rnn, 0.0, 1.0)
        model.decoder.attention.v.weight.zero_()
        model.decoder.stop_projection.weight.zero_()
    return model


def combine(function, *parts: Distribution) -> Distribution:
    """Compute the distribution of a function of independent draws."""
    result: Distribution = defaultdict(float)
    for draws in product(*(part.items() for part in parts)):
        values, probabilities = zip(*draws, strict=True)
        result[round(function(*values), 9)] += math.prod(probabilities)
    return result


def drop(values: Distribution, p: float) -> Distribution:
    scales = {0.0: p, 1.0 / (1.0 - p): 1.0 - p} if p else {1.0: 1.0}
    return combine(float.__mul__, values, scales)


def squash(x: float, before: float = 0.0) -> float:
    return math.tanh(math.tanh(x + before))


def add_postnet(mels: Distribution, p: float) -> Distribution:
    """Add to the mel: four times tanh(x + SHIFT) with dropout, then x + SHIFT with dropout."""
    result: Distribution = defaultdict(float)
    for mel, probability in mels.items():
        x = {mel: 1.0}
        for _ in range(4):
            x = drop(combine(lambda x: math.tanh(x + SHIFT), x), p)
        x = drop(combine(lambda x: x + SHIFT, x), p)
        for value, share in combine(lambda x, mel=mel: mel + x, x).items():
            result[value] += probability * share
    return result


def expected_mels(frame: float, **dropouts: float) -> list[tuple[Distribution, Distribution]]:
    """Compute the distributions of frames 0 and 1, of bins [:WIDTH] and [WIDTH:].

    `frame` is the number in all bins of the frame that the prenet reads before frame 1.
    """
    p = {**dict.fromkeys(DROPOUTS, 0.0), **dropouts}
    text = {1.0: 1.0}
    for _ in range(3):
        text = drop(combine(lambda x: max(0.0, x + SHIFT), text), p["encoder_dropout_p"])
    text = combine(squash, text)
    context = combine(lambda x, y: (x + y) / 2, text, text)  # of two characters
    prenet = {frame: 1.0}
    for _ in range(2):
        prenet = drop(prenet, p["decoder_prenet_dropout_p"])
    first = {squash(SHIFT): 1.0}
    hidden = [first, combine(lambda x, h: squash(x + SHIFT, h), prenet, first)]
    before, frames = {0.0: 1.0}, []
    for h in hidden:
        before = combine(squash, drop(h, p["attention_dropout_p"]), before)
        mels = add_postnet(drop(before, p["decoder_dropout_p"]), p["decoder_postnet_dropout_p"])
        # The postnet reads the bins [:WIDTH]; to the others it adds its last batch norm's bias.
        bias = drop({SHIFT: 1.0}, p["decoder_postnet_dropout_p"])
        frames.append((mels, combine(float.__add__, context, bias)))
    return frames


def check_draws(mels: Tensor, expected: Distribution) -> None:
    """Check that mels (N_ITEMS, WIDTH) hold the expected values as often as expected."""
    assert sum(expected.values()) == pytest.approx(1.0)
    shares = {value: ((mels - value).abs() < 1e-6).double().mean() for value in expected}
    assert sum(shares.values()) == pytest.approx(1.0), "another value than these was drawn"
    for value, probability in expected.items():
        sigma = math.sqrt(probability * (1 - probability) / mels.numel())
        assert shares[value] == pytest.approx(probability, abs=max(5 * sigma, 1e-6)), value
    if len(expected) > 1:
        assert (mels[0] != mels[1]).any() and (mels[:, 0] != mels[:, 1]).any(), "a shared draw"


TEXT = torch.ones(N_ITEMS, 2, dtype=torch.int64), torch.full((N_ITEMS,), 2)


def check_frames(mels: Tensor, expected: list[tuple[Distribution, Distribution]]) -> None:
    for t, (of_lstm, of_context) in enumerate(expected):
        check_draws(mels[:, t, :WIDTH], of_lstm)
        check_draws(mels[:, t, WIDTH:], of_context)


def forced_mels(model: Tacotron2) -> Tensor:
    """Run teacher forcing on frames of ones, with the batch norms as set above."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    torch.manual_seed(0)
    true_mels = torch.ones(N_ITEMS, 2, 2 * WIDTH, dtype=torch.float64)
    return model(*TEXT, true_mels, torch.full((N_ITEMS,), 2)).mels_after


@BOTH_DECODERS
@pytest.mark.parametrize("name", DROPOUTS)
def test_training_draws_each_dropout_at_its_place(name, fast_decoder):
    dropout = {name: DROPOUTS[name]}
    mels = forced_mels(transparent_model(fast_decoder, **dropout).train())
    check_frames(mels, expected_mels(1.0, **dropout))


@BOTH_DECODERS
def test_eval_mode_draws_the_prenets_dropout_alone(fast_decoder):
    """With teacher forcing and in free running, with all five rates set."""
    model = transparent_model(fast_decoder, **DROPOUTS).eval()
    prenet = {"decoder_prenet_dropout_p": DROPOUTS["decoder_prenet_dropout_p"]}
    check_frames(forced_mels(model), expected_mels(1.0, **prenet))
    mels = model.infer(*TEXT, max_decoder_steps=2).mels
    check_frames(mels, expected_mels(squash(squash(SHIFT)), **prenet))


def test_the_attention_reads_the_dropped_output():
    batch = make_batch()
    with_dropout, without = (
        make_model(fast_decoder=False, attention_dropout_p=p)(*batch).alignments for p in (0.25, 0)
    )
    differences = (with_dropout - without).abs().amax(dim=2)  # (B, T_mel)
    assert (differences[:, 0] > 1e-6).all(), "from the first frame on"
