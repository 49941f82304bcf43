"""Tests of dataset.py, the batches: TTSCollator, BatchSampler and their padding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from command_line.files import DataError
from dataset import AudioConfig, BatchSampler, TTSCollator, TTSDataset
from text.tokenizer import Tokenizer


@pytest.mark.parametrize(("mel_scaling", "tail_frames"), [("scaled_db", 0), ("log", 3)])
def test_collator_pads_in_any_order(tiny_corpus, mel_scaling, tail_frames):
    config = AudioConfig(mel_scaling=mel_scaling)
    clips = TTSDataset(tiny_corpus.train_manifest, config, Tokenizer())
    utterances = [clips[i] for i in (4, 8, 0)]
    batch = TTSCollator(config, clips.tokenizer, tail_frames)(utterances)
    assert batch.tokens.shape == (3, max(len(u.tokens) for u in utterances))
    assert batch.mels.shape == (3, max(len(u.mel) for u in utterances) + tail_frames, 80)
    assert batch.tokens.dtype == batch.token_lengths.dtype == batch.mel_lengths.dtype == torch.int64
    assert batch.texts == [u.text for u in utterances]
    assert batch.paths == [u.path for u in utterances]
    for i, utterance in enumerate(utterances):
        n_tokens, n_frames = len(utterance.tokens), len(utterance.mel)
        assert (batch.token_lengths[i], batch.mel_lengths[i]) == (n_tokens, n_frames)
        assert torch.equal(batch.tokens[i, :n_tokens], utterance.tokens)
        assert torch.equal(batch.mels[i, :n_frames], utterance.mel)
        assert (batch.tokens[i, n_tokens:] == 0).all()
        assert (batch.mels[i, n_frames:] == torch.tensor(config.silence)).all()
        assert batch.stop_targets[i].tolist() == [
            float(frame >= n_frames - 1) for frame in range(batch.mels.shape[1])
        ]


def ljspeech_lengths() -> np.ndarray:
    """13,100 clips of 1.1 to 10.1 s, 6.57 s in the mean, more long than short."""
    lengths = 1.1 + 9.0 * np.random.default_rng(0).beta(2.2, 1.42, size=13_100)
    assert abs(lengths.mean() - 6.57) < 0.05
    return lengths


SIZES = st.tuples(st.integers(1, 300), st.integers(2, 40), st.integers(1, 4)).filter(
    lambda sizes: sizes[0] >= sizes[2]
)


@given(SIZES, st.booleans(), st.integers(0, 2**40), st.integers(0, 1000))
def test_every_clip_comes_once_per_epoch_in_batches_that_processes_share(
    sizes, shuffle, seed, epoch
):
    """Each process gets each of a batch's shares in turn, the one of the longest clips too."""
    n, batch_size, n_processes = sizes
    lengths = np.random.default_rng(n).uniform(1, 10, n)
    whole = BatchSampler(lengths, batch_size * n_processes, seed, epoch, shuffle=shuffle)
    shares = [
        BatchSampler(lengths, batch_size, seed, epoch, n_processes, process, shuffle)
        for process in range(n_processes)
    ]
    assert sorted(i for batch in whole for i in batch) == list(range(n))
    n_batches = math.ceil(n / (batch_size * n_processes))
    assert [len(sampler) for sampler in (whole, *shares)] == [n_batches] * (1 + n_processes)
    n_clips = []
    for i, (batch, *parts) in enumerate(zip(whole, *shares, strict=True)):
        in_order = [parts[(share - i) % n_processes] for share in range(n_processes)]
        assert batch == [clip for part in in_order for clip in part]
        assert all(type(clip) is int for clip in batch)
        n_clips += map(len, parts)
    assert min(n_clips) >= 1 and max(n_clips) <= batch_size and max(n_clips) - min(n_clips) <= 1


@pytest.mark.parametrize("batch_size", [16, 128])
def test_padding_is_below_5_percent_on_a_corpus_like_ljspeech(batch_size):
    lengths = ljspeech_lengths()
    batches = list(BatchSampler(lengths, batch_size, seed=0, epoch=1))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 0.005 < 1 - lengths.sum() / padded < 0.05


def test_order_depends_on_seed_epoch_and_lengths_alone():
    lengths = ljspeech_lengths()

    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(BatchSampler(lengths, 32, seed=seed, epoch=epoch))

    first = order(0, 1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert order(0, 1) == first
    for other in (order(0, 0), order(1, 1)):  # other members, in another order
        same = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in other}
        assert len(same) < 0.01 * len(first)
    means = [lengths[batch].mean() for batch in first]
    assert np.corrcoef(means, np.arange(len(means)))[0, 1] == pytest.approx(0, abs=0.2)
    assert BatchSampler([1, 2, 3], 1).checksum == BatchSampler([1.0, 2.0, 3.0], 2).checksum
    assert BatchSampler([1, 2, 3], 1).checksum != BatchSampler([1, 3, 2], 1).checksum


@pytest.mark.parametrize("n_processes", [1, 2])
def test_an_epoch_goes_on_after_the_batches_that_were_seen(n_processes):
    lengths = ljspeech_lengths()[:201]
    whole, rest = (
        BatchSampler(lengths, 8, 1, epoch, n_processes, n_processes - 1) for epoch in (2, 0)
    )
    for n_seen in (0, 1, 5, 12, len(whole)):
        rest.set_epoch(2, n_seen)
        assert list(rest) == list(rest) == list(whole)[n_seen:]
        assert len(rest) == len(whole), "of the whole epoch"


def test_the_first_epochs_go_from_short_to_long_and_validation_from_long_to_short():
    lengths = [3.0, 9.0, 1.0, 9.0, 5.0, 7.0]
    sampler = BatchSampler(lengths, 2, short_first_epochs=1)
    assert [sorted(batch) for batch in sampler] == [[0, 2], [4, 5], [1, 3]]
    orders = {
        tuple(map(tuple, BatchSampler(lengths, 2, 0, n, short_first_epochs=1))) for n in (1, 2, 3)
    }
    assert len(orders) > 1, "shuffled from then on"
    for epoch in (0, 1):
        assert list(BatchSampler(lengths, 2, 0, epoch, shuffle=False)) == [[1, 3], [5, 4], [0, 2]]


@pytest.mark.parametrize(
    ("n", "batch_size", "n_processes", "reason"),
    [
        (10, 0, 1, "--batch_size must be at least 1"),
        (3, 4, 4, "3 clips cannot be shared by 4 processes"),
        (5, 1, 4, "5 clips cannot be shared by 4 processes"),  # the second batch of one clip
    ],
)
def test_sizes_that_leave_a_process_without_a_clip_are_refused(n, batch_size, n_processes, reason):
    with pytest.raises((ValueError, DataError), match=reason):
        BatchSampler([1.0] * n, batch_size, num_processes=n_processes)
