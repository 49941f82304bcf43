"""The recordings of a folder and their transcripts, in any of three layouts.

    clips = read_clips(Path("my_voice"))   # all rows; bad ones say what their problem is

1. LJSpeech's: metadata.csv of lines `id|raw|normalized`, or `id|text`, and wavs/ID.wav.
2. metadata.csv or transcripts.csv with a header that names a column for the recording and one for
   the text; between them is a comma, semicolon, tab or `|`.
3. NAME.txt beside NAME.wav.

The recordings of a table lie in wavs/ or beside it, .wav or .flac, and may be named with or without
that ending. A header may also stand above LJSpeech's lines.
"""

import csv
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from command_line.files import DataError, file_errors

CORPUS_NAME = "LJSpeech-1.1"
TABLES = ("metadata.csv", "transcripts.csv")
SUFFIXES = (".wav", ".flac", ".WAV", ".FLAC")
# Names of columns, in lower case and with underscores; of several, the first of this list counts.
AUDIO_COLUMNS = (
    "file_path", "filepath", "audio_path", "wav_path", "path", "audio_file", "wav_file",
    "file_name", "filename", "file", "audio", "wav", "recording", "clip", "clip_id",
    "utterance_id", "id", "name",
)  # fmt: skip
TEXT_COLUMNS = (
    "normalized_transcript", "normalized_transcription", "normalized_text", "normalized_sentence",
    "normalized", "normalised_transcript", "normalised_text", "normalised", "transcript",
    "transcription", "text", "sentence", "raw_transcript", "raw_text", "raw",
)  # fmt: skip
HEADERLESS = {2: ("id", "text"), 3: ("id", "raw", "normalized")}
QUOTED = (",", ";")  # separators that a text in quotes may hold
LAYOUTS = """
  metadata.csv of lines id|raw|normalized or id|text, and wavs/ID.wav or .flac (LJSpeech)
  metadata.csv or transcripts.csv with a header such as file,text
  NAME.txt beside NAME.wav or NAME.flac"""
MAX_LISTED = 10  # rows that a list names
# libsndfile's note on a wav that ends early; a size of 0 or 2^32 - 1 only says "unknown".
TRUNCATED = re.compile(r"^data : (?!0 |4294967295 )(\d+) \(should be (\d+)\)", re.MULTILINE)
BLOCK_SIZE = 2**18  # samples that are read at once, so that a long recording needs no more memory


class Clip(NamedTuple):
    """A recording and its text. path is absolute once the recording is found."""

    place: str  # where its text stands: "metadata.csv line 3"
    clip_id: str  # its path in the folder, without wavs/ and without .wav or .flac
    transcript: str
    path: Path = Path()  # at first relative, as the table names it
    duration: float = 0.0  # seconds, once the recording is checked
    problem: str = ""  # why it cannot be used


def find_table(folder: Path) -> Path | None:
    """The file of transcripts in a folder, if it has one."""
    # Unlike Path's methods, os.path's are False for any unusable name.
    return next((folder / name for name in TABLES if os.path.isfile(folder / name)), None)


