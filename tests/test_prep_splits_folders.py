"""Tests of prep_splits.py: the layouts of a folder, what is wrong with one, and --val_split_pct."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import prep_splits
from test_prep_splits import RATE, add_row, fail, ids, listing, make_corpus, run, write_wav

N = 12
TEXTS = [f'He said: "number {i}", and; then left.' for i in range(N)]


def make_voice(folder: Path) -> Path:
    """LJSpeech's layout: clip0.wav of 0.10 s, clip1.wav of 0.11 s, ... with the texts above."""
    make_corpus(folder, N)
    lines = [f"clip{i}|raw {i}|{text}\n" for i, text in enumerate(TEXTS)]
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def contents(save: Path) -> dict[str, list]:
    """What the manifests say of each clip, but for where it lies."""
    return {
        path.name: [(Path(row[1]).stem, *row[2:]) for row in pd.read_csv(path).itertuples()]
        for path in sorted(save.glob("*_metadata.csv"))
    }


def write_csv(path: Path, rows: list, separator: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)


# ---- the layouts: each makes an LJSpeech folder into another one ----


def pairs(folder: Path) -> None:
    for i, text in enumerate(TEXTS):
        shutil.move(folder / f"wavs/clip{i}.wav", folder)
        (folder / f"clip{i}.txt").write_text(f"\ufeff{text}\r\n", encoding="utf-8")
    (folder / "wavs").rmdir()
    (folder / "metadata.csv").unlink()


def table(header: str, separator: str, name="metadata.csv", place="wavs", prefix="", ending=""):
    """A table with these columns; those that hold neither recording nor text are filled."""

    def make(folder: Path) -> None:
        columns = header.split(separator) if header else ["id", "text"]
        rows = [columns] if header else []
        for i, text in enumerate(TEXTS):
            known = dict.fromkeys(("id", "path", "File Name"), f"{prefix}clip{i}{ending}")
            known |= dict.fromkeys(("text", "Sentence"), text)
            rows.append([known.get(column, f"cell {i}") for column in columns])
        (folder / "metadata.csv").unlink()
        if separator in ",;":
            write_csv(folder / name, rows, separator)
        else:
            lines = "".join(f"{separator.join(cells)}\n" for cells in rows)
            (folder / name).write_text(lines, encoding="utf-8")
        (folder / "wavs").rename(folder / "moved")
        (folder / place).mkdir(parents=True, exist_ok=True)
        for path in (folder / "moved").iterdir():
            path.rename(folder / place / path.name)
        (folder / "moved").rmdir()

    return make


def with_header(line: str):
    def make(folder: Path) -> None:
        path = folder / "metadata.csv"
        path.write_text(f"{line}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")

    return make


def as_flac(folder: Path) -> None:
    pairs(folder)
    for path in folder.glob("*.wav"):
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
        path.unlink()


def ids_with_ending(folder: Path) -> None:
    path = folder / "metadata.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("|raw", ".wav|raw"), encoding="utf-8")


def capital_endings(folder: Path) -> None:
    for path in (folder / "wavs").iterdir():
        path.rename(path.with_suffix(".WAV"))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "txt beside wav": pairs,
    "txt beside flac": as_flac,
    "comma": table("path,text", ","),
    "semicolon, other columns, wavs beside": table("Age;Sentence;File Name", ";", place="."),
    "tab, transcripts.csv": table("id\ttext\tspeaker", "\t", name="transcripts.csv"),
    "bar, a header": table("id|speaker|Sentence", "|"),
    "names with endings": table("path,text", ",", ending=".wav"),
    "a path that begins with wavs": table("path,text", ",", prefix="wavs/", ending=".wav"),
    "a Windows path": table("path,text", ",", place="wavs/", prefix=".\\wavs\\", ending=".wav"),
    "two columns, bar": table("", "|"),
    "two columns, comma": table("", ","),
    "two columns, tab, wavs beside": table("", "\t", place="."),
    "LJSpeech with a header": with_header("ID|Transcription|Normalized Transcription"),
    "LJSpeech with a header in other words": with_header("id|Original|Clean"),
    "LJSpeech, ids with .wav": ids_with_ending,
    "LJSpeech, .WAV": capital_endings,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_manifests(tmp_path, capsys, layout):
    flags = ("--test_split_pct", "0.3")
    run(make_voice(tmp_path / "lj"), tmp_path / "expected", *flags)
    expected = contents(tmp_path / "expected")
    assert sorted(row[1] for rows in expected.values() for row in rows) == sorted(TEXTS)

    folder = make_voice(tmp_path / "voice")
    LAYOUTS[layout](folder)
    run(folder, tmp_path / "out", *flags)
    assert contents(tmp_path / "out") == expected
    assert "Bad rows" not in capsys.readouterr().out


