"""Tests of dataset.py, the batches: TTSCollator, BatchSampler and their padding."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import dataset
from command_line.files import DataError
from dataset import AudioConfig, BatchSampler, TTSCollator, TTSDataset
from model import build_padding_mask
from text.tokenizer import Tokenizer
from training.checkpoints import TrainerState, enter_epoch

CONFIG = AudioConfig()


# TTSCollator


@pytest.mark.parametrize("mel_scaling", ["scaled_db", "log"])
@pytest.mark.parametrize("order", [[0, 4, 8], [8, 0, 4], [4, 8, 0]])
def test_collator_pads_in_any_order(tiny_corpus, order, mel_scaling):
    config = AudioConfig(mel_scaling=mel_scaling)
    clips = TTSDataset(tiny_corpus.train_manifest, config, Tokenizer())
    utterances = [clips[i] for i in order]
    batch = TTSCollator(config, clips.tokenizer)(utterances)
    assert batch.tokens.shape == (3, max(len(u.tokens) for u in utterances))
    assert batch.mels.shape == (3, max(len(u.mel) for u in utterances), 80)
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
        assert (batch.stop_targets[i, : n_frames - 1] == 0).all()
        assert (batch.stop_targets[i, n_frames - 1 :] == 1).all()
    assert (batch.mel_lengths < batch.mels.shape[1]).sum() == 2  # so padding was looked at


def test_two_workers_load_the_same_batches_as_none(tiny_corpus):
    clips = TTSDataset(tiny_corpus.train_manifest, CONFIG, Tokenizer())

    def load(num_workers: int) -> list:
        sampler = BatchSampler(clips.n_frames, 4, seed=1)
        collator = TTSCollator(CONFIG, clips.tokenizer)
        return list(
            DataLoader(clips, batch_sampler=sampler, collate_fn=collator, num_workers=num_workers)
        )

    alone, together = load(0), load(2)
    assert len(alone) == len(together) == 3
    for one, other in zip(alone, together, strict=True):
        assert one.paths == other.paths and one.texts == other.texts
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


# BatchSampler


def ljspeech_lengths() -> np.ndarray:
    """13,100 clips of 1.1 to 10.1 s, 6.57 s in the mean, more long than short."""
    lengths = 1.1 + 9.0 * np.random.default_rng(0).beta(2.2, 1.42, size=13_100)
    assert abs(lengths.mean() - 6.57) < 0.05
    return lengths


SIZES = st.tuples(st.integers(1, 300), st.integers(2, 40), st.integers(1, 4)).filter(
    lambda sizes: sizes[0] >= sizes[2]
)


@given(SIZES, st.booleans(), st.integers(0, 2**40), st.integers(0, 1000))
def test_every_clip_comes_once_per_epoch_in_batches_of_nearly_one_size(sizes, shuffle, seed, epoch):
    n, batch_size, num_processes = sizes
    lengths = np.random.default_rng(n).uniform(1, 10, n)
    samplers = [
        BatchSampler(lengths, batch_size, seed, epoch, num_processes, process_index, shuffle)
        for process_index in range(num_processes)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    assert len(samplers[0]) == math.ceil(n / (batch_size * num_processes))
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    n_clips = [len(batch) for batch in batches]
    assert min(n_clips) >= 1 and max(n_clips) <= batch_size
    assert max(n_clips) - min(n_clips) <= 1
    assert all(type(i) is int for batch in batches for i in batch)


@given(SIZES, st.booleans())
def test_the_shares_of_processes_make_up_the_batch_of_one_process(sizes, shuffle):
    n, batch_size, num_processes = sizes
    lengths = np.random.default_rng(n).uniform(1, 10, n)
    whole = BatchSampler(lengths, batch_size * num_processes, seed=3, epoch=2, shuffle=shuffle)
    shares = [
        BatchSampler(lengths, batch_size, 3, 2, num_processes, index, shuffle)
        for index in range(num_processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch == [i for part in parts for i in part]


@pytest.mark.parametrize("batch_size", [16, 32, 64, 128])
def test_padding_is_below_5_percent_on_a_corpus_like_ljspeech(batch_size):
    lengths = ljspeech_lengths()
    batches = list(BatchSampler(lengths, batch_size, seed=0, epoch=1))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 0.005 < 1 - lengths.sum() / padded < 0.05


def test_order_depends_on_seed_and_epoch_alone():
    lengths = ljspeech_lengths()[:500]

    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(BatchSampler(lengths, 8, seed=seed, epoch=epoch))

    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = order(1, 2)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert order(1, 2) == first
    assert order(1, 3) != first and order(2, 2) != first and order(2, 1) != first
    # The lengths decide it too, which the checksum tells apart.
    assert BatchSampler([1, 2, 3], 1).checksum == BatchSampler([1.0, 2.0, 3.0], 2).checksum
    assert BatchSampler([1, 2, 3], 1).checksum != BatchSampler([1, 3, 2], 1).checksum


def test_order_is_the_same_in_another_process():
    program = (
        "from dataset import BatchSampler\n"
        "lengths = [(i * 37 % 101) + 1 for i in range(101)]\n"
        "print(list(BatchSampler(lengths, 8, seed=5, epoch=6)))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(dataset.__file__).parent,
        env={**os.environ, "PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lengths = [(i * 37 % 101) + 1 for i in range(101)]
    assert elsewhere.strip() == str(list(BatchSampler(lengths, 8, seed=5, epoch=6)))


def test_iterating_twice_gives_the_same_batches():
    sampler = BatchSampler(range(1, 50), 4)
    assert list(sampler) == list(sampler)


def test_batches_have_other_members_and_another_order_in_another_epoch():
    lengths = ljspeech_lengths()
    one, two = (list(BatchSampler(lengths, 32, seed=0, epoch=epoch)) for epoch in (0, 1))
    same = {frozenset(batch) for batch in one} & {frozenset(batch) for batch in two}
    assert len(same) < 0.01 * len(one)
    longest_first = [lengths[batch].mean() for batch in one]
    assert np.corrcoef(longest_first, np.arange(len(one)))[0, 1] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_epoch_goes_on_after_the_clips_that_were_seen(num_processes):
    lengths = ljspeech_lengths()[:201]
    whole = BatchSampler(lengths, 8, 1, 2, num_processes, num_processes - 1)
    rest = BatchSampler(lengths, 8, 1, 0, num_processes, num_processes - 1)
    for n_batches in (0, 1, 5, 12, len(whole)):
        rest.set_epoch(2, sum(whole.batch_sizes[:n_batches]))
        assert list(rest) == list(whole)[n_batches:]
        assert rest.batch_sizes == whole.batch_sizes[n_batches:]
    with pytest.raises(DataError, match="3 of 201 clips are no whole number of batches"):
        rest.set_epoch(2, 3)


def enter(state: TrainerState, lengths, num_processes: int, batch_size: int):
    """Each process's sampler where a run in this state goes on, and the state then."""
    samplers = [
        BatchSampler(lengths, batch_size, 7, 0, num_processes, index)
        for index in range(num_processes)
    ]
    states = [enter_epoch(sampler, state) for sampler in samplers]
    assert all(other == states[0] for other in states)
    return samplers, states[0]