def list_files(folder: Path) -> list[str]:
    """Names of the files and folders in a folder, hidden ones left out; [] if it is none."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def find_pairs(folder: Path) -> dict[str, tuple[str, str]]:
    """Of every NAME.wav or .flac in the folder its name and that of NAME.txt, "" if that lacks."""
    names = list_files(folder)
    texts = {Path(name).stem: name for name in names if name.lower().endswith(".txt")}
    pairs = {}
    for suffix in reversed(SUFFIXES):  # so that .wav comes last, and counts
        for name in names:
            if name.endswith(suffix):
                stem = name.removesuffix(suffix)
                pairs[stem] = (name, texts.get(stem, ""))
    return dict(sorted(pairs.items()))


def holds_clips(folder: Path) -> bool:
    """Whether the folder has transcripts in one of the layouts."""
    return find_table(folder) is not None or any(text for _, text in find_pairs(folder).values())


def describe_content(folder: Path) -> str:
    """What is in a folder, in a few words: "12 .wav, 1 folder"."""
    kinds: Counter[str] = Counter()
    for name in list_files(folder):
        is_folder = os.path.isdir(folder / name)
        kinds["folder" if is_folder else Path(name).suffix or "file without ending"] += 1
    if kinds["folder"] > 1:
        kinds["folders"] = kinds.pop("folder")
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5)) or "nothing"


def check_corpus(folder: Path) -> None:
    """Checks that the folder has transcripts in one of the layouts.

    Raises:
        DataError: with a hint where to look, or what the layouts are and what was found.
    """
    flag = f"--path_to_ljspech {folder}"
    if not holds_clips(folder):
        is_folder = os.path.isdir(folder)
        places = (folder / CORPUS_NAME, folder / "wavs", folder.parent)
        near = [path for path in places if holds_clips(path)]
        problem = "has no metadata.csv in it" if is_folder else "is not a folder"
        if near:
            raise DataError(f"{flag} {problem}; did you mean {near[0]}?")
        if not is_folder:
            raise DataError(f"{flag} {problem}.")
        content = describe_content(folder)
        raise DataError(f"{flag} has no transcripts; found {content}, expected one of{LAYOUTS}")
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise DataError(f"{flag} is not UTF-8, as manifests are.") from None


def clean_name(name: str) -> str:
    """A recording's path in the folder, with / and without wavs/; "" if it would leave the folder.

    A Windows path knows both / and \\.
    """
    path = PureWindowsPath(name)
    if path.root or ".." in path.parts or not path.parts or "\0" in name:
        return ""
    return path.as_posix().removeprefix("wavs/")


def without_suffix(name: str) -> str:
    """'a/b.wav' -> 'a/b'; only .wav and .flac are endings, as ids may hold dots."""
    return re.sub(r"(?<=[^/])\.(wav|flac)\Z", "", name, flags=re.IGNORECASE)


def read_text(path: Path) -> str:
    """A text file without line ends at its end.

    Raises:
        DataError: naming the line that is not UTF-8.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        line_number = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not UTF-8: see line {line_number}.") from error


def find_separator(lines: list[str]) -> str:
    """What separates the columns: | where most lines have it, else what most lines have first."""
    if 2 * sum("|" in line for line in lines) >= len(lines):
        return "|"  # no text has it, whereas most have commas
    firsts = Counter(found[0] for found in (re.search("[\t;,]", line) for line in lines) if found)
    return firsts.most_common(1)[0][0] if firsts else "|"


def split_rows(lines: list[str], separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """The number of each row's first line and its columns.

    With | and tab there is no quoting, as in LJSpeech, where a lone double quote is text. With a
    comma or semicolon there is, and blank lines are left out.

    Raises:
        DataError: where quotes do not close.
    """
    if separator not in QUOTED:
        return [(i, line.removesuffix("\r").split(separator)) for i, line in enumerate(lines, 1)]
    options = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    reader = csv.reader((f"{line}\n" for line in lines), **options)
    rows, start = [], 1
    try:
        for columns in reader:
            if any(map(str.strip, columns)):
                rows.append((start, columns))
            start = reader.line_num + 1
    except csv.Error as error:
        hint = f'a text with quotes or "{separator}" is written "like ""this"""'
        raise DataError(f"{path} cannot be read from line {start} on ({error}); {hint}.") from None
    return rows


def find_columns(path: Path, rows: list[tuple[int, list[str]]]) -> tuple[list[str], int, int]:
    """The header's cells ([] if there is none) and the columns of the recording and of the text.

    Raises:
        DataError: when the rows are neither LJSpeech's nor have a header that names a text.
    """
    cells = rows[0][1]
    names = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in cells]
    audio = next((names.index(name) for name in AUDIO_COLUMNS if name in names), None)
    text = next((names.index(name) for name in TEXT_COLUMNS if name in names), None)
    if audio is not None and text is not None:
        return cells, audio, text
    n_rows = Counter(len(columns) for _, columns in rows)
    if not any(n_rows[n] for n in HEADERLESS):
        found = f"{path} line {rows[0][0]} has the columns {', '.join(cells)[:200]!r}"
        raise DataError(f"{found}; expected one of{LAYOUTS}")
    width = 2 if n_rows[2] > n_rows[3] else 3
    # "file|words": a name that no recording has is that of a column.
    is_header = audio == 0 and len(cells) == width
    if is_header and find_recording(Path(cells[0]), path.parent) is None:
        return cells, 0, width - 1
    return [], 0, width - 1


