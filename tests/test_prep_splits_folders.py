"""prep_splits.py: the layouts of a folder, and what is wrong with one."""

import csv
import os
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from command_line.files import DataError
from corpora.layouts import read_clips
from corpora.texts import find_markup
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


def named(text_ending: str, other: str = "", recording_ending: str = ".wav"):
    """Texts and recordings beside each other, under the names of other programs."""

    def make(folder: Path) -> None:
        pairs(folder)
        for path in [*folder.glob("*.txt"), *folder.glob("*.wav")]:
            ending = text_ending if path.suffix == ".txt" else recording_ending
            path.rename(folder / f"{path.stem}{ending}")
            if other:
                (folder / f"{path.stem}{other}").write_text("another text")

    return make


def columns(line: str):
    """Lines such as `{file}|{text}|{i}`, in which `quoted` has a spreadsheet's quotes."""

    def make(folder: Path) -> None:
        lines = []
        for i, text in enumerate(TEXTS):
            quoted = '"' + text.replace('"', '""') + '"'
            lines.append(line.format(i=i, file=f"clip{i}", text=text, quoted=quoted) + "\n")
        (folder / "metadata.csv").write_text("".join(lines))

    return make


def table(header: str, separator: str, name="metadata.csv", place="wavs", prefix="", ending=""):
    """A table with these columns; those that hold neither recording nor text are filled."""

    def make(folder: Path) -> None:
        columns = header.split(separator) if header else ["id", "text"]
        rows = [columns] if header else []
        for i, text in enumerate(TEXTS):
            known = dict.fromkeys(("id", "path", "File Name"), f"{prefix}clip{i}{ending}")
            known |= dict.fromkeys(("text", "Sentence", "Satz"), text)
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


def excel(folder: Path) -> None:
    table("path;Satz", ";")(folder)
    path = folder / "metadata.csv"
    path.write_text("sep=;\n" + path.read_text(encoding="utf-8"), encoding="utf-8-sig")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "txt beside wav": pairs,
    "txt beside flac": as_flac,
    "semicolon, other columns, wavs beside": table("Age;Sentence;File Name", ";", place="."),
    "tab, transcripts.csv": table("id\ttext\tspeaker", "\t", name="transcripts.csv"),
    "a Windows path": table("path,text", ",", prefix=".\\wavs\\", ending=".wav"),
    "two columns, bar": table("", "|"),
    "LJSpeech with a header": with_header("id|Original|Clean"),
    "LibriTTS": named(".normalized.txt", other=".original.txt"),
    "Whisper": named(".wav.txt"),
    "converted since Whisper": named(".mp3.txt"),
    "one capital": named(".txt", recording_ending=".Wav"),
    "Coqui's documentation": columns("{file}.wav || {text}"),
    "bars with spaces, a speaker": columns("{file}.wav | {text} | anna"),
    "names before the conversion": columns("{file}.mp3|{text}|{i}.25"),
    "a spreadsheet's quotes": columns("{file}\t{quoted}"),
    "a spreadsheet's quotes around all": columns('"{file}"|{quoted}|"p225"'),
    "semicolons and quotes, no header": columns("John Smith;{file};{quoted}"),
    "names of columns in German": table("path;Satz;Sprecher", ";"),
    "Excel in Europe": excel,
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


# ---- which column has what

SENTENCES = ["Go home.", "Come in now", "A dog barks.", "Ring the bell!", "It is cold; come in"]
MORE = {  # what stands in a third column, which is not spoken
    "numbers": ["0", "1", "0", "2", "1"],
    "seconds": ["3.25", "1.9", "2", "0.7", "1.45 s"],
    "a speaker": ["John Smith"] * 5,
    "codes": ["p225", "p226", "p227", "p228", "p229"],
    "emotions": ["happy", "sad", "happy", "neutral", "angry"],
    "nothing": [""] * 5,
}


def write_cells(folder: Path, separator: str, *columns: list[str], header: str = "") -> None:
    lines = [separator.join(cells) for cells in zip(*columns, strict=True)]
    (folder / "metadata.csv").write_text("\n".join([header, *lines] if header else lines))


