"""Read the texts of a table for synthesize.py --text_file, and tell tables from sentences."""

import json
import re
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from command_line.files import DataError
from command_line.main import warn
from corpora.layouts import read_table
from corpora.recordings import remove_suffix

AUDIO_NAME = r"[^,;|\t]*\.(?:wav|flac|mp3|ogg|opus|m4a|aac)"
_FILE = r"\W*[\w -]*(?:path|file|audio|wav|clip|id|name)\W*"
_TEXT = r"\W*[\w -]*(?:text|transcript|transcription|sentence)\W*"
HEADER = re.compile(rf"(?i){_FILE}[,;](?:.*[,;])?{_TEXT}(?:[,;].*)?|{_TEXT}[,;](?:.*[,;])?{_FILE}")
OUTSIDE = "the id is not a plain file name, or a path inside the folder"  # what a row may be


def is_table(path: str, lines: list[str]) -> bool:
    """Tell if the lines of a --text_file are rows with ids or paths, not sentences.

    A list that prep_splits.py would not read, such as JSON or "id text", is a DataError.
    """
    problem = ""
    with suppress(ValueError, IndexError):
        if lines[0][0] in "[{" and json.loads(lines[0] if lines[0][-1] in "]}" else "".join(lines)):
            problem = "holds JSON"
    shapes = {re.sub(r"\d+", "0", line.split()[0]) for line in lines}
    first_words = {line.split()[0] for line in lines}
    if any("-->" in line and re.search(r"\d:\d\d", line) for line in lines):
        problem = "holds the times of subtitles"
    elif any(re.fullmatch(rf"(?i){AUDIO_NAME}(?:\s[^,;|\t]*)?", line) for line in lines):
        problem = "names recordings, and no | or tab stands between them and a text"
    elif (
        len(lines) == len(first_words) > len(shapes) == 1
        and re.fullmatch(r"[A-Za-z_./-]*[A-Za-z_-]+0[\w.-]*|0-[\w-]*", *shapes)
        and not any(re.match(r"\S+[|\t,;]|\S+\s*\t", line) for line in lines)
    ):
        problem = f"begins each line with an id, such as {lines[0].split()[0]!r}"
    if problem:
        table = "columns such as id|text, with | or tabs between them"
        raise DataError(f"--text_file {path}: {problem}; expected a sentence a line, or {table}")
    ids = {line.split(",")[0].split(";")[0] for line in lines}
    return bool(lines) and (
        path.lower().endswith((".csv", ".tsv"))
        or any(2 * sum(s in line.strip("|") for line in lines) >= len(lines) for s in "|\t")
        or HEADER.fullmatch(lines[0]) is not None
        or 2 * sum(bool(re.match(rf'(?i)"?{AUDIO_NAME}"?\s*[,;]', x)) for x in lines) >= len(lines)
        or (
            len(lines) == len(ids) > 1
            and all(re.match(r"[\w./-]*\d[\w./-]*\s?[,;]\s?\D", line) for line in lines)
        )
    )


def read_rows(path: str) -> list[tuple[str, str, str]]:
    """Read a table that prep_splits.py would read: the text, place and file name of each row."""
    try:
        clips = read_table(Path(path))
    except (DataError, OSError) as error:
        raise DataError(f"--text_file {path}: {error}") from None
    rows = []
    for clip in clips:
        place = f"--text_file {path}, {clip.place.split(' ', 1)[-1]}"
        name = remove_suffix(PureWindowsPath(clip.clip_id).name)
        if not clip.transcript.strip():
            warn(f"{place}: there is no text beside {clip.clip_id!r}; the row is left out")
        elif (clip.problem and clip.problem != OUTSIDE) or name in ("", ".", ".."):
            raise DataError(f"{place}: {clip.problem or 'there is no id'}")
        else:
            rows.append((clip.transcript, place, name))
    return rows