def read_table(path: Path) -> list[Clip]:
    """The rows of metadata.csv or transcripts.csv, all text untouched. Only "\\n" ends a line.

    Raises:
        DataError: if it is empty, not UTF-8 or no table of recordings and texts.
    """
    lines = read_text(path).split("\n")  # splitlines() would also break at U+2028 and others
    separator = find_separator(lines)
    rows = split_rows(lines, separator, path)
    if not rows or not any(map(str.strip, lines)):
        raise DataError(f"{path} is empty.")
    header, audio, text = find_columns(path, rows)
    expected = header or HEADERLESS[text + 1]

    clips = []
    first_places: dict[str, int] = {}  # id -> the line that has it
    for line_number, columns in rows[1:] if header else rows:
        clip_id, transcript, path_in_folder, problem = columns[0], columns[-1], "", ""
        if len(columns) != len(expected):
            problem = f"{len(columns)} columns instead of {len(expected)}"
            problem += f" ({separator.join(expected)})"
            if separator in QUOTED:
                problem += '; a text with commas or semicolons needs "quotes"'
        else:
            clip_id, transcript = columns[audio], columns[text]
            path_in_folder = clean_name(clip_id)
            clip_id = without_suffix(path_in_folder) or clip_id
            if not path_in_folder:
                problem = "the id is not a plain file name, or a path inside the folder"
            elif not transcript.strip():
                problem = "empty transcript"
            elif first_places.setdefault(clip_id, line_number) != line_number:
                problem = f"duplicate id, first on line {first_places[clip_id]}"
        place = f"{path.name} line {line_number}"
        clips.append(Clip(place, clip_id, transcript, Path(path_in_folder), problem=problem))
    if not clips:
        raise DataError(f"{path} has a header and no rows.")
    return clips


def read_pairs(folder: Path) -> list[Clip]:
    """The recordings that have a text file of their name beside them, and those that lack one.

    A text of several lines becomes one line. Text files without a recording, such as README.txt,
    are counted on stderr.
    """
    pairs = find_pairs(folder)
    clips = []
    for stem, (recording, text_file) in pairs.items():
        name = os.fsencode(stem).decode(errors="backslashreplace")  # can be printed, whatever it is
        transcript, problem = "", ""
        if name != stem:
            problem = "the file name is not UTF-8, as manifests are"
        elif not text_file:
            problem = f"missing: {folder / stem}.txt"
        else:
            try:
                transcript = " ".join(read_text(folder / text_file).split())
            except DataError as error:
                problem = str(error)
        if not problem and not transcript:
            problem = "empty transcript"
        clips.append(Clip(f"{name}.txt", name, transcript, Path(recording), problem=problem))
    texts = {name for name in list_files(folder) if name.lower().endswith(".txt")}
    if alone := sorted(texts - {text for _, text in pairs.values()}):
        print(f"Text files that have no recording: {len(alone)} ({alone[0]!r})", file=sys.stderr)
    return clips


def candidates(name: Path, folder: Path) -> list[Path]:
    """Where a recording may lie, likeliest first."""
    stem = without_suffix(str(name))
    names = [str(name)] if stem != str(name) else []
    # macOS may spell an accented letter of a file name as two characters where the table has one.
    for form in dict.fromkeys((stem, *(unicodedata.normalize(x, stem) for x in ("NFC", "NFD")))):
        names += [f"{form}{suffix}" for suffix in SUFFIXES]
    return [place / name for place in (folder / "wavs", folder) for name in names]


