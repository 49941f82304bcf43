"""Tests of prep_splits.py: --trim_db, and that a failure leaves what was there as it was."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import prep_splits
from test_prep_splits import RATE, add_row, fail, ids, listing, make_corpus, run

# ---- whole or not at all ----


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_failed_write_leaves_what_was_there(tmp_path, capsys, monkeypatch, broken, nth):
    corpus = make_corpus(tmp_path / "lj", 20)
    run(corpus, tmp_path / "old")
    before = {path: (tmp_path / "old" / path).read_bytes() for path in listing(tmp_path / "old")}
    works, calls = getattr(os, broken), []

    def breaks(*args):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")
        return works(*args)

    for folder, content in (("old", before), ("new", None)):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(prep_splits.os, broken, breaks)
            flags = ("--path_to_save", tmp_path / folder, "--seed", 1, "--test_split_pct", 0.4)
            assert "No space left" in fail(capsys, "--path_to_ljspech", corpus, *flags)
        assert len(calls) == nth
        if content is None:
            assert not (tmp_path / folder).exists()
        else:
            assert listing(tmp_path / folder) == sorted(before)
            assert all((tmp_path / folder / path).read_bytes() == content[path] for path in before)


# ---- trimming ----


def make_quiet_edges(corpus: Path, name: str, seconds: float, peak: int = 32768) -> np.ndarray:
    """A clip of that much noise between parts of 0.2 s at -30 dB and of 1 s at -50 dB."""
    rng = np.random.default_rng(0)
    parts = ((1.0, -50), (0.2, -30), (seconds, 0), (0.2, -30), (1.0, -50))
    parts = [rng.uniform(-1, 1, round(length * RATE)) * 10 ** (db / 20) for length, db in parts]
    samples = (peak * np.concatenate(parts)).astype(np.int16)
    soundfile.write(corpus / "wavs" / f"{name}.wav", samples, RATE)
    add_row(corpus, f"{name}|raw|text of {name}")
    return samples


def make_not_finite(corpus: Path) -> None:
    """A clip with a fine header whose samples librosa refuses."""
    samples = np.full(RATE, np.nan, dtype=np.float32)
    soundfile.write(corpus / "wavs/nan.wav", samples, RATE, subtype="FLOAT")
    add_row(corpus, "nan|raw|text")


def test_trimming_writes_copies_and_comes_before_the_limits(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 3)
    samples = make_quiet_edges(corpus, "edges", 1.0)  # 3.4 s, of which less than 2 s stay
    make_quiet_edges(corpus, "faint", 1.0, peak=1500)
    make_quiet_edges(corpus, "long", 3.0)  # more than 2 s, even trimmed
    make_not_finite(corpus)
    before = {path: path.read_bytes() for path in (corpus / "wavs").iterdir()}
    flags = ("--trim_db", "40", "--max_seconds", "2", "--skip_bad")
    both = pd.concat(run(corpus, tmp_path / "out", *flags).values())

    assert {path: path.read_bytes() for path in (corpus / "wavs").iterdir()} == before
    assert sorted(ids(both)) == ["clip0", "clip1", "clip2", "edges", "faint"]
    assert listing(tmp_path / "out/trimmed_wavs") == [f"{name}.wav" for name in sorted(ids(both))]
    assert not [name for name in listing(tmp_path / "out") if name.startswith(".")]
    for row in both.itertuples():
        info = soundfile.info(row.file_path)
        assert Path(row.file_path).parent == tmp_path / "out/trimmed_wavs"
        assert (info.subtype, info.samplerate) == ("PCM_16", RATE)
        assert row.duration == pytest.approx(info.frames / RATE, abs=1e-6)
    kept, _ = soundfile.read(tmp_path / "out/trimmed_wavs/edges.wav", dtype="int16")
    assert 1.4 * RATE <= len(kept) < 2 * RATE
    faint = soundfile.info(tmp_path / "out/trimmed_wavs/faint.wav").frames
    assert faint == pytest.approx(len(kept), abs=1024), "dB are below the clip's own peak"
    windows = np.lib.stride_tricks.sliding_window_view(samples, len(kept))
    assert (windows == kept).all(axis=1).any(), "the kept samples must be the original's"
    said = capsys.readouterr()
    assert "line 7: 'nan': NaN or infinite samples" in said.err
    assert "Bad rows left out: 1\n" in said.out and "--max_seconds: 1\n" in said.out


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("broken", ["trim", "manifest"])
def test_failure_while_or_after_trimming_leaves_no_half_wav(
    tmp_path, capsys, monkeypatch, fresh, broken
):
    corpus = make_corpus(tmp_path / "lj", 3)
    if not fresh:
        (tmp_path / "out/trimmed_wavs").mkdir(parents=True)
        for i in range(3):
            (tmp_path / f"out/trimmed_wavs/clip{i}.wav").write_text("of an earlier run")
    before = listing(tmp_path)

    def half_trim(clip, scratch, trimmed, trim_db):
        (scratch / f"{clip.clip_id}.wav").write_text("half a wav")
        if broken == "trim" and clip.clip_id == "clip1":
            return clip._replace(problem="trimming failed: disk full")
        return clip._replace(path=trimmed / f"{clip.clip_id}.wav")

    def no_manifest(*args):
        raise OSError(28, "No space left on device")

    # Threads spare this test the seconds that new processes take to start.
    monkeypatch.setattr(prep_splits, "ProcessPoolExecutor", lambda n, *_: ThreadPoolExecutor(n))
    monkeypatch.setattr(prep_splits, "trim_clip", half_trim)
    if broken == "manifest":
        monkeypatch.setattr(prep_splits, "write_manifests", no_manifest)
    flags = ("--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out", "--trim_db", 40)
    said = fail(capsys, *flags)
    assert ("line 2: 'clip1': trimming failed" if broken == "trim" else "No space") in said
    assert listing(tmp_path) == before
    if not fresh and broken == "trim":
        wavs = (tmp_path / "out/trimmed_wavs").iterdir()
        assert {wav.read_text() for wav in wavs} == {"of an earlier run"}


def test_trimming_never_writes_into_the_corpus(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/trimmed_wavs").symlink_to(corpus / "wavs")
    flags = ("--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out", "--trim_db", 40)
    assert "corpus' own wavs folder" in fail(capsys, *flags)