LEGS = st.lists(  # processes, batch size, batches taken
    st.tuples(st.integers(1, 4), st.integers(2, 12), st.integers(0, 9)), min_size=1, max_size=5
)


@settings(max_examples=40)
@given(st.integers(8, 200), LEGS)
# Back at the first size, the batches cut anew reach an end of a batch of the first order.
@example(21, [(1, 5, 1), (1, 3, 1), (1, 5, 9)])
def test_each_clip_comes_once_however_often_the_processes_of_an_epoch_change(n, legs):
    lengths = np.random.default_rng(n).uniform(1, 10, n)
    state = TrainerState(3, 0, 0, epoch_losses=[], history=[])
    seen: list[int] = []
    for num_processes, batch_size, n_batches in [*legs, (1, 5, n)]:
        try:
            samplers, state = enter(state, lengths, num_processes, batch_size)
        except DataError as error:
            assert 0 < n - len(seen) < num_processes and "left of the epoch cannot" in str(error)
            continue
        planned = [sampler.batches for sampler in samplers]
        sizes = [len(share) for shares in planned for share in shares]
        assert not sizes or (min(sizes) >= 1 and max(sizes) <= batch_size)
        for i in range(min(n_batches, len(planned[0]))):
            samplers, state = enter(state, lengths, num_processes, batch_size)
            assert [sampler.batches for sampler in samplers] == [shares[i:] for shares in planned]
            seen += [clip for sampler in samplers for clip in sampler.batches[0]]
            state = state._replace(epoch_clips=len(seen))
    order = BatchSampler(lengths, state.order_batch_size, 7, 3)
    assert seen == [clip for batch in order for clip in batch]
    assert sorted(seen) == list(range(n))


def test_without_shuffling_the_order_is_longest_first():
    lengths = [3.0, 9.0, 1.0, 9.0, 5.0]
    for epoch in (0, 1):
        batches = list(BatchSampler(lengths, 2, seed=epoch, epoch=epoch, shuffle=False))
        assert batches == [[1, 3], [4, 0], [2]]


def test_clips_of_one_length_are_batched_too():
    batches = list(BatchSampler([2.0] * 10, 4))
    assert sorted(map(len, batches)) == [3, 3, 4]


@pytest.mark.parametrize(
    ("n", "batch_size", "num_processes", "reason"),
    [
        (10, 0, 1, "--batch_size must be at least 1"),
        (0, 4, 1, "0 clips cannot be dealt"),
        (3, 4, 4, "3 clips cannot be dealt to 4 processes"),
        (5, 1, 4, "5 clips cannot be dealt to 4 processes"),
        (3, 1, 2, "3 clips cannot be dealt to 2 processes"),
    ],
)
def test_sizes_that_leave_a_process_without_a_clip_are_refused(
    n, batch_size, num_processes, reason
):
    with pytest.raises(ValueError, match=reason):
        BatchSampler([1.0] * n, batch_size, num_processes=num_processes)


# build_padding_mask


def test_padding_mask_is_true_past_each_length():
    mask = build_padding_mask(torch.tensor([2, 0, 3]))
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]
    assert build_padding_mask(torch.tensor([1]), 3).int().tolist() == [[0, 1, 1]]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 20))
def test_padding_mask_leaves_as_many_positions_as_each_length(lengths, extra):
    mask = build_padding_mask(torch.tensor(lengths), max(lengths) + extra)
    assert mask.shape == (len(lengths), max(lengths) + extra)
    assert (~mask).sum(dim=1).tolist() == lengths
    assert (mask[:, 1:] >= mask[:, :-1]).all()
