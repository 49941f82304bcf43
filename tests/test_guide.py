"""What free running is held to: the window, the end, and dropout that is each item's own."""

import sys
from types import SimpleNamespace

import pytest
import torch

import fast.decoder as fast_decoder
from fast.decoder import speed_up
from model import Tacotron2, Tacotron2Config
from speech.guide import Acted, Guide, Rules, running_length
from test_model import BOTH_DECODERS
from test_synthesize import SMALL

HOP_SECONDS = 0.05  # a grace of 5 frames, a rest of 10
LENGTHS = torch.tensor([30, 7, 1])
TOKENS = torch.randint(1, 40, (3, 30), generator=torch.Generator().manual_seed(0))


def make_model(fast: bool = True) -> Tacotron2:
    """One that never says stop, whose attention jumps about."""
    torch.manual_seed(1)
    model = Tacotron2(Tacotron2Config(**SMALL)).eval()
    with torch.no_grad():
        model.decoder.stop_projection.bias.fill_(-100.0)
        model.decoder.attention.v.weight.mul_(30.0)
    return speed_up(model) if fast else model


def run(model, rules=Rules(), seeds=(5, 5, 6), items=slice(None), n_steps=40):  # noqa: B008
    lengths = LENGTHS[items]
    guide = Guide(model.config, lengths, rules, HOP_SECONDS, seeds[items])
    tokens = TOKENS[items, : int(lengths.max())]
    return model.infer(tokens, lengths, n_steps, guide=guide), guide


@BOTH_DECODERS
def test_a_guide_without_rules_changes_nothing(fast_decoder):
    model = make_model(fast_decoder)
    torch.manual_seed(3)
    expected = model.infer(TOKENS, LENGTHS, 20)
    torch.manual_seed(3)
    output, _ = run(model, seeds=(), n_steps=20)
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))


@BOTH_DECODERS
def test_attention_stays_in_its_window(fast_decoder):
    """Of each item by itself, about its own last arg-max; without a window it goes further."""

    def moves(rules):
        alignments = run(make_model(fast_decoder), rules)[0].alignments
        return alignments, alignments.argmax(dim=2).diff(dim=1, prepend=torch.zeros(3, 1).long())

    alignments, steps = moves(Rules(attention_window=(1, 3)))
    assert steps.min() == -1 and steps[:2].amax(dim=1).max() == 3
    last = alignments.argmax(dim=2)[:, :-1, None]
    places = torch.arange(30)
    outside = (places < last - 1) | (places > last + 3)
    assert alignments[:, 1:][outside].abs().max() == 0
    assert alignments.sum(dim=2).sub(1).abs().max() < 1e-5
    free = moves(Rules())[1]
    assert free.min() < -1 and free.max() > 3


@BOTH_DECODERS
def test_an_item_is_the_same_alone_and_in_a_batch(fast_decoder):
    model = make_model(fast_decoder)
    together, _ = run(model)
    for i in range(3):
        alone, _ = run(model, items=slice(i, i + 1))
        torch.testing.assert_close(alone.mels[0], together.mels[i], atol=1e-5, rtol=1e-5)
    other, _ = run(model, seeds=(5, 8, 6))
    difference = (other.mels - together.mels).abs().amax(dim=(1, 2))
    assert difference[1] > 1e-3 and difference[[0, 2]].max() < 1e-5