@pytest.fixture(scope="module")
def five_clips(tmp_path_factory) -> Path:
    """clip 0.wav to clip 4.wav; each test writes the table."""
    folder = make_corpus(tmp_path_factory.mktemp("five"), 5)
    for path in (folder / "wavs").iterdir():
        path.rename(path.with_stem(f"clip {path.stem[-1]}"))
    return folder


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("separator", ["|", " | ", "||", "\t", ";"])
def test_columns_are_known_by_what_they_hold(five_clips, separator, more):
    """In any order, under names of no meaning or none."""
    texts = [text.replace(";", ",") for text in SENTENCES]
    columns = [[f"clip {i}.wav" for i in range(5)], texts, MORE[more]]
    for order in permutations(range(3)):
        for header in ("", separator.join(["Eins", "texte de l'audio", "Dauer (s)"])):
            write_cells(five_clips, separator, *(columns[i] for i in order), header=header)
            clips = read_clips(five_clips)
            found = [(clip.path.name, clip.transcript, clip.problem) for clip in clips]
            assert found == [(*pair, "") for pair in zip(*columns[:2], strict=True)]


CLIPS = [f"clip {i}" for i in range(5)]
OTHER_TEXTS = ["Geh heim.", "Komm herein", "Ein Hund bellt.", "Geh hin!", "Es ist kalt; komm"]
WORDS = ["Yes.", "No.", "Zero", "Goodbye.", "Hello."]
CUT = [f"Well, {text.lower()}" for text in SENTENCES]
UNCLEAR = {
    "two texts that differ": ("|", CLIPS, SENTENCES, OTHER_TEXTS),
    "labels alone": ("|", CLIPS, MORE["emotions"], MORE["numbers"]),
    "numbers alone": ("\t", CLIPS, MORE["numbers"]),
    "words and names": ("|", CLIPS, WORDS, [f"Ann {text[-5:-1]}" for text in SENTENCES]),
    "one speaker alone": ("|", CLIPS, ["anna"] * 5),
    "a comma in each text": (",", CLIPS, CUT),
    "a comma in each text, and a number": (",", MORE["numbers"], CLIPS, CUT),
    "a comma without a space": (",", CLIPS, [text.replace(", ", ",") for text in CUT]),
    "a comma in some texts": (",", CLIPS, [*SENTENCES[:4], "Well, come in"]),
    "commas in most texts": (",", CLIPS, [SENTENCES[0], *CUT[1:]]),
    "a semicolon in a text": (";", CLIPS, SENTENCES),
    "a semicolon and a space in all": ("; ", CLIPS, [text.replace(",", ";") for text in CUT]),
    "a semicolon in each text": (";", CLIPS[:4], [text.replace(",", ";") for text in CUT[:4]]),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_a_table_that_can_be_read_in_two_ways_is_refused(five_clips, kind):
    write_cells(five_clips, *UNCLEAR[kind])
    with pytest.raises(DataError, match=r"(?s)metadata.csv line .*(--text_column|quotes)"):
        read_clips(five_clips)


def test_flags_name_the_columns(five_clips, tmp_path, capsys):
    write_cells(five_clips, "|", SENTENCES, CLIPS, OTHER_TEXTS)
    for text, expected in (("1", SENTENCES), ("3", OTHER_TEXTS)):
        assert [clip.transcript for clip in read_clips(five_clips, text_column=text)] == expected
    header = "one|two|three"
    write_cells(five_clips, "|", SENTENCES, CLIPS, OTHER_TEXTS, header=header)
    flags = ("--file_column", "2", "--text_column", "Three")
    both = pd.concat(run(five_clips, tmp_path / "out", *flags).values())
    assert set(both["normalized_transcript"]) == set(OTHER_TEXTS)
    flags = ("--path_to_ljspech", five_clips, "--path_to_save", tmp_path / "out", "--text_column")
    for value in ("four", "4", "0"):
        message = fail(capsys, *flags, value)
        assert f"--text_column {value}: " in message and "2 'two'" in message
    flags = ("--path_to_ljspech", make_pairs(tmp_path / "pairs"), *flags[2:], "2")
    assert "--text_column" in fail(capsys, *flags)


def test_a_column_named_text_may_have_numbers(five_clips):
    numbers, names = list("31245"), [f"Ann {text[-5:-1]}" for text in SENTENCES]
    write_cells(five_clips, "|", CLIPS, numbers, names, header="file|text|speaker")
    assert [clip.transcript for clip in read_clips(five_clips)] == numbers


def test_a_text_that_a_line_break_cuts_is_bad(five_clips):
    """Also the line before the break, which looks whole."""
    cut = ["Go home, \nnow.", '"Come in\nnow"', *SENTENCES[2:]]
    write_cells(five_clips, "\t", CLIPS, cut)
    bad = [clip.place for clip in read_clips(five_clips) if clip.problem]
    assert bad == [f"metadata.csv line {i}" for i in range(1, 5)]


def test_bars_keep_quotes_that_belong_to_the_text(five_clips):
    """Also of a text that begins and ends with one, where others show that they are no CSV's."""
    texts = ['"Go home."', '"Well," he said, "go."', 'the "end', '"a ""b"" c"', '"']
    write_cells(five_clips, "|", CLIPS, texts, texts)
    found = [clip.transcript for clip in read_clips(five_clips)]
    assert found == [*texts[:3], 'a "b" c', texts[4]]


@pytest.mark.parametrize(
    "text",
    [
        "[00:00.000 --> 00:02.500]  Hello.",
        "[0.00s -> 2.50s] Hello.",
        "1\n00:00:01,000 --> 00:00:04,000\nHello.",
        "WEBVTT\n\n00:01.000 --> 00:04.000\nHello.",
        "[00:12.34]Hello.",
        "0:00\nHello.\n0:07\nGo home.",
        "00:12 Hello.",
        "0.000000\t2.500000\tHello.",
        "start\tend\ttext\n0\t2500\tHello.",
        "0:00:00.599,0:00:04.160\nHello.",
        "1:05\nHello.",
        "5:12 Hello.\n5:15 Go home.",
        "<|0.00|> Hello.<|2.50|>",
        "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,Hello.",
        r"{\an8}Hello.",
        'Hello <break time="500ms"/> you.',
        r"{\rtf1\ansi Hello.}",
        "<!DOCTYPE html>\n<html>Hello.",
        "<p>Hello.",
        "Hello, <b>you</b>.",
        '{"text": "Hello."}',
        '[{"start": 0, "text": "Hello."}]',
        "H\0e\0l\0l\0o\0",
    ],
)
def test_a_text_that_holds_more_than_what_is_said_is_a_bad_row(tmp_path, capsys, text):
    folder = make_pairs(tmp_path / "voice")
    (folder / "clip3.txt").write_text(text)
    message = fail(capsys, "--path_to_ljspech", folder, "--path_to_save", tmp_path / "out")
    assert message.startswith("clip3.txt: 'clip3': clip3.txt has ") and "bad rows: 1" in message


@pytest.mark.parametrize(
    "text",
    [
        "At 10:30 he left.",
        "10:30 is late.",
        "10:30",
        "10:30 is late,\nsaid he.",
        "See John 3:16 [laughs] (4:5).",
        "It cost 3.50, or 3.5 4",
        "a < b > c <laugh> {HH AH0}",
        "1:2 is the ratio",
    ],
)
def test_times_and_signs_that_are_read_out_are_no_markup(text):
    assert find_markup(text) == ""


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
        "line 2: 'a': neither .wav nor .flac",
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


def test_a_quotation_over_several_clips_is_refused(tmp_path):
    """A CSV's quote would join their rows, and training would hear one clip with all texts."""
    corpus = make_corpus(tmp_path / "lj", 4)
    texts = ['"I came home late', "I ate some bread", 'and then I left"', "It rained all day"]
    rows = "".join(f"clip{i},{text}\n" for i, text in enumerate(texts))
    (corpus / "metadata.csv").write_text(rows)
    with pytest.raises(DataError, match=r"line 1 on .*a quote does not end before the next row"):
        read_clips(corpus)
    quoted = 'clip0,"I came\nhome ""late"""\nclip1,I ate some bread\nclip2,It rained all day\n'
    (corpus / "metadata.csv").write_text(quoted)
    assert read_clips(corpus)[0].transcript.split() == ["I", "came", "home", '"late"']


@pytest.mark.parametrize(
    ("table", "first"),
    [
        ("id,recording_file,text\n{i},clip{i}.wav", 0),  # ids that are numbers of rows
        ("id,source,text\n{n},{i}.wav", 0),  # and name a recording, though another
        (",nummer,satz\n{i},{n}", 1),  # all of these exist, of the others all but one
        ("nr;quelle;satz\n{n};{i}", None),  # all of both exist
        ("{n}\t{i}", None),
        ("id\tquelle\ttext\n{n}\t{i}", None),
        ("id\tfile\ttext\n{n}\t{i}", 0),  # says which
    ],
)
def test_row_numbers_are_not_taken_for_recordings(tmp_path, table, first):
    header, _, line = table.rpartition("\n")
    separator = next(c for c in ";\t," if c in line)
    for name in [f"clip{i}" for i in range(5)] + [str(i) for i in range(first or 0, 6)]:
        (tmp_path / "wavs").mkdir(exist_ok=True)
        write_wav(tmp_path / f"wavs/{name}.wav", 0.1)
    texts = ["Hello to you", "Good bye, my friend", "We walk home", "It rains a lot", "The end"]
    lines = [f'{line.format(i=i, n=i + 1)}{separator}"{text}"' for i, text in enumerate(texts)]
    (tmp_path / "metadata.csv").write_text("\n".join([header, *lines] if header else lines))
    if first is None:
        with pytest.raises(DataError, match=r"1 and 2 name different recordings, .*--file_column"):
            read_clips(tmp_path)
        assert [clip.path.stem for clip in read_clips(tmp_path, file_column="2")] == [*"01234"]
        return
    clips = read_clips(tmp_path)
    assert [clip.transcript for clip in clips] == texts and not any(c.problem for c in clips)
    assert [int(clip.path.stem[-1]) for clip in clips] == [first + i for i in range(5)]


def test_a_text_with_a_line_end_before_the_recordings_name_is_a_bad_row(tmp_path):
    corpus = make_corpus(tmp_path / "lj", 4)
    rows = ["text|file", "The first row|clip0.wav", "It begins here", "and ends here|clip1.wav"]
    (corpus / "metadata.csv").write_text("\n".join([*rows, "The last row|clip2.wav"]))
    problems = {clip.clip_id: clip.problem for clip in read_clips(corpus)}
    assert problems["clip1"] == "the text may begin in metadata.csv line 3"
    assert problems["clip0"] == problems["clip2"] == ""


def test_what_training_would_refuse_is_a_bad_row(tmp_path):
    """Too short, incomplete, of no rate of sound, or with a text that cannot be read."""
    folder = make_pairs(tmp_path / "voice")
    write_wav(folder / "clip1.wav", 0.03)
    sound = np.sin(np.arange(60_000) / 20)
    soundfile.write(folder / "whole.mp3", sound, 22050)
    content = (folder / "whole.mp3").read_bytes()
    (folder / "clip2.wav").write_bytes(content)
    (folder / "clip3.wav").write_bytes(content[: len(content) // 2])
    soundfile.write(folder / "clip4.wav", sound, 500)
    (folder / "clip5.txt").unlink()
    (folder / "clip5.txt").symlink_to("nowhere.txt")
    clips = {clip.clip_id: clip for clip in read_clips(folder)}
    found = {name: clip.problem for name, clip in clips.items() if clip.problem}
    expected = {
        "clip1": "lasts 0.030 s, less than 0.05 s",
        "clip3": "truncated: ",
        "clip4": "has a sampling rate of 500 Hz",
        "clip5": "No such file",
    }
    assert found.keys() == expected.keys()
    assert all(text in found[name] for name, text in expected.items())
    assert clips["clip2"].duration == pytest.approx(60_000 / 22050, abs=0.1)


def test_recordings_that_the_table_does_not_name_are_counted(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "lj", 4)
    read_clips(corpus)
    assert capsys.readouterr().err == ""
    write_wav(corpus / "wavs/new.wav", 0.1)
    write_wav(corpus / "clip9.wav", 0.1)
    read_clips(corpus)
    err = capsys.readouterr().err
    assert err == "Recordings that metadata.csv does not name: 2 ('clip9.wav')\n"


def test_a_text_belongs_to_the_recording_beside_it(tmp_path):
    """Not to one of the same name in wavs/, such as a raw take."""
    corpus = make_corpus(tmp_path / "lj", 2)
    (corpus / "metadata.csv").unlink()
    for i in range(2):
        write_wav(corpus / f"clip{i}.wav", 1)
        (corpus / f"clip{i}.txt").write_text(f"number {i}")
    assert {clip.path.parent for clip in read_clips(corpus) if not clip.problem} == {corpus}
