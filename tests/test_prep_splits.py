"""Tests of prep_splits.py on made-up corpora, and on real clips where LJSPEECH_DIR names some.

Trimming is in test_prep_splits_trimming.py, --download in test_prep_splits_download.py.
"""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import prep_splits

RATE = 8000
SCRIPT = Path(prep_splits.__file__)
N_LJSPEECH = 13_100
N_QUOTE_TRAPS = 16


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
        name: pd.read_csv(save / f"{name}_metadata.csv", keep_default_na=False)
        for name in ("train", "test")
    }


def fail(capsys, *argv: object) -> str:
    """Run main, expect exit code 1, and return what it said on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        prep_splits.main([str(arg) for arg in argv])
    if isinstance(stop.value.code, str):  # sys.exit(text) prints it and exits with code 1
        return capsys.readouterr().err + stop.value.code
    raise AssertionError(f"exit code {stop.value.code} instead of a message")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ids(manifest: pd.DataFrame) -> list[str]:
    return [Path(path).stem for path in manifest["file_path"]]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- the text ----


def trap_texts() -> list[str]:
    """As many texts as LJSpeech has; 16 of them open a double quote that they never close."""
    odd = [
        "NA", "null", "nan", '"', '""', 'said "so', '"all" of it', "a, b, c", " spaces ",
        "#1", "caf\u00e9 \u201cquoted\u201d \u2014 \u00a35", "\u65e5\u672c\u8a9e \U0001f600",
        "line\u2028separator", "next\x85line", "vertical\x0btab \x1c", "lone\rreturn", "\ufeffbom",
        "back\\slash",
    ]  # fmt: skip
    texts = [f"This is sentence {i}, and it is like the others." for i in range(N_LJSPEECH)]
    texts[100 : 100 + len(odd)] = odd
    for i in range(N_QUOTE_TRAPS):
        texts[1000 + 500 * i] = f'"Opened in {i} and never closed'
    return texts


@pytest.fixture(scope="module")
def big_corpus(tmp_path_factory) -> tuple[Path, list[str]]:
    folder, texts = tmp_path_factory.mktemp("big"), trap_texts()
    (folder / "wavs").mkdir()
    write_wav(folder / "one.wav", 0.1)
    for i in range(len(texts)):
        os.link(folder / "one.wav", folder / "wavs" / f"{i:05d}.wav")
    lines = [f"{i:05d}|{text}|{text}\n" for i, text in enumerate(texts)]
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8", newline="")
    return folder, texts


def test_every_text_survives_byte_for_byte(big_corpus, tmp_path):
    corpus, texts = big_corpus
    manifests = run(corpus, tmp_path)
    both = pd.concat(manifests.values())
    found = dict(zip(map(int, ids(both)), both["normalized_transcript"], strict=True))
    assert len(both) == len(found) == N_LJSPEECH
    assert [text for i, text in enumerate(texts) if found[i].encode() != text.encode()] == []
    assert len(manifests["test"]) == 131


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_bom_and_line_ends_are_no_text(tmp_path, bom, newline):
    corpus = make_corpus(tmp_path / "lj", 3)
    lines = [f"clip{i}|raw|text {i}" for i in range(3)]
    (corpus / "metadata.csv").write_bytes(bom + newline.join([*lines, ""]).encode())
    both = pd.concat(run(corpus, tmp_path / "out").values())
    assert sorted(both["normalized_transcript"]) == ["text 0", "text 1", "text 2"]


# ---- the manifests ----


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


def test_characters_that_training_will_leave_out_or_replace_are_said(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 3)
    run(corpus, tmp_path / "plain")
    assert "no symbol" not in capsys.readouterr().err
    write_wav(corpus / "wavs" / "odd.wav", 0.2)
    add_row(corpus, "odd|raw|caf\u00e9 \u2603, \u65e5 and \u2603")
    run(corpus, tmp_path / "out")
    said = [line for line in capsys.readouterr().err.split("\n") if "no symbol" in line]
    assert len(said) == 2
    assert "left out of 1 of 4 clips: '\u2603' in 1, '\u65e5' in 1; " in said[0]
    assert "--path_to_symbols" in said[0]
    assert "replaced in 1 of 4 clips: '\u00e9' as 'e' in 1; " in said[1]
    assert "--extra_symbols" in said[1]


def test_wav_is_preferred_and_flac_accepted(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 2)
    samples = np.zeros(RATE, dtype=np.int16)
    for name in ("clip1", "only_flac"):
        soundfile.write(corpus / "wavs" / f"{name}.flac", samples, RATE)
    add_row(corpus, "only_flac|raw|text")
    both = pd.concat(run(corpus, tmp_path / "out").values())
    assert sorted(Path(path).name for path in both["file_path"]) == [
        "clip0.wav", "clip1.wav", "only_flac.flac",
    ]  # fmt: skip
    assert both["duration"].max() == 1.0


def test_the_correctly_spelt_flag_is_the_same_flag(tmp_path):
    corpus = make_corpus(tmp_path / "lj")
    prep_splits.main(["--path_to_ljspeech", str(corpus), "--path_to_save", str(tmp_path / "out")])
    assert sum(map(len, read_manifests(tmp_path / "out").values())) == 5


def test_length_limits_include_their_ends(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 6)
    limits = ("--min_seconds", "0.12", "--max_seconds", "0.14")
    both = pd.concat(run(corpus, tmp_path / "out", *limits).values())
    assert sorted(ids(both)) == ["clip2", "clip3", "clip4"]
    assert "--max_seconds: 3\n" in capsys.readouterr().out


# ---- the split ----


def test_split_follows_from_seed_and_ids_alone(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 30)
    flags = ("--test_split_pct", "0.19")  # 5.7 clips of 30
    here = run(corpus, tmp_path / "here", *flags)
    ranked = sorted(ids(pd.concat(here.values())), key=lambda i: sha256(f"42:{i}".encode()))
    assert set(ids(here["test"])) == set(ranked[:6])

    lines = (corpus / "metadata.csv").read_text().splitlines()
    random.Random(1).shuffle(lines)
    (corpus / "metadata.csv").write_text("\n".join(lines))
    argv = ["--path_to_ljspech", str(corpus), "--path_to_save", str(tmp_path / "there"), *flags]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, SCRIPT, *argv], check=True, env=environment, timeout=60)
    for name, manifest in read_manifests(tmp_path / "there").items():
        pd.testing.assert_frame_equal(manifest, here[name])

    other = run(corpus, tmp_path / "other", *flags, "--seed", "43")
    assert set(ids(other["test"])) != set(ids(here["test"]))


def test_one_clip_cannot_be_split(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 1)
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out")
    assert "--test_split_pct" in said and "none to train on" in said
    assert not (tmp_path / "out").exists()


# ---- bad rows ----


def missing(wavs: Path) -> str:
    return "ghost|raw|text"


def unreadable(wavs: Path) -> str:
    (wavs / "noise.wav").write_bytes(b"this is no audio")
    return "noise|raw|text"


def zero_length(wavs: Path) -> str:
    write_wav(wavs / "hollow.wav", 0)
    return "hollow|raw|text"


def truncated(wavs: Path) -> str:
    write_wav(wavs / "cut.wav", 1)
    (wavs / "cut.wav").write_bytes((wavs / "cut.wav").read_bytes()[:-1000])
    return "cut|raw|text"


def escaping(wavs: Path) -> str:
    write_wav(wavs.parent / "outside.wav", 1)
    return "../outside|raw|text"


BAD_ROWS = {
    "missing": missing,
    "unreadable": unreadable,
    "zero-length": zero_length,
    "truncated": truncated,
    "not a plain file name": escaping,
    "2 columns": lambda wavs: "clip9|text",
    "4 columns": lambda wavs: "clip9|raw|text|more",
    "1 columns": lambda wavs: "",
    "duplicate id, first on line 2": lambda wavs: "clip1|raw|text",
    "empty transcript": lambda wavs: "clip9|raw| ",
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_row_stops_the_run_or_is_left_out(tmp_path, capsys, reason):
    corpus = make_corpus(tmp_path / "lj", 5)
    row = BAD_ROWS[reason](corpus / "wavs")
    add_row(corpus, row)
    write_wav(corpus / "wavs/last.wav", 0.5)
    add_row(corpus, "last|raw|last text")

    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "new/out")
    (line,) = [line for line in said.split("\n") if line.startswith("metadata.csv line")]
    assert line.startswith(f"metadata.csv line 6: {row.split('|')[0]!r}: ") and reason in line
    assert "--skip_bad" in said and "Traceback" not in said
    assert not (tmp_path / "new").exists()

    both = pd.concat(run(corpus, tmp_path / "new/out", "--skip_bad").values())
    assert sorted(ids(both)) == ["clip0", "clip1", "clip2", "clip3", "clip4", "last"]
    assert "Bad rows left out: 1\n" in capsys.readouterr().out


def test_the_first_ten_bad_rows_are_listed(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 5)
    for make_row in BAD_ROWS.values():
        add_row(corpus, make_row(corpus / "wavs"))
    add_row(corpus, "clip0|raw|a last row, as blank lines at the end are none")
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out")
    lines = said.split("\n")
    numbers = [int(line.split()[2][:-1]) for line in lines if "metadata.csv line" in line]
    assert len(BAD_ROWS) == 10 and numbers == list(range(6, 16))
    assert lines[10] == "and 1 more" and "bad rows: 11;" in lines[11]


# ---- mistakes ----


def not_utf8(folder: Path) -> Path:
    (folder / "metadata.csv").write_bytes(b"clip0|raw|text\nclip1|raw|caf\xe9\n")
    return folder


def emptied(folder: Path) -> Path:
    (folder / "metadata.csv").write_bytes(b"")
    return folder


def no_wavs(folder: Path) -> Path:
    (folder / "wavs").rename(folder / "audio")
    return folder


MISTAKES = {
    "does_not_exist is not a folder": lambda folder: folder / "does_not_exist",
    "metadata.csv is not a folder; did you mean": lambda folder: folder / "metadata.csv",
    "has no metadata.csv in it; did you mean": lambda folder: folder / "wavs",
    "LJSpeech-1.1?": lambda folder: folder.parent,
    "metadata.csv is empty": emptied,
    "is not UTF-8: see line 2": not_utf8,
    "has no wavs folder": no_wavs,
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistake_gets_one_sentence(tmp_path, capsys, sentence):
    corpus = MISTAKES[sentence](make_corpus(tmp_path / "LJSpeech-1.1"))
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out")
    assert sentence in said and "Traceback" not in said
    assert said.count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_path_to_save_cannot_be_a_file(tmp_path, capsys, name):
    (tmp_path / "file").write_text("precious")
    corpus = make_corpus(tmp_path / "lj")
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / name)
    assert str(tmp_path / name) in said
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    "flags",
    [
        ("--skip_bda",), ("--skip",), ("--test_split_pct", "0"), ("--test_split_pct", "1"),
        ("--test_split_pct", "5"), ("--test_split_pct", "nan"), ("--trim_db", "-40"),
        ("--min_seconds", "2", "--max_seconds", "1"), ("--download_sha256", "0" * 64),
        ("--download", "--download_sha256", "abc"), ("--download", "--download_url", "http://x/y.zip"),
    ],
)  # fmt: skip
def test_flag_mistake_exits_with_2_and_names_the_flag(tmp_path, capsys, flags):
    corpus = make_corpus(tmp_path / "lj")
    with pytest.raises(SystemExit) as stop:
        run(corpus, tmp_path / "out", *flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, "one line, without the usage"
    assert any(flag in message for flag in flags if flag.startswith("--"))
    assert not (tmp_path / "out").exists()


def test_command_line_fails_without_traceback_and_starts_without_torch(tmp_path):
    argv = [sys.executable, "-X", "importtime", SCRIPT]
    flags = ["--path_to_ljspech", tmp_path / "nothing", "--path_to_save", tmp_path / "out"]
    done = subprocess.run([*argv, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "is not a folder." in done.stderr.splitlines()[-1]
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "soundfile" in imported
    assert not imported & {"torch", "torchaudio", "librosa", "pandas"}


# ---- real clips ----


@pytest.mark.skipif(
    "LJSPEECH_DIR" not in os.environ, reason="LJSPEECH_DIR names no LJSpeech folder"
)
def test_real_clips(tmp_path):
    corpus = Path(os.environ["LJSPEECH_DIR"])
    lines = (corpus / "metadata.csv").read_bytes().decode("utf-8-sig").rstrip("\r\n").split("\n")
    texts = {line.split("|")[0]: line.removesuffix("\r").split("|")[2] for line in lines}
    manifests = run(corpus, tmp_path, "--test_split_pct", "0.1")
    both = pd.concat(manifests.values())
    assert dict(zip(ids(both), both["normalized_transcript"], strict=True)) == texts
    assert not set(ids(manifests["train"])) & set(ids(manifests["test"]))
    for row in both.iloc[:20].itertuples():
        samples, sampling_rate = soundfile.read(row.file_path)
        assert row.duration == pytest.approx(len(samples) / sampling_rate, abs=1e-6)