@pytest.mark.parametrize(("items", "n_frames"), [(slice(None), 37), (slice(2, 3), 10)])
def test_frames_in_chunks_are_those_one_by_one(monkeypatch, items, n_frames):
    """As on a GPU, several between two looks at the stop token; the CUDA graph is left out.

    The item of one character ends at rest after 10 frames, the others at the limit.
    """
    model, rules = make_model(), Rules(attention_window=(2, 4), careful_stop=True)
    expected, one_by_one = run(model, rules, items=items, n_steps=37)
    assert expected.alignments.shape[1] == n_frames and expected.mel_lengths[-1] == 10
    calls = []
    stub = SimpleNamespace(capture=lambda run, carry: calls.append(1) or run)
    monkeypatch.setitem(sys.modules, "fast_gpu", stub)
    monkeypatch.setitem(fast_decoder.STEPS_AT_ONCE, "cpu", 8)
    output, chunked = run(model, rules, items=items, n_steps=37)
    assert calls == [1] and expected.mel_lengths.tolist() == output.mel_lengths.tolist()
    for ours, theirs in zip(output, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert one_by_one.acted(output.mel_lengths) == chunked.acted(output.mel_lengths)


def test_plain_and_fast_agree():
    rules = Rules(attention_window=(1, 3), careful_stop=True)
    outputs = [run(make_model(fast), rules, n_steps=15)[0] for fast in (False, True)]
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_dropout_is_of_the_models_rate():
    config = Tacotron2Config(decoder_prenet_dim=100, decoder_prenet_dropout_p=0.2)
    guide = Guide(config, torch.tensor([3, 3, 3]), Rules(), HOP_SECONDS, [1, 1, 2])
    drops = torch.cat([guide.draw(8) for _ in range(20)])  # (160, 2, 3, 100)
    assert drops.shape == (160, 2, 3, 100)
    assert set(drops.unique().tolist()) == {0.0, 1.25}
    assert drops.mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(drops[:, :, 0], drops[:, :, 1])
    assert not torch.equal(drops[:, :, 0], drops[:, :, 2])
    assert not torch.equal(drops[:, 0], drops[:, 1]) and not torch.equal(drops[0], drops[64])
    again = Guide(config, torch.tensor([3]), Rules(), HOP_SECONDS, [2])
    assert all(torch.equal(again.draw(), drops[t, :, 2:]) for t in range(160))


def test_running_length():
    x = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1]]).bool()
    assert running_length(x, torch.tensor([4, 7])).tolist() == [
        [5, 6, 0, 1, 2, 3],
        [0, 0, 1, 2, 0, 1],
    ]


MIDDLE, LAST, END = 5, 12, 14  # characters of a text of 15
CAREFUL = [  # (position, does the stop token fire) in frames, the end, and what acted
    ([(MIDDLE, False)] * 3 + [(LAST, False), (LAST, True)], 4, Acted(0, False, False, 0)),
    ([(MIDDLE, True)] * 2 + [(LAST, False)] * 3 + [(LAST, True)], 5, Acted(2, False, False, 0)),
    ([(MIDDLE, True), (MIDDLE, False)] * 10, 8, Acted(4, True, False, 0)),
    ([(END, False)] * 9 + [(LAST, False)] + [(END, False)] * 12, 19, Acted(0, False, True, 0)),
    ([(LAST, False)] + [(MIDDLE, False)] * 4 + [(MIDDLE, True)], 5, Acted(0, False, False, 0)),
    ([(LAST - 1, True)] * 4, None, Acted(4, False, False, 0)),
]


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(("frames", "end", "acted"), CAREFUL)
def test_the_careful_stop(frames, end, acted, chunk):
    """Beside an item whose stop token always fires, at its last character."""
    positions = torch.tensor([[where for where, _ in frames], [2] * len(frames)])
    logits = torch.tensor([[9.0 if fires else -9.0 for _, fires in frames], [9.0] * len(frames)])
    alignments = torch.nn.functional.one_hot(positions, 15).float()
    guide = Guide(Tacotron2Config(), torch.tensor([15, 3]), Rules(careful_stop=True), HOP_SECONDS)
    for t in range(0, len(frames), chunk):
        guide.ends(logits[:, t : t + chunk], alignments[:, t : t + chunk])
    ends = guide.all_ends()
    assert ends[1].all() and ends[0].any() == (end is not None)
    n_frames = len(frames) if end is None else int(ends[0].int().argmax()) + 1
    assert end in (None, n_frames - 1)
    found = guide.acted(torch.tensor([n_frames, 1]))
    if end is None:
        acted = acted._replace(waited=3)  # the last frame is not one that it waited after
    assert found == [acted, Acted(0, False, False, 0)]