def test_a_relative_path_names_a_folder_and_its_trimmed_copy_one_too(tmp_path):
    folder = tmp_path / "voice"
    for name, length in (("mon", 0.2), ("tue", 0.3)):
        (folder / name).mkdir(parents=True)
        write_wav(folder / name / "take1.wav", length)
    write_csv(folder / "metadata.csv", [["path", "text"], ["mon/take1.wav", "a"],
                                        ["tue\\take1", "b"]], ",")  # fmt: skip
    both = pd.concat(run(folder, tmp_path / "out", "--trim_db", "40").values())
    assert listing(tmp_path / "out/trimmed_wavs") == [
        "mon", "mon/take1.wav", "tue", "tue/take1.wav",
    ]  # fmt: skip
    found = both.set_index("normalized_transcript")
    for text, name in (("a", "mon"), ("b", "tue")):
        path = Path(found.loc[text, "file_path"])
        assert path == tmp_path / f"out/trimmed_wavs/{name}/take1.wav"
        assert found.loc[text, "duration"] == pytest.approx(soundfile.info(path).duration)


def test_texts_of_a_quoted_table_survive(tmp_path):
    """Commas, quotes and line breaks, as pandas writes them, and the line numbers after those."""
    corpus = make_corpus(tmp_path / "lj", 4)
    texts = ['"All," he said, "of it', "two\nlines", "a|b, c;d\te", "last"]
    frame = pd.DataFrame({"file": [f"clip{i}" for i in range(4)], "text": texts})
    frame.to_csv(corpus / "metadata.csv", index=False)
    both = pd.concat(run(corpus, tmp_path / "out").values())
    assert dict(zip(ids(both), both["normalized_transcript"], strict=True)) == {
        f"clip{i}": text for i, text in enumerate(texts)
    }


def test_a_bad_row_of_a_quoted_table_is_named_by_its_first_line(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 3)
    rows = ["file,text", 'clip0,"two', 'lines"', "", "clip1,fine, but not quoted", "clip2,ok"]
    (corpus / "metadata.csv").write_text("\n".join(rows))
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out")
    assert said.startswith("metadata.csv line 5: 'clip1': 3 columns instead of 2 (file,text); ")
    assert "quotes" in said.split("\n")[0] and said.count("\n") == 1


def test_of_several_columns_the_normalized_text_and_the_path_count(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 2)
    header = ["id", "text", "normalized_text", "path", "transcript"]
    rows = [[f"x{i}", "no", f"yes {i}", f"clip{i}.wav", "no"] for i in range(2)]
    write_csv(corpus / "metadata.csv", [header, *rows], ",")
    both = pd.concat(run(corpus, tmp_path / "out").values())
    assert sorted(both["normalized_transcript"]) == ["yes 0", "yes 1"]


def test_a_first_row_that_names_a_recording_is_no_header(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 2)
    write_wav(corpus / "wavs/name.wav", 0.3)
    lines = "name|Hello|Hello\nclip0|raw|text 0\nclip1|raw|text 1\n"
    (corpus / "metadata.csv").write_text(lines)
    assert len(pd.concat(run(corpus, tmp_path / "out").values())) == 3


def test_an_accent_may_be_spelt_as_macos_does(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 2)
    for stem in ("caf\u00e9", "ane\u0301"):  # one character, or a letter and its accent
        write_wav(corpus / f"wavs/{stem}.wav", 0.3)
    add_row(corpus, "cafe\u0301|raw|one")
    add_row(corpus, "an\u00e9|raw|other")
    both = pd.concat(run(corpus, tmp_path / "out").values())
    assert {"one", "other"} < set(both["normalized_transcript"])


