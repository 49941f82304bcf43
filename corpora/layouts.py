"""Read the clips of a folder: its recordings and the transcript of each, in any of three layouts.

    clips = read_clips(Path("my_voice"))   # all of them; clip.problem says why one cannot be used

1. LJSpeech's: metadata.csv with lines `id|raw|normalized`, or `id|text`, and wavs/ID.wav.
2. metadata.csv or transcripts.csv with a header that names a column for the recording and one for
   the text, separated by commas, semicolons, tabs or `|`.
3. NAME.txt beside NAME.wav.

A table's recordings are .wav or .flac files, in wavs/ or beside the table, and the table may name
them with or without that suffix. A header may also stand above LJSpeech's lines.
"""

import csv
import os
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from command_line.files import DataError, file_errors
from command_line.main import say
from corpora.recordings import SUFFIXES, Clip, check_audio, find_recording, map_clips, remove_suffix

CORPUS_NAME = "LJSpeech-1.1"
TABLES = ("metadata.csv", "transcripts.csv")
LAYOUTS = (
    "metadata.csv with lines id|raw|normalized or id|text and wavs/ID.wav, or "
    "metadata.csv or transcripts.csv with a header such as file,text, or NAME.txt beside NAME.wav"
)
# Patterns for names of columns, in lower case with underscores; the first that matches is used.
AUDIO_COLUMNS = (
    r"((file|audio|wav)_?)?path",
    r"(audio|wav)_file|file_?name",
    r"file|audio|wav|recording|clip",
    r"((clip|utterance)_)?id|name",
)
TEXT_COLUMNS = (
    r"normali[sz]ed(_(transcript|transcription|text|sentence))?",
    r"transcript|transcription|text|sentence",
    r"raw(_(transcript|text))?",
)
HEADERLESS = {2: ("id", "text"), 3: ("id", "raw", "normalized")}  # by number of columns
QUOTED = (",", ";")  # separators that may stand in a quoted text

Row = tuple[int, list[str]]  # the number of its first line, and its cells


class Columns(NamedTuple):
    """The columns of a table."""

    names: tuple[str, ...]
    audio: int
    text: int
    in_header: bool  # True where the first row holds the names


def find_table(folder: Path) -> Path | None:
    """Find the table of transcripts in a folder."""
    # Unlike Path.is_file, os.path.isfile returns False for any unusable name.
    return next((folder / name for name in TABLES if os.path.isfile(folder / name)), None)


def list_files(folder: Path) -> list[str]:
    """List the names in a folder, except hidden ones; [] if there is no such folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def escape_bytes(name: str) -> str:
    r"""Write the bytes of a file name that are not UTF-8 as \xff, so that it can be printed."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def find_pairs(folder: Path) -> dict[str, tuple[str, str]]:
    """Return {NAME: (NAME.wav or NAME.flac, NAME.txt or "")} for each recording in a folder."""
    names = list_files(folder)
    texts = {Path(name).stem: name for name in names if name.lower().endswith(".txt")}
    pairs = {}
    for suffix in SUFFIXES:
        for name in names:
            if name.endswith(suffix):
                stem = name.removesuffix(suffix)
                pairs.setdefault(stem, (name, texts.get(stem, "")))
    return dict(sorted(pairs.items()))


def holds_clips(folder: Path) -> bool:
    """Return True if a folder has transcripts in one of the layouts."""
    return find_table(folder) is not None or any(text for _, text in find_pairs(folder).values())


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without the line ends at its end."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        line_number = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not UTF-8: see line {line_number}.") from error


def find_separator(lines: list[str]) -> str:
    """Guess the separator: | if most lines have one, else the one that is first in most lines."""
    if 2 * sum("|" in line for line in lines) >= len(lines):
        return "|"  # texts have no |, but most have commas
    firsts = Counter(found[0] for found in (re.search("[\t;,]", line) for line in lines) if found)
    return firsts.most_common(1)[0][0] if firsts else "|"


def split_rows(lines: list[str], separator: str, path: Path) -> list[Row]:
    """Split a table into rows. Only with comma and semicolon may texts be quoted, as in a CSV."""
    if separator not in QUOTED:
        return [(i, line.removesuffix("\r").split(separator)) for i, line in enumerate(lines, 1)]
    options = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    reader = csv.reader((f"{line}\n" for line in lines), **options)
    rows, start = [], 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        hint = f'a text with quotes or "{separator}" is written "like ""this"""'
        raise DataError(f"{path} cannot be read from line {start} on ({error}); {hint}.") from None
    return rows


def find_column(cells: list[str], patterns: tuple[str, ...]) -> int | None:
    """Find the column whose name matches the first possible pattern."""
    names = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in cells]
    places = range(len(names))
    return next((i for p in patterns for i in places if re.fullmatch(p, names[i])), None)


