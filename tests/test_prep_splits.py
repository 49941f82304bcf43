"""prep_splits.py: texts, manifests, the split, bad rows and trimming.

The layouts of a folder are in test_prep_splits_folders.py, --download in
test_prep_splits_download.py, --report in test_recordings_report.py.
"""

import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import prep_splits
from audio.recording import ONE_CHANNEL, SCALED_DOWN

RATE = 8000
SCRIPT = Path(prep_splits.__file__)


def write_wav(path: Path, seconds: float) -> None:
    soundfile.write(path, np.full(round(seconds * RATE), 1000, dtype=np.int16), RATE)


def make_corpus(folder: Path, n: int = 5) -> Path:
    """n clips clip0, clip1, ... of 0.10 s, 0.11 s, ... with the texts "text 0", "text 1", ..."""
    (folder / "wavs").mkdir(parents=True)
    for i in range(n):
        write_wav(folder / "wavs" / f"clip{i}.wav", 0.1 + i / 100)
    lines = [f"clip{i}|raw {i}|text {i}\n" for i in range(n)]
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8", newline="")
    return folder


def add_row(corpus: Path, row: str) -> None:
    with open(corpus / "metadata.csv", "a", encoding="utf-8", newline="") as file:
        file.write(row + "\n")


def run(corpus: Path, save: Path, *flags: str) -> dict[str, pd.DataFrame]:
    """Run main and return the manifests as the training code reads them."""
    prep_splits.main(["--path_to_ljspech", str(corpus), "--path_to_save", str(save), *flags])
    return read_manifests(save)


def read_manifests(save: Path) -> dict[str, pd.DataFrame]:
    return {
        path.name.removesuffix("_metadata.csv"): pd.read_csv(path, keep_default_na=False)
        for path in sorted(save.glob("*_metadata.csv"))
    }


