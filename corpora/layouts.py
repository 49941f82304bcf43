"""Read the clips of a folder: its recordings and the transcript of each, in any of three layouts.

    clips = read_clips(Path("my_voice"))   # all of them; clip.problem says why one cannot be used

1. LJSpeech's: metadata.csv with lines `id|raw|normalized`, or `id|text`, and wavs/ID.wav.
2. metadata.csv or transcripts.csv with other columns, with or without a header: see tables.py.
3. NAME.txt beside NAME.wav, or NAME.normalized.txt (LibriTTS), or NAME.wav.txt (Whisper).

A table's recordings are .wav or .flac files, in wavs/ or beside the table. The table may name them
without that suffix, or with that of the files that they were converted from.
"""

import os
import re
import sys
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

from command_line.files import DataError, file_errors
from command_line.main import say
from corpora.recordings import AUDIO_SUFFIX, SUFFIXES, Clip, check_audio, map_clips, remove_suffix
from corpora.tables import read_table
from corpora.texts import find_markup, read_text

CORPUS_NAME = "LJSpeech-1.1"
TABLES = ("metadata.csv", "transcripts.csv")
LAYOUTS = (
    "metadata.csv with lines id|raw|normalized or id|text and wavs/ID.wav, or "
    "metadata.csv or transcripts.csv with a header such as file,text, or NAME.txt beside NAME.wav"
)


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


def name_recording(text_file: str) -> str:
    """Return NAME for NAME.normalized.txt, NAME.wav.txt and their like."""
    stem = Path(text_file).stem
    return re.sub(r"(?<=.)\.(normalized|original)\Z", "", AUDIO_SUFFIX.sub("", stem))


def find_pairs(folder: Path) -> dict[str, tuple[str, str]]:
    """Return {NAME: (NAME.wav or NAME.flac, its text file or "")} for each recording."""
    names = list_files(folder)
    text_files = [name for name in names if name.lower().endswith(".txt")]
    text_files.sort(key=lambda name: ".original." in name)  # LibriTTS has .normalized. too
    texts = {}
    for name in text_files:
        texts.setdefault(name_recording(name), name)
    texts |= {Path(name).stem: name for name in text_files}
    recordings = [name for name in names if remove_suffix(name) != name]
    recordings.sort(key=lambda name: [*SUFFIXES, Path(name).suffix].index(Path(name).suffix))
    pairs = {}
    for name in recordings:
        stem = remove_suffix(name)
        pairs.setdefault(stem, (name, texts.get(stem, "")))
    return dict(sorted(pairs.items()))


def holds_clips(folder: Path) -> bool:
    """Return True if a folder has transcripts in one of the layouts."""
    return find_table(folder) is not None or any(text for _, text in find_pairs(folder).values())


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
            elif markup := find_markup(text := read_text(folder / text_file)):
                problem = f"{text_file} has {markup}"
            elif not (transcript := " ".join(text.split())):
                problem = "empty transcript"
        except (DataError, OSError) as error:
            problem = str(error)
        clips.append(Clip(f"{name}.txt", name, transcript, folder / recording, problem=problem))
    texts = [name for name in list_files(folder) if name.lower().endswith(".txt")]
    if alone := [
        name for name in texts if not {Path(name).stem, name_recording(name)} & set(pairs)
    ]:
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


def read_clips(
    folder: Path, file_column: str | None = None, text_column: str | None = None
) -> list[Clip]:
    """Read all clips of a folder, in the order of its table or by name, and check their audio.

    Args:
        file_column, text_column: of its table, by name or by number from 1; None finds them.
    """
    folder = Path(os.path.abspath(folder))
    check_corpus(folder)
    table = find_table(folder)
    if not table and (file_column or text_column):
        raise DataError(
            f"--file_column and --text_column are for {' and '.join(TABLES)}; {folder} has neither"
        )
    with file_errors():
        clips = read_table(table, file_column, text_column) if table else read_pairs(folder)
    clips = map_clips(partial(check_audio, folder=folder), clips, "checking")
    if table and not any(clip.problem for clip in clips):
        count_unnamed(table, clips)
    return clips


def count_unnamed(table: Path, clips: list[Clip]) -> None:
    """Count on stderr the recordings, beside a table or in its wavs/, that no row names."""
    compose = partial(unicodedata.normalize, "NFC")
    named = {compose(AUDIO_SUFFIX.sub("", clip.clip_id)) for clip in clips}
    files = [name for place in (table.parent, table.parent / "wavs") for name in list_files(place)]
    recordings = {
        name: compose(remove_suffix(name)) for name in files if remove_suffix(name) != name
    }
    if unnamed := [name for name, stem in recordings.items() if stem not in named]:
        count = f"{len(unnamed)} ({escape_bytes(unnamed[0])!r})"
        say(f"Recordings that {table.name} does not name: {count}", file=sys.stderr)