def find_recording(name: Path, folder: Path) -> Path | None:
    """The file of a recording that a table names, with or without ending; None if there is none."""
    return next((path for path in candidates(name, folder) if os.path.isfile(path)), None)


def read_blocks(path: Path, block_size: int = BLOCK_SIZE) -> Iterator[np.ndarray]:
    """The samples of a recording, float32 arrays (at most block_size, channels).

    Raises:
        OSError, soundfile.SoundFileError: as soundfile does.
    """
    with soundfile.SoundFile(path) as file:
        while len(block := file.read(block_size, dtype="float32", always_2d=True)):
            yield block


def check_audio(clip: Clip, folder: Path) -> Clip:
    """Adds path and duration, from a wav's header or a whole flac, or the problem with it."""
    if clip.problem:
        return clip
    path = find_recording(clip.path, folder)
    if path is None:
        problem = f"missing: {candidates(clip.path, folder)[0]}"
        if clip.path.suffix and os.path.isfile(folder / clip.path):
            problem = f"neither .wav nor .flac: {folder / clip.path}"
        return clip._replace(problem=problem)
    clip = clip._replace(path=path)
    try:
        info = soundfile.info(path)
        # What a wav's header cannot tell: whether a flac is whole, and whether floats are numbers.
        read = info.format == "FLAC" or info.subtype in ("FLOAT", "DOUBLE")
        finite = not read or all(np.isfinite(block).all() for block in read_blocks(path))
    except (soundfile.SoundFileError, OSError) as error:
        return clip._replace(problem=f"unreadable: {error}")
    if info.frames <= 0:
        return clip._replace(problem=f"zero-length: no samples in {path}")
    if not finite:
        return clip._replace(problem=f"NaN or infinite samples in {path}")
    if promised := TRUNCATED.search(info.extra_info):
        missing = f"{promised[2]} bytes of samples instead of {promised[1]}"
        return clip._replace(problem=f"truncated: {missing} in {path}")
    return clip._replace(duration=info.frames / info.samplerate)


def check_found(clips: list[Clip], table: Path) -> None:
    """Raises DataError if recordings are missing and not one is there: the folder must be wrong."""
    missing = [clip for clip in clips if clip.problem.startswith("missing: ")]
    if not missing or any(clip.path.is_absolute() for clip in clips):
        return
    folder, wavs = table.parent, table.parent / "wavs"
    if os.path.isdir(wavs):
        lacks, content = "", f"in wavs {describe_content(wavs)}"
    else:
        lacks, content = " has no wavs folder in it, and", describe_content(folder)
    first = candidates(missing[0].path, folder)[0].name
    raise DataError(
        f"--path_to_ljspech {folder}{lacks} has none of the {len(missing)} recordings of "
        f"{table.name}: looked for {first} or .flac in wavs and beside it, found {content}."
    )


def read_clips(folder: Path) -> list[Clip]:
    """All clips of a folder, in the order of its table or by name, their audio checked.

    Raises:
        DataError: if the table cannot be used, or not one of its recordings is there.
    """
    folder = Path(os.path.abspath(folder))
    table = find_table(folder)
    with file_errors():
        rows = read_table(table) if table else read_pairs(folder)
    with ThreadPoolExecutor() as pool:
        checked = pool.map(partial(check_audio, folder=folder), rows)
        clips = list(tqdm(checked, total=len(rows), desc="checking", unit="clip", disable=None))
    if table:
        check_found(clips, table)
    return clips


def describe_problems(clips: list[Clip]) -> list[str]:
    """A line for each clip that cannot be used, for the first ten."""
    bad = [clip for clip in clips if clip.problem]
    lines = [f"{clip.place}: {clip.clip_id!r}: {clip.problem}" for clip in bad[:MAX_LISTED]]
    return [*lines, f"and {len(bad) - MAX_LISTED} more"] if len(bad) > MAX_LISTED else lines