def test_any_sampling_rate(tmp_path):
    make_voice(tmp_path / "lj")
    for i, rate in enumerate((8000, 11025, 16000, 24000, 44100, 48000, 96000)):
        samples = np.zeros((round(rate * (1 + i / 10)), 1 + i % 2))
        soundfile.write(tmp_path / f"lj/wavs/clip{i}.wav", samples, rate)
    both = pd.concat(run(tmp_path / "lj", tmp_path / "out").values())
    durations = dict(zip(ids(both), both["duration"], strict=True))
    assert [durations[f"clip{i}"] for i in range(7)] == pytest.approx(
        [1 + i / 10 for i in range(7)], abs=1e-4
    )


# ---- texts beside recordings ----


def make_pairs(folder: Path) -> Path:
    make_voice(folder)
    pairs(folder)
    return folder


def test_a_recording_without_a_usable_text_is_a_bad_row(tmp_path, capsys):
    folder = make_pairs(tmp_path / "voice")
    (folder / "clip1.txt").unlink()
    (folder / "clip3.txt").write_bytes(b"caf\xe9")
    (folder / "clip5.txt").write_text(" \n")
    shutil.copy(folder / "clip0.wav", folder / os.fsdecode(b"bad\xff.wav"))
    said = fail(capsys, "--path_to_ljspech", folder, "--path_to_save", tmp_path / "out")
    lines = said.split("\n")
    assert lines[0].startswith("bad\\xff.txt: ") and "UTF-8" in lines[0]
    assert lines[1] == f"clip1.txt: 'clip1': missing: {folder}/clip1.txt"
    assert lines[2].startswith("clip3.txt: 'clip3': ") and "UTF-8" in lines[2]
    assert lines[3] == "clip5.txt: 'clip5': empty transcript"
    assert lines[4].startswith("prep_splits.py: error: bad rows: 4;") and len(lines) == 5
    both = pd.concat(run(folder, tmp_path / "out", "--skip_bad").values())
    assert len(both) == N - 3


def test_other_files_of_the_folder_are_no_clips(tmp_path, capsys):
    folder = make_pairs(tmp_path / "voice")
    (folder / "README.txt").write_text("Recorded at home.")
    (folder / "._clip1.wav").write_bytes(b"what macOS leaves on other disks")
    (folder / "cover.png").write_bytes(b"a picture")
    (folder / "clip2.txt").write_text(" One text\non  two lines.\n\n")
    both = pd.concat(run(folder, tmp_path / "out").values())
    assert len(both) == N and "One text on two lines." in set(both["normalized_transcript"])
    assert "Text files that have no recording: 1 ('README.txt')" in capsys.readouterr().err


def test_wav_comes_before_flac_here_too(tmp_path):
    folder = make_pairs(tmp_path / "voice")
    soundfile.write(folder / "clip0.flac", np.zeros(RATE), RATE)
    both = pd.concat(run(folder, tmp_path / "out").values())
    assert {Path(path).suffix for path in both["file_path"]} == {".wav"} and len(both) == N


# ---- mistakes ----


def no_texts(folder: Path) -> None:
    make_pairs(folder)
    for path in folder.glob("*.txt"):
        path.unlink()
    (folder / "old").mkdir()


def test_a_folder_that_fits_nothing_is_told_what_would(tmp_path, capsys):
    no_texts(tmp_path / "voice")
    flags = ("--path_to_ljspech", tmp_path / "voice", "--path_to_save", tmp_path / "out")
    lines = fail(capsys, *flags).split("\n")
    assert lines[0].endswith("has no transcripts; found 12 .wav, 1 folder, expected one of")
    assert len(lines) == 4
    (tmp_path / "voice/new").mkdir()
    assert "found 12 .wav, 2 folders, expected" in fail(capsys, *flags)
    assert all(words in line for words, line in zip(
        ("id|raw|normalized", "header such as file,text", "NAME.txt beside NAME.wav"), lines[1:],
        strict=True))  # fmt: skip
    (tmp_path / "empty").mkdir()
    said = fail(capsys, "--path_to_ljspech", tmp_path / "empty", *flags[2:])
    assert "found nothing" in said


def rows(*lines: str):
    def make(folder: Path) -> None:
        make_voice(folder)
        (folder / "metadata.csv").write_text("\n".join([*lines, ""]))

    return make