def find_columns(path: Path, rows: list[Row]) -> Columns:
    """Decide which column names the recording, which has the text, and if there is a header."""
    line_number, cells = rows[0]
    audio, text = find_column(cells, AUDIO_COLUMNS), find_column(cells, TEXT_COLUMNS)
    if audio is not None and text is not None:
        return Columns(tuple(cells), audio, text, in_header=True)
    n_rows = Counter(len(cells) for _, cells in rows)
    if not any(n_rows[n] for n in HEADERLESS):
        found = f"{path} line {line_number} has the columns {', '.join(cells)[:200]!r}"
        raise DataError(f"{found}; expected {LAYOUTS}")
    width = 2 if n_rows[2] > n_rows[3] else 3
    # A first cell such as "file" names a column if no recording has that name.
    looks_like_header = audio == 0 and len(cells) == width
    if looks_like_header and find_recording(Path(cells[0]), path.parent) is None:
        return Columns(tuple(cells), 0, width - 1, in_header=True)
    return Columns(HEADERLESS[width], 0, width - 1, in_header=False)


def clean_name(name: str) -> str:
    """Return a recording's path in the folder, with / and without wavs/; "" if it is outside."""
    path = PureWindowsPath(name)  # understands both / and \
    if path.root or ".." in path.parts or not path.parts or "\0" in name:
        return ""
    return path.as_posix().removeprefix("wavs/")


def read_row(cells: list[str], columns: Columns, separator: str, place: str) -> Clip:
    """Make a clip from a row of a table. Its path is the one in the table, not yet looked up."""
    if len(cells) != len(columns.names):
        expected = separator.join(columns.names)
        problem = f"{len(cells)} columns instead of {len(columns.names)} ({expected})"
        if separator in QUOTED:
            problem += '; a text with commas or semicolons needs "quotes"'
        return Clip(place, cells[0], cells[-1], problem=problem)
    name, transcript, problem = clean_name(cells[columns.audio]), cells[columns.text], ""
    if not name:
        problem = "the id is not a plain file name, or a path inside the folder"
    elif not transcript.strip():
        problem = "empty transcript"
    clip_id = remove_suffix(name) or cells[columns.audio]
    return Clip(place, clip_id, transcript, Path(name), problem=problem)


def read_table(path: Path) -> list[Clip]:
    """Read the rows of metadata.csv or transcripts.csv, with their texts unchanged."""
    lines = read_text(path).split("\n")  # splitlines() would also break at U+2028 and others
    separator = find_separator(lines)
    rows = split_rows(lines, separator, path)
    if not rows or not any(map(str.strip, lines)):
        raise DataError(f"{path} is empty.")
    columns = find_columns(path, rows)
    clips, first_lines = [], {}  # the line of each id
    for line_number, cells in rows[columns.in_header :]:
        clip = read_row(cells, columns, separator, f"{path.name} line {line_number}")
        first = line_number if clip.problem else first_lines.setdefault(clip.clip_id, line_number)
        if first != line_number:
            clip = clip._replace(problem=f"duplicate id, first on line {first}")
        clips.append(clip)
    if not clips:
        raise DataError(f"{path} has a header and no rows.")
    return clips


def read_pairs(folder: Path) -> list[Clip]:
    """Read the text file beside each recording; count those without a recording on stderr."""
    pairs = find_pairs(folder)
    clips = []
    for stem, (recording, text_file) in pairs.items():
        name = escape_bytes(stem)
        transcript, problem = "", ""
        try:
            if name != stem:
                problem = "the file name is not UTF-8, as manifests are"
            elif not text_file:
                problem = f"missing: {folder / stem}.txt"
            elif not (transcript := " ".join(read_text(folder / text_file).split())):
                problem = "empty transcript"
        except DataError as error:
            problem = str(error)
        clips.append(Clip(f"{name}.txt", name, transcript, Path(recording), problem=problem))
    texts = {name for name in list_files(folder) if name.lower().endswith(".txt")}
    if alone := sorted(texts - {text for _, text in pairs.values()}):
        say(f"Text files that have no recording: {len(alone)} ({alone[0]!r})", file=sys.stderr)
    return clips


def check_corpus(folder: Path) -> None:
    """Raise a DataError unless a folder has transcripts in one of the layouts."""
    flag = f"--path_to_ljspech {folder}"
    if escape_bytes(str(folder)) != str(folder):
        raise DataError(f"{flag} is not UTF-8, as manifests are")
    if holds_clips(folder):
        return
    problem = "has no transcripts" if os.path.isdir(folder) else "is not a folder"
    for near in (folder / CORPUS_NAME, folder / "wavs", folder.parent):
        if holds_clips(near):
            raise DataError(f"{flag} {problem}; did you mean {near}?")
    kinds = Counter(Path(name).suffix or "without suffix" for name in list_files(folder))
    found = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5)) or "nothing"
    raise DataError(f"{flag} {problem}: found {found}, expected {LAYOUTS}")


def read_clips(folder: Path) -> list[Clip]:
    """Read all clips of a folder, in the order of its table or by name, and check their audio."""
    folder = Path(os.path.abspath(folder))
    check_corpus(folder)
    table = find_table(folder)
    with file_errors():
        clips = read_table(table) if table else read_pairs(folder)
    return map_clips(partial(check_audio, folder=folder), clips, "checking")