def fail(capsys, *argv: object) -> str:
    """Run main, expect exit code 1 and a sentence, and return all that stderr gets."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        prep_splits.main([str(arg) for arg in argv])
    assert str(stop.value.code).startswith("prep_splits.py: ")
    return capsys.readouterr().err + stop.value.code


def ids(manifest: pd.DataFrame) -> list[str]:
    return [Path(path).stem for path in manifest["file_path"]]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- texts and manifests

ODD_TEXTS = (  # separated by |
    'NA|null|nan|"|""|said "so|"all" of it|a, b, c| spaces |#1|caf\u00e9 \u201cquoted\u201d \u00a35'
    "|\u65e5\u672c\u8a9e \U0001f600|line\u2028separator|next\x85line|vertical\x0btab \x1c"
    '|lone\rreturn|\ufeffbom|back\\slash|"Opened and never closed|the last one'
)


def test_every_text_survives_byte_for_byte(tmp_path):
    """The byte order mark, the line ends of Windows and spaces around a cell are no text."""
    corpus, texts = make_corpus(tmp_path / "lj", 0), ODD_TEXTS.split("|")
    for i in range(len(texts)):
        write_wav(corpus / "wavs" / f"{i}.wav", 0.1)
    lines = "\r\n".join(f"{i}|{text}|{text}" for i, text in enumerate(texts))
    (corpus / "metadata.csv").write_bytes(f"\ufeff{lines}\r\n".encode())
    both = pd.concat(run(corpus, tmp_path / "out").values())
    found = dict(zip(map(int, ids(both)), both["normalized_transcript"], strict=True))
    assert len(texts) == 20 and found == {i: text.strip(" ") for i, text in enumerate(texts)}


def test_manifest_contents(tmp_path, monkeypatch, capsys):
    corpus = make_corpus(tmp_path / "lj", 10)
    monkeypatch.chdir(tmp_path)
    manifests = run(Path("lj"), Path("new/folders"), "--test_split_pct", "0.3")
    assert {name: len(manifest) for name, manifest in manifests.items()} == {"train": 7, "test": 3}
    for name, manifest in manifests.items():
        header = (tmp_path / f"new/folders/{name}_metadata.csv").read_text().split("\n")[0]
        assert header == "file_path,normalized_transcript,duration"
        assert list(manifest["duration"]) == sorted(manifest["duration"], reverse=True)
        for clip_id, row in zip(ids(manifest), manifest.itertuples(), strict=True):
            number = int(clip_id.removeprefix("clip"))
            assert row.file_path == str(corpus / "wavs" / f"{clip_id}.wav")
            assert row.normalized_transcript == f"text {number}"
            assert row.duration == pytest.approx(0.1 + number / 100, abs=1e-6)
    table = capsys.readouterr().out.split("\n")
    longest = f"{manifests['train']['duration'].max():.2f}"
    assert table[1].split() == ["train", "7", "0.000", str(7 * len("text 0")), longest]
    assert table[2].split()[:2] == ["test", "3"]
    # One clip is printed with its text, so that a wrong column cannot go unseen.
    shown = [row for row in manifests["train"].itertuples() if f"{row.file_path} " in table[3]]
    assert len(shown) == 1 and repr(shown[0].normalized_transcript) in table[3]


def test_characters_that_training_leaves_out_or_replaces_are_named(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 3)
    write_wav(corpus / "wavs" / "odd.wav", 0.2)
    add_row(corpus, "odd|raw|caf\u00e9 \u2603, \u65e5 and \u2603")
    run(corpus, tmp_path / "out")
    lines = [line for line in capsys.readouterr().err.split("\n") if "no symbol" in line]
    assert len(lines) == 2
    assert "left out of 1 of 4 clips: '\u2603' in 1, '\u65e5' in 1; " in lines[0]
    assert "--path_to_symbols" in lines[0]
    assert "replaced in 1 of 4 clips: '\u00e9' as 'e' in 1; " in lines[1]
    assert "--extra_symbols" in lines[1]


# ---- the split


def test_split_follows_from_seed_and_ids_alone(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 30)
    flags = ("--test_split_pct", "0.19")  # 5.7 clips of 30
    here = run(corpus, tmp_path / "here", *flags)
    names = ids(pd.concat(here.values()))
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"42:{name}".encode()).hexdigest())
    assert set(ids(here["test"])) == set(ranked[:6])

    lines = (corpus / "metadata.csv").read_text().splitlines()
    random.Random(1).shuffle(lines)
    (corpus / "metadata.csv").write_text("\n".join(lines))
    argv = ["--path_to_ljspeech", str(corpus), "--path_to_save", str(tmp_path / "there"), *flags]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, SCRIPT, *argv], check=True, env=environment, timeout=60)
    for name, manifest in read_manifests(tmp_path / "there").items():
        pd.testing.assert_frame_equal(manifest, here[name])

    other = run(corpus, tmp_path / "other", *flags, "--seed", "43")
    assert set(ids(other["test"])) != set(ids(here["test"]))


def test_no_sentence_that_is_trained_on_is_held_out(tmp_path):
    """Clips that share their words are trained on; among the others the split stays the same."""
    corpus, flags = make_corpus(tmp_path / "lj", 30), ("--test_split_pct", "0.19")
    before = ids(run(corpus, tmp_path / "before", *flags)["test"])
    repeated = [*before[:2], "clip7"]
    path = corpus / "metadata.csv"
    text = path.read_text()
    for name, words in zip(repeated, ("Go on!", "go on.", "Go, on?"), strict=True):
        text = re.sub(rf"(?m)^{name}\|.*$", f"{name}|{words}|{words}", text)
    path.write_text(text)
    found = run(corpus, tmp_path / "after", *flags)
    held_out = ids(found["test"])
    assert len(held_out) == 6 and not {*repeated} & {*held_out}
    assert {*before} - {*repeated} <= {*held_out}
    path.write_text(re.sub(r"(?m)\|.*$", "|Go on|Go on", text))
    assert {*ids(run(corpus, tmp_path / "all", *flags)["test"])} == {*before}, (
        "nothing else is there"
    )


def test_a_validation_set_leaves_the_test_set_as_it_was(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 40)
    flags = ("--test_split_pct", "0.1", "--seed", "3")
    without = run(corpus, tmp_path / "without", *flags)
    found = run(corpus, tmp_path / "with", *flags, "--val_split_pct", "0.2")
    assert {name: len(rows) for name, rows in found.items()} == {"train": 28, "val": 8, "test": 4}
    pd.testing.assert_frame_equal(found["test"], without["test"])
    assert len(set(ids(pd.concat(found.values())))) == 40
    # Without it, the clips of the old validation set would be among those to train on.
    message = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "with")
    assert "val_metadata.csv" in message and "--val_split_pct" in message


def test_too_few_clips_to_split(tmp_path, capsys):
    flags = ("--path_to_ljspech", make_corpus(tmp_path / "lj", 2), "--val_split_pct", "0.3")
    message = fail(capsys, *flags, "--path_to_save", tmp_path / "out")
    assert "--test_split_pct 0.01 and --val_split_pct 0.3 of 2" in message
    assert not (tmp_path / "out").exists()


def test_all_manifests_are_written_or_none(tmp_path, capsys, monkeypatch):
    corpus = make_corpus(tmp_path / "lj", 20)
    flags = ("--val_split_pct", "0.2", "--test_split_pct", "0.2")
    before = run(corpus, tmp_path / "old", *flags)
    works, calls = os.replace, []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return works(*args)

    monkeypatch.setattr(prep_splits.os, "replace", breaks)
    for folder in ("old", "new"):
        calls.clear()
        save = ("--path_to_save", tmp_path / folder, "--seed", 7)
        assert "No space left" in fail(capsys, "--path_to_ljspech", corpus, *save, *flags)
    after = read_manifests(tmp_path / "old")
    assert all(before[name].equals(after[name]) for name in ("train", "val", "test"))
    assert listing(tmp_path / "new") == []


# ---- bad rows


BAD_ROWS = {
    "missing": "ghost|raw|text",
    "unreadable": "noise|raw|text",
    "zero-length": "hollow|raw|text",
    "truncated": "cut|raw|text",
    "NaN or infinite": "nan|raw|text",
    "samples up to 20000": "integers|raw|text",
    "not a plain file name": "../outside|raw|text",
    "2 columns": "clip9|text",
    "4 columns": "clip9|raw|text|more",
    "duplicate id, first on line 2": "clip1|raw|text",
    "empty transcript": "clip9|raw| ",
}


def test_bad_rows_stop_the_run_or_are_left_out(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 5)
    wavs, rows = corpus / "wavs", list(BAD_ROWS.values())
    (wavs / "noise.wav").write_bytes(b"this is no audio")
    for name, seconds in (("hollow", 0), ("cut", 1), ("../outside", 1)):
        write_wav(wavs / f"{name}.wav", seconds)
    (wavs / "cut.wav").write_bytes((wavs / "cut.wav").read_bytes()[:-1000])
    soundfile.write(wavs / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    loud = 20_000 * np.sin(np.arange(RATE))
    soundfile.write(wavs / "integers.wav", loud.round(), RATE, subtype="FLOAT")
    for row in [*rows, "", "clip0|raw|a blank line is none"]:
        add_row(corpus, row)
    flags = ("--path_to_ljspech", corpus, "--path_to_save", tmp_path / "new/out")
    lines = fail(capsys, *flags).split("\n")
    for i, (reason, row) in enumerate(list(zip(BAD_ROWS, rows, strict=True))[:10]):
        assert lines[i].startswith(f"metadata.csv line {i + 6}: {row.split('|')[0]!r}: ")
        assert reason in lines[i]
    assert lines[10] == "and 2 more"
    assert "bad rows: 12; " in lines[11] and "--skip_bad" in lines[11] and len(lines) == 12
    assert not (tmp_path / "new").exists()

    both = pd.concat(run(corpus, tmp_path / "new/out", "--skip_bad").values())
    assert sorted(ids(both)) == ["clip0", "clip1", "clip2", "clip3", "clip4"]
    assert "Bad rows left out: 12\n" in capsys.readouterr().out


# ---- trimming


def make_quiet_edges(corpus: Path, name: str, seconds: float, peak: int = 32768) -> np.ndarray:
    """A clip of that much noise between parts of 0.2 s at -30 dB and of 1 s at -50 dB."""
    rng = np.random.default_rng(0)
    parts = ((1.0, -50), (0.2, -30), (seconds, 0), (0.2, -30), (1.0, -50))
    parts = [rng.uniform(-1, 1, round(length * RATE)) * 10 ** (db / 20) for length, db in parts]
    samples = (peak * np.concatenate(parts)).astype(np.int16)
    soundfile.write(corpus / "wavs" / f"{name}.wav", samples, RATE)
    add_row(corpus, f"{name}|raw|text of {name}")
    return samples


def test_trimming_writes_copies_and_comes_before_the_limits(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 3)
    samples = make_quiet_edges(corpus, "edges", 1.0)  # 3.4 s, of which less than 2 s stay
    make_quiet_edges(corpus, "faint", 1.0, peak=1500)
    make_quiet_edges(corpus, "long", 3.0)  # more than 2 s, even trimmed
    before = {path: path.read_bytes() for path in (corpus / "wavs").iterdir()}
    flags = ("--trim_db", "40", "--max_seconds", "2")
    both = pd.concat(run(corpus, tmp_path / "out", *flags).values())

    assert {path: path.read_bytes() for path in (corpus / "wavs").iterdir()} == before
    assert sorted(ids(both)) == ["clip0", "clip1", "clip2", "edges", "faint"]
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
    assert "--max_seconds: 1\n" in capsys.readouterr().out


def test_a_refused_run_leaves_the_trimmed_copies_of_before(tmp_path, capsys):
    corpus, out = make_corpus(tmp_path / "lj", 3), tmp_path / "out"
    make_quiet_edges(corpus, "edges", 1.0)
    run(corpus, out, "--trim_db", "60")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    flags = ("--path_to_ljspech", corpus, "--path_to_save", out)
    fail(capsys, *flags, "--trim_db", "10", "--max_seconds", "0.01")
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    run(corpus, out, "--trim_db", "10")
    assert (out / "trimmed_wavs/edges.wav").read_bytes() != before[out / "trimmed_wavs/edges.wav"]


def test_a_constant_offset_is_no_sound_that_keeps_the_edges(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 2)
    speech = 0.3 * np.sin(np.arange(RATE))
    samples = np.concatenate([np.zeros(RATE), speech, np.zeros(RATE)])
    for name, offset in (("plain", 0.0), ("above", 0.02), ("below", -0.05)):
        soundfile.write(corpus / f"wavs/{name}.wav", samples + offset, RATE)
        add_row(corpus, f"{name}|raw|text of {name}")
    both = pd.concat(run(corpus, tmp_path / "out", "--trim_db", "40").values())
    seconds = dict(zip(ids(both), both["duration"], strict=True))
    assert seconds["plain"] == seconds["above"] == seconds["below"] < 1.5


# ---- odd clips


def test_recordings_that_training_reads_oddly_are_counted(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 4)
    tone = np.sin(np.arange(RATE) / 5)
    soundfile.write(corpus / "wavs/clip1.wav", np.stack([tone, -tone], axis=1), RATE)
    soundfile.write(corpus / "wavs/clip2.wav", np.stack([0 * tone, tone], axis=1), RATE)
    soundfile.write(corpus / "wavs/clip3.wav", 2 * tone, RATE, subtype="FLOAT")
    run(corpus, tmp_path / "out", "--trim_db", "40")
    said = capsys.readouterr().err
    assert f"{ONE_CHANNEL}: 2 of 4 clips, first 'clip1'\n" in said
    assert f"{SCALED_DOWN}: 1 of 4 clips, first 'clip3'\n" in said
    for name in ("clip1", "clip2", "clip3"):
        trimmed, _ = soundfile.read(tmp_path / f"out/trimmed_wavs/{name}.wav")
        assert trimmed.shape == (RATE,) and np.abs(trimmed).max() > 0.99


def test_long_clips_and_texts_that_do_not_fit_are_named(tmp_path, capsys):
    """As the words "nineteen hundred ninety-nine" take their time, 1999 is no text too short."""
    corpus = make_corpus(tmp_path / "lj", 0)
    texts = {"a" + "b" * i: "just some words " * i for i in range(2, 14)}
    seconds = {name: len(text) / 14 for name, text in texts.items()}
    odd = {"short": ("yes", 9.0), "long": ("words and words " * 20, 1.0), "year": ("1999", 2.0)}
    odd |= {"hour": ("one more word " * 280, 260.0), "dumb": ("?!", 1.0)}
    for name in texts:
        write_wav(corpus / f"wavs/{name}.wav", seconds[name])
        add_row(corpus, f"{name}|raw|{texts[name]}")
    run(corpus, tmp_path / "even")
    assert capsys.readouterr().err == ""
    for name, (text, length) in odd.items():
        write_wav(corpus / f"wavs/{name}.wav", length)
        add_row(corpus, f"{name}|raw|{text}")
    run(corpus, tmp_path / "odd")
    lines = capsys.readouterr().err.splitlines()
    assert "more than 20 s" in lines[0] and lines[1].endswith("'hour': 260.0 s")
    for line, expected in zip(lines[3:], ("too short", "too long", "no letter"), strict=True):
        assert expected in line
    assert [line.split("'")[1] for line in lines[3:]] == ["short", "long", "dumb"]


@pytest.mark.parametrize(("text", "seconds"), [("no", 60), ("words " * 40, 1)])
def test_a_corpus_of_texts_that_nobody_speaks_so_slowly_or_fast_is_named(
    tmp_path, capsys, text, seconds
):
    corpus = make_corpus(tmp_path / "lj", 0)
    for i in range(3):
        write_wav(corpus / f"wavs/a{i}.wav", seconds)
        add_row(corpus, f"a{i}|{text} {i}|{text} {['one', 'two', 'three'][i]}")
    run(corpus, tmp_path / "out")
    assert "does not fit their length: 3;" in capsys.readouterr().err


# ---- flags


def test_length_limits_include_their_ends(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 6)
    limits = ("--min_seconds", "0.12", "--max_seconds", "0.14")
    both = pd.concat(run(corpus, tmp_path / "out", *limits).values())
    assert sorted(ids(both)) == ["clip2", "clip3", "clip4"]
    assert "--max_seconds: 3\n" in capsys.readouterr().out


def test_trimming_never_writes_into_the_corpus(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/trimmed_wavs").symlink_to(corpus / "wavs")
    flags = ("--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out", "--trim_db", 40)
    assert "corpus' own wavs folder" in fail(capsys, *flags)


def test_trimming_removes_no_recording_that_is_no_copy_of_its_own(tmp_path, capsys):
    corpus, out = make_corpus(tmp_path / "lj", 4), tmp_path / "out"
    flags = ("--path_to_ljspech", corpus, "--path_to_save", out, "--trim_db", 40)
    run(corpus, out, "--trim_db", "40")
    lines = (corpus / "metadata.csv").read_text().splitlines()
    (corpus / "metadata.csv").write_text("\n".join(lines[:3]))
    run(corpus, out, "--trim_db", "40")  # the copy of the fourth may go
    assert len(listing(out / "trimmed_wavs")) == 3
    write_wav(out / "trimmed_wavs/mine.wav", 1.0)
    assert "trimmed_wavs/mine.wav would be removed" in fail(capsys, *flags)
    (out / "trimmed_wavs/mine.wav").unlink()
    (corpus / "wavs/clip0.wav").rename(out / "trimmed_wavs/original.wav")
    (corpus / "wavs/clip0.wav").symlink_to(out / "trimmed_wavs/original.wav")
    assert "corpus' own wavs folder" in fail(capsys, *flags)
    assert (out / "trimmed_wavs/original.wav").is_file()
