"""Read the texts of a table for synthesize.py --text_file, and tell tables from sentences."""

import json
import re
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from command_line.files import DataError
from command_line.main import warn
from corpora.recordings import remove_suffix
from corpora.tables import (
    AUDIO_COLUMNS,
    HOW_TO_NAME,
    NAME,
    OUTSIDE,
    TEXT_COLUMNS,
    find_named,
    read_table,
    split_lines,
)
from corpora.texts import find_markup
from text.markup import strip_markup

AUDIO_NAME = r"[^,;|\t]*\.(?:wav|flac|mp3|ogg|opus|m4a|aac)"
FILE_FIRST = rf'(?i)"?(?:{AUDIO_NAME}"?[,;](?=\S)|(?=\S+[,;]){AUDIO_NAME}"?[,;])'
_FILE = r"\W*[\w -]*(?:path|file|audio|wav|clip|id|name)\W*"
_TEXT = r"\W*[\w -]*(?:text|transcript|transcription|sentence)\W*"
HEADER = re.compile(rf"(?i){_FILE}[,;](?:.*[,;])?{_TEXT}(?:[,;].*)?|{_TEXT}[,;](?:.*[,;])?{_FILE}")
RULE = r":?-+:?"  # under the name of a column in Markdown


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
    named = [line for line in lines if re.fullmatch(rf"(?i){AUDIO_NAME}(?:\s[^,;|\t]*)?", line)]
    # Arrows, tags and NUL are read or left out; the times of subtitles are found without them.
    markup = find_markup(strip_markup("\n".join(lines).replace("-->", "-"))[0])
    if markup and not markup.startswith(("HTML", "NUL")):
        problem = f"holds {markup}"
    elif lines and all(re.fullmatch(r'\(\s*\S+\s+".*"\s*\)', line) for line in lines):
        problem = "holds the prompts of Festival"
    elif named and 2 * len(named) >= len(lines):
        problem = "names recordings, and no | or tab stands between them and a text"
    elif (
        len(lines) == len(first_words) > len(shapes) == 1
        and re.fullmatch(r"[A-Za-z_./-]*[A-Za-z_-]+0[\w.-]*:?|0-[\w-]*:?", *shapes)
        and not any(re.match(r"\S+[|\t,;]|\S+\s*\t", line) for line in lines)
    ):
        problem = f"begins each line with an id, such as {lines[0].split()[0]!r}"
    if problem:
        table = "columns such as id|text, with | or tabs between them"
        raise DataError(f"--text_file {path}: {problem}; expected a sentence a line, or {table}")
    if any(re.fullmatch(rf"\|?(?:\s*{RULE}\s*\|)+(?:\s*{RULE})?", line) for line in lines):
        [(_, names)] = split_lines([lines[0].strip("|")], "|")
        return bool(find_named(names, AUDIO_COLUMNS) and find_named(names, TEXT_COLUMNS))
    ids = {line.split(",")[0].split(";")[0] for line in lines}
    lines = [re.sub(r"(?<=[\u0900-\u0dff]) ?\|+(?=\s|$)", "", line) for line in lines]  # dandas
    return bool(lines) and (
        path.lower().endswith((".csv", ".tsv"))
        or any(2 * sum(s in line.strip("|") for line in lines) >= len(lines) for s in "|\t")
        or is_header(lines[0])
        or 2 * sum(bool(re.match(FILE_FIRST, line)) for line in lines) >= len(lines)
        or (
            len(lines) == len(ids) > 1
            and all(
                re.match(r"\d+[,;][^\s\d]|(?!\d+\s?[,;])[\w./-]*\d[\w./-]*\s?[,;][^\s\d]", line)
                for line in lines
            )
        )
    )


def is_header(line: str) -> bool:
    """Return True for names of columns, False for a sentence such as "Your name, then a text."."""
    cells = [cell.strip(' "') for cell in re.split("[,;]", line)]
    return bool(HEADER.fullmatch(line)) and all(NAME.fullmatch(cell) for cell in cells if cell)


def read_rows(path: str) -> list[tuple[str, str, str]]:
    """Read a table that prep_splits.py would read: the text, place and file name of each row."""
    try:
        clips = read_table(Path(path))
    except DataError as error:
        message = str(error).replace(HOW_TO_NAME, "; expected columns such as id|text")
        raise DataError(f"--text_file {message}") from None
    except OSError as error:
        raise DataError(f"--text_file {path}: {error}") from None
    rows = []
    for clip in clips:
        place = f"--text_file {path}, {clip.place.split(' ', 1)[-1]}"
        name = remove_suffix(PureWindowsPath(clip.clip_id).name)
        if not clip.clip_id + clip.transcript.strip() or re.fullmatch(RULE, clip.clip_id):
            continue  # a blank line, or the rule of a table in Markdown
        if not clip.transcript.strip():
            warn(f"{place}: there is no text beside {clip.clip_id!r}; the row is left out")
        elif (clip.problem and clip.problem != OUTSIDE) or name in ("", ".", ".."):
            raise DataError(f"{place}: {clip.problem or 'there is no id'}")
        else:
            rows.append((clip.transcript, place, name))
    return rows