def mp3s(folder: Path) -> None:
    rows("file,text", "clip0.mp3,a")(folder)
    (folder / "clip0.mp3").write_bytes(b"mp3")
    write_wav(folder / "wavs/clip1.wav", 0.2)
    add_row(folder, "clip1,b")


def pairs_in_wavs(folder: Path) -> None:
    make_pairs(folder / "wavs")


MISTAKES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "pairs one folder down": (pairs_in_wavs, ("did you mean", "voice/wavs?")),
    "columns of other names": (
        rows("name,speaker,age,words", "clip0,me,40,hello"),
        ("metadata.csv line 1", "'name, speaker, age, words'", "file,text"),
    ),
    "a header and no rows": (rows("file,text"), ("metadata.csv", "header and no rows")),
    "quotes that do not close": (
        rows("file,text", "clip0,fine", 'clip1,"never closed', "clip2,fine"),
        ("metadata.csv", "from line 3 on"),
    ),
    "text after closed quotes": (
        rows("file,text", 'clip1,"Hello" he said'), ("metadata.csv", "from line 2 on", '""'),
    ),
    "no recording is there": (
        rows("file,text", "a.wav,text", "b.wav,text"),
        ("none of the 2 recordings of metadata.csv", "a.wav", "found in wavs 12 .wav"),
    ),
    "an absolute path": (rows("file,text", "/etc/clip.wav,a"), ("line 2", "inside the folder")),
    "a path upwards": (rows("file,text", "wavs/../../x,a"), ("line 2", "inside the folder")),
    "a Windows path elsewhere": (rows("file,text", "C:\\clip,a"), ("line 2", "inside the folder")),
    "twice the same recording": (
        rows("file,text", "clip0.wav,a", "wavs/clip0,b"),
        ("line 3", "duplicate id, first on line 2"),
    ),
    "another format": (mp3s, ("line 2: 'clip0.mp3'", "neither .wav nor .flac")),
    "blank lines only": (rows("", " ", ","), ("metadata.csv",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_sentence(tmp_path, capsys, kind):
    make, words = MISTAKES[kind]
    make(tmp_path / "voice")
    before = listing(tmp_path)
    flags = ("--path_to_ljspech", tmp_path / "voice", "--path_to_save", tmp_path / "out")
    said = fail(capsys, *flags)
    assert all(word in said for word in words), said
    assert "Traceback" not in said and said.count("prep_splits.py: error: ") == 1
    assert listing(tmp_path) == before


def test_min_seconds_is_not_blamed_for_bad_rows(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 3)
    for path in (corpus / "wavs").iterdir():
        path.write_bytes(b"no audio")
    flags = ("--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out", "--skip_bad")
    for limits in ((), ("--min_seconds", 0.05)):
        said = fail(capsys, *flags, *limits)
        assert "bad rows: 3, which is all of them" in said and "--min_seconds" not in said


@pytest.mark.parametrize("n_bad", [9, 10, 11, 25])
def test_ten_bad_rows_are_listed_and_the_others_counted(tmp_path, capsys, n_bad):
    corpus = make_corpus(tmp_path / "lj", 3)
    for i in range(n_bad):
        add_row(corpus, f"ghost{i}|raw|text")
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out")
    lines = said.split("\n")[:-1]
    assert sum("ghost" in line for line in lines) == min(n_bad, 10)
    assert (lines[-1] == f"and {n_bad - 10} more") == (n_bad > 10)
    run(corpus, tmp_path / "out", "--skip_bad")
    assert f"Bad rows left out: {n_bad}\n" in capsys.readouterr().out


# ---- the validation set ----


def test_a_validation_set_leaves_the_test_set_as_it_was(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 40)
    flags = ("--test_split_pct", "0.1", "--seed", "3")
    run(corpus, tmp_path / "without", *flags)
    assert listing(tmp_path / "without") == ["test_metadata.csv", "train_metadata.csv"]
    run(corpus, tmp_path / "with", *flags, "--val_split_pct", "0.2")
    without, found = contents(tmp_path / "without"), contents(tmp_path / "with")
    assert found["test_metadata.csv"] == without["test_metadata.csv"]
    assert {name: len(rows) for name, rows in found.items()} == {
        "train_metadata.csv": 28, "val_metadata.csv": 8, "test_metadata.csv": 4,
    }  # fmt: skip
    clips = [row[0] for rows in found.values() for row in rows]
    assert sorted(clips) == sorted({f"clip{i}" for i in range(40)})
    lengths = [row[2] for row in found["val_metadata.csv"]]
    assert lengths == sorted(lengths, reverse=True)
    assert [line.split()[:2] for line in capsys.readouterr().out.split("\n")[-4:-1]] == [
        ["train", "28"], ["test", "4"], ["val", "8"],
    ]  # fmt: skip


def test_an_old_validation_set_does_not_stay_beside_a_new_split(tmp_path, capsys):
    """Its clips would be among those of the new training set."""
    corpus = make_corpus(tmp_path / "lj", 10)
    run(corpus, tmp_path / "out", "--val_split_pct", "0.2")
    before = contents(tmp_path / "out")
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out")
    assert "val_metadata.csv" in said and "--val_split_pct" in said
    assert contents(tmp_path / "out") == before
    run(corpus, tmp_path / "out", "--val_split_pct", "0.4")
    assert len(contents(tmp_path / "out")["val_metadata.csv"]) == 4


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_three_manifests_are_written_or_none(tmp_path, capsys, monkeypatch, nth):
    corpus = make_corpus(tmp_path / "lj", 20)
    flags = ("--val_split_pct", "0.2", "--test_split_pct", "0.2")
    run(corpus, tmp_path / "old", *flags)
    before = contents(tmp_path / "old")
    works, calls = os.replace, []

    def breaks(*args):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")
        return works(*args)

    monkeypatch.setattr(prep_splits.os, "replace", breaks)
    for folder in ("old", "new"):
        calls.clear()
        save = ("--path_to_save", tmp_path / folder, "--seed", 7)
        assert "No space left" in fail(capsys, "--path_to_ljspech", corpus, *save, *flags)
    assert contents(tmp_path / "old") == before and len(before) == 3
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flags", [("--val_split_pct", "0.5"), ("--val_split_pct", "0.3")])
def test_nothing_left_to_train_on_names_both_flags(tmp_path, capsys, flags):
    corpus = make_corpus(tmp_path / "lj", 2)
    said = fail(capsys, "--path_to_ljspech", corpus, "--path_to_save", tmp_path / "out", *flags)
    assert "--test_split_pct 0.01 and --val_split_pct" in said and "none to train on" in said


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--val_split_pct", "1"), "--val_split_pct"),
        (("--val_split_pct", "-0.1"), "--val_split_pct"),
        (("--val_split_pct", "nan"), "--val_split_pct"),
        (("--val_split_pct", "0.6", "--test_split_pct", "0.4"), "together"),
    ],
)
def test_a_share_that_cannot_be_is_a_mistake_of_the_flag(tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        run(make_corpus(tmp_path / "lj"), tmp_path / "out", *flags)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


# ---- a real voice ----


@pytest.mark.parametrize("layout", ["pairs", "table"])
def test_a_real_voice_in_every_layout(real_voice_dir, tmp_path, layout):
    run(real_voice_dir, tmp_path / "expected", "--val_split_pct", "0.1")
    folder = tmp_path / "voice"
    folder.mkdir()
    lines = (real_voice_dir / "metadata.csv").read_text(encoding="utf-8").splitlines()
    table_rows = [line.split("|")[::2] for line in lines]  # id and normalized text
    for path in (real_voice_dir / "wavs").iterdir():
        (folder / path.name).symlink_to(path)
    if layout == "table":
        write_csv(folder / "transcripts.csv", [("Clip", "Sentence"), *table_rows], ";")
    else:
        for clip_id, text in table_rows:
            (folder / f"{clip_id}.txt").write_text(text + "\n", encoding="utf-8")
    run(folder, tmp_path / "out", "--val_split_pct", "0.1")
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "expected")
    assert sum(map(len, found.values())) == len(lines)
    if layout == "pairs":  # which makes any white space one space
        expected = {
            name: [(clip, " ".join(text.split()), length) for clip, text, length in clips]
            for name, clips in expected.items()
        }
    assert found == expected
