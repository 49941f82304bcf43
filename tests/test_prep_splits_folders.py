"""prep_splits.py: the layouts of a folder, and what is wrong with one."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

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
    """What the manifests say of each clip, except where it is."""
    return {
        path.name: [(Path(row[1]).stem, *row[2:]) for row in pd.read_csv(path).itertuples()]
        for path in sorted(save.glob("*_metadata.csv"))
    }


def write_csv(path: Path, rows: list, separator: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)


# ---- the layouts: each makes an LJSpeech folder into another one


def pairs(folder: Path) -> None:
    for i, text in enumerate(TEXTS):
        shutil.move(folder / f"wavs/clip{i}.wav", folder)
        (folder / f"clip{i}.txt").write_text(f"\ufeff{text}\r\n", encoding="utf-8")
    (folder / "wavs").rmdir()
    (folder / "metadata.csv").unlink()


def as_flac(folder: Path) -> None:
    pairs(folder)
    for path in folder.glob("*.wav"):
        soundfile.write(path.with_suffix(".flac"), *soundfile.read(path))
        path.unlink()


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
        for path in (folder / "wavs").iterdir() if place == "." else ():
            path.rename(folder / path.name)

    return make


def with_header(line: str):
    def make(folder: Path) -> None:
        path = folder / "metadata.csv"
        path.write_text(f"{line}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")

    return make


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "txt beside wav": pairs,
    "txt beside flac": as_flac,
    "semicolon, other columns, wavs beside": table("Age;Sentence;File Name", ";", place="."),
    "tab, transcripts.csv": table("id\ttext\tspeaker", "\t", name="transcripts.csv"),
    "a Windows path": table("path,text", ",", prefix=".\\wavs\\", ending=".wav"),
    "two columns, bar": table("", "|"),
    "LJSpeech with a header": with_header("id|Original|Clean"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_manifests(tmp_path, layout):
    flags = ("--test_split_pct", "0.3")
    run(make_voice(tmp_path / "lj"), tmp_path / "expected", *flags)
    expected = contents(tmp_path / "expected")
    assert sorted(row[1] for rows in expected.values() for row in rows) == sorted(TEXTS)

    folder = make_voice(tmp_path / "voice")
    LAYOUTS[layout](folder)
    run(folder, tmp_path / "out", *flags)
    assert contents(tmp_path / "out") == expected


def test_a_relative_path_names_a_folder_and_its_trimmed_copy_one_too(tmp_path):
    folder = tmp_path / "voice"
    for name, length in (("mon", 0.2), ("tue", 0.3)):
        (folder / name).mkdir(parents=True)
        write_wav(folder / name / "take1.wav", length)
    rows = [["path", "text"], ["mon/take1.wav", "a"], ["tue\\take1", "b"]]
    write_csv(folder / "metadata.csv", rows, ",")
    both = pd.concat(run(folder, tmp_path / "out", "--trim_db", "40").values())
    found = both.set_index("normalized_transcript")
    for text, name in (("a", "mon"), ("b", "tue")):
        path = Path(found.loc[text, "file_path"])
        assert path == tmp_path / f"out/trimmed_wavs/{name}/take1.wav"
        assert found.loc[text, "duration"] == pytest.approx(soundfile.info(path).duration)


def test_texts_of_a_quoted_table_survive(tmp_path):
    """Commas, quotes and line breaks, as pandas writes them."""
    corpus = make_corpus(tmp_path / "lj", 4)
    texts = ['"All," he said, "of it', "two\nlines", "a|b, c;d\te", "last"]
    frame = pd.DataFrame({"file": [f"clip{i}" for i in range(4)], "text": texts})
    frame.to_csv(corpus / "metadata.csv", index=False)
    both = pd.concat(run(corpus, tmp_path / "out").values())
    found = dict(zip(ids(both), both["normalized_transcript"], strict=True))
    assert found == {f"clip{i}": text for i, text in enumerate(texts)}


def test_an_accent_may_be_spelt_as_macos_does(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 2)
    for stem in ("caf\u00e9", "ane\u0301"):  # one character, or a letter and its accent
        write_wav(corpus / f"wavs/{stem}.wav", 0.3)
    add_row(corpus, "cafe\u0301|raw|one")
    add_row(corpus, "an\u00e9|raw|other")
    both = pd.concat(run(corpus, tmp_path / "out").values())
    assert {"one", "other"} < set(both["normalized_transcript"])


# ---- texts beside recordings


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
    message = fail(capsys, "--path_to_ljspech", folder, "--path_to_save", tmp_path / "out")
    lines = message.split("\n")
    assert lines[0].startswith("bad\\xff.txt: ") and "UTF-8" in lines[0]
    assert lines[1] == f"clip1.txt: 'clip1': missing: {folder}/clip1.txt"
    assert lines[2].startswith("clip3.txt: 'clip3': ") and "UTF-8" in lines[2]
    assert lines[3] == "clip5.txt: 'clip5': empty transcript"
    assert lines[4].startswith("prep_splits.py: bad rows: 4;") and len(lines) == 5
    both = pd.concat(run(folder, tmp_path / "out", "--skip_bad").values())
    assert len(both) == N - 3


def test_other_files_of_the_folder_are_no_clips(tmp_path, capsys):
    folder = make_pairs(tmp_path / "voice")
    (folder / "README.txt").write_text("Recorded at home.")
    (folder / "._clip1.wav").write_bytes(b"what macOS leaves on other disks")
    (folder / "cover.png").write_bytes(b"a picture")
    (folder / "clip2.txt").write_text(" One text\non  two lines.\n\n")
    soundfile.write(folder / "clip0.flac", np.zeros(RATE), RATE)  # the wav comes first
    both = pd.concat(run(folder, tmp_path / "out").values())
    assert len(both) == N and "One text on two lines." in set(both["normalized_transcript"])
    assert {Path(path).suffix for path in both["file_path"]} == {".wav"}
    assert "Text files that have no recording: 1 ('README.txt')" in capsys.readouterr().err


# ---- mistakes


def no_texts(folder: Path) -> None:
    make_pairs(folder)
    for path in folder.glob("*.txt"):
        path.unlink()


def rows(*lines: str):
    def make(folder: Path) -> None:
        make_voice(folder)
        (folder / "metadata.csv").write_text("\n".join([*lines, ""]))

    return make


def not_utf8(folder: Path) -> None:
    make_voice(folder)
    (folder / "metadata.csv").write_bytes(b"clip0|raw|text\nclip1|raw|caf\xe9\n")


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, "voice is not a folder: found nothing"),
    "no texts": (no_texts, "has no transcripts: found 12 .wav, expected metadata.csv with lines"),
    "pairs one folder down": (lambda folder: make_pairs(folder / "wavs"), "voice/wavs?"),
    "not UTF-8": (not_utf8, "metadata.csv is not UTF-8: see line 2"),
    "a header and no rows": (rows("file,text"), "metadata.csv has a header and no rows"),
    "columns of other names": (
        rows("name,speaker,age,words", "clip0,me,40,hello"),
        "1 'name' 'clip0', 2 'speaker' 'me', 3 'age' '40', 4 'words' 'hello'",
    ),
    "quotes that do not close": (rows("file,text", "a,b", 'c,"d', "e,f"), "from line 3 on"),
    "an absolute path": (rows("file,text", "/etc/clip.wav,a"), "inside the folder"),
    "a path upwards": (rows("file,text", "wavs/../../x,a"), "inside the folder"),
    "twice the same recording": (
        rows("file,text", "clip0.wav,a", "wavs/clip0,b"),
        "line 3: 'clip0': duplicate id, first on line 2",
    ),
    "another format": (
        lambda f: rows("file,text", "a.mp3,a")(f) or (f / "a.mp3").touch(),
        "line 2: 'a.mp3': neither .wav nor .flac",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_sentence(tmp_path, capsys, kind):
    make, phrase = MISTAKES[kind]
    make(tmp_path / "voice")
    before = listing(tmp_path)
    flags = ("--path_to_ljspech", tmp_path / "voice", "--path_to_save", tmp_path / "out")
    message = fail(capsys, *flags)
    assert phrase in message
    lines = [line for line in message.split("\n") if not line.startswith("metadata.csv line")]
    assert len(lines) == 1, "a sentence, after the bad rows if there are any"
    assert listing(tmp_path) == before
