"""Read a table of recordings and their texts, whichever of its columns hold them.

    clips = read_table(Path("metadata.csv"))   # clip.problem says why a row cannot be used

Bars, tabs, semicolons or commas separate the columns, and a header may name them. What the cells
hold decides: the column of the files has names of recordings, that of the texts has sentences that
vary. Of two columns with much the same sentences, as LJSpeech's raw and normalized text, the last
is read. A table that leaves it open which column has the text is refused.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from command_line.files import DataError
from command_line.main import say
from corpora.recordings import AUDIO_SUFFIX, Clip, find_recording
from corpora.texts import find_markup, read_text

# Patterns for names of columns, in lower case with underscores; the first that matches is used.
AUDIO_COLUMNS = (
    r"((file|audio|wav|clip)_?)?(file)?path",
    r"(audio|wav)_file(_?name)?|file_?name",
    r"file|audio|wav|recording|clip",
    r"((clip|utterance|utt|file|audio)_)?id|name",
)
TEXT_COLUMNS = (
    r"(normali[sz]ed|clean(ed)?)(_(transcript|transcription|text|sentence))?",
    r"transcript|transcription|text|sentence",
    r"raw(_(transcript|text))?",
)
# Of a column, in any language: up to three words, such as "Dauer (s)" or "texte de l'audio".
NAME = re.compile(r"[^\W\d_][^\s\d.,;:!?/\\]*(?:[ -]+[^\s\d.,;:!?/\\]+){0,2}")
QUOTED = (",", ";")  # separators that may stand in a text, which then has quotes around it
SAMPLE = 100  # rows that are looked at to tell the columns apart
# Letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Han.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
WORD = re.compile(r"(?<!\w)[^\W\d_]+(?![\d_])")  # "happy", but not "p225" or "3.5s"

HOW_TO_NAME = ": --text_column and --file_column take the number or name of a column"
OUTSIDE = "the id is not a plain file name, or a path inside the folder"

Row = tuple[int, list[str]]  # the number of its first line, and its cells


class Columns(NamedTuple):
    """The columns of a table."""

    file: int
    text: int
    width: int  # how many there are
    names: tuple[str, ...]  # of the header, () without one


def find_separator(lines: list[str]) -> str:
    """Guess the separator: a bar or tab that most lines have, else semicolon or comma."""
    if all("||" in line and "|" not in line.replace("||", "") for line in lines if line.strip()):
        return "||"  # as in Coqui's documentation
    for separator in "|\t":
        if 2 * sum(separator in line for line in lines) >= len(lines):
            return separator  # texts have neither, but most have commas
    bare = re.sub(r'"[^"]*"', "", "\n".join(lines)).split("\n")
    counts = {s: {line.count(s) for line in bare if line.strip()} for s in QUOTED}
    even = [s for s in QUOTED if len(counts[s]) == 1 and counts[s] != {0}]
    firsts = Counter(found[0] for found in (re.search("[;,]", line) for line in lines) if found)
    return even[0] if len(even) == 1 else firsts.most_common(1)[0][0] if firsts else "|"


def unquote(cell: str) -> str:
    """Remove the quotes that a spreadsheet has put around a cell, where they are whole."""
    is_quoted = re.fullmatch(r'"(?:[^"]|"")*"', cell)
    return cell[1:-1].replace('""', '"') if is_quoted else cell


def split_lines(lines: list[str], separator: str) -> list[Row]:
    """Split the lines of a table with bars or tabs, in which most quotes belong to the text.

    A cell is unquoted if it has doubled quotes inside, or if every quote of the table is one that
    a spreadsheet would write.
    """
    edge = re.escape(separator)
    quoted_cell = rf'(?:(?<={edge})|^) *"(?:[^"]|"")*" *(?={edge}|\r?$)'
    if any('"' in re.sub(quoted_cell, "", line) for line in lines):
        rows = [line.removesuffix("\r").split(separator) for line in lines]
        rows = [[unquote(c) if '""' in c[1:-1] else c for c in map(trim, row)] for row in rows]
    else:
        cells = re.compile(rf'(?:^|{edge})( *"(?:[^"]|"")*" *(?={edge}|$)|[^{edge}]*)')
        rows = [cells.findall(line.removesuffix("\r")) for line in lines]
        rows = [[unquote(trim(cell)) for cell in row] for row in rows]
    return [(number, row) for number, row in enumerate(rows, 1) if any(row)]


def trim(cell: str) -> str:
    """Remove the spaces around a cell, and no other white space."""
    return cell.strip(" ")


def split_rows(lines: list[str], separator: str, path: Path) -> list[Row]:
    """Split a table into rows. With comma and semicolon, texts may be quoted, as in a CSV."""
    if separator not in QUOTED:
        return split_lines(lines, separator)
    options = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    reader = csv.reader((f"{line}\n" for line in lines), **options)
    rows, start = [], 1
    try:
        for cells in reader:
            for line in lines[start : reader.line_num]:  # a cell may have several, but no row
                if names_recording(trim(line.split(separator)[0]), path.parent):
                    raise csv.Error("a quote does not end before the next row")
            if any(map(str.strip, cells)):
                rows.append((start, list(map(trim, cells))))
            start = reader.line_num + 1
    except csv.Error as error:
        hint = f'a text with quotes or "{separator}" is written "like ""this"""'
        raise DataError(f"{path} cannot be read from line {start} on ({error}); {hint}.") from None
    return rows


def find_named(cells: Sequence[str], patterns: tuple[str, ...]) -> list[int]:
    """Find the columns whose names match one of the patterns, in the order of the patterns."""
    names = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in cells]
    return [i for p in patterns for i, name in enumerate(names) if re.fullmatch(p, name)]


def has_word(cell: str) -> bool:
    """Return True for words and labels, False for numbers and codes such as p225."""
    return WORD.search(cell) is not None


def is_sentence(cell: str, n_words: int = 2) -> bool:
    """Return True for several words."""
    return sum(map(has_word, cell.split())) >= n_words or len(UNSPACED.findall(cell)) > 3


def most(test: Callable[[str], bool], cells: Iterable[str]) -> bool:
    """Return True if at least half of the cells that are not empty pass a test."""
    results = [test(cell) for cell in cells if cell.strip()]
    return bool(results) and 2 * sum(results) >= len(results)


def varies(cells: list[str]) -> bool:
    """Return False if most cells repeat others, as speakers, languages and emotions do."""
    return len(cells) == 1 or len(set(cells)) > max(1, len(cells) / 4)


def agree(cells: list[str], others: list[str]) -> bool:
    """Return True if most cells share at least half of their words with the other column's."""

    def share_words(pair: tuple[str, str]) -> bool:
        a, b = (set(re.findall(r"\w+", cell.casefold())) for cell in pair)
        return 2 * len(a & b) >= max(len(a), len(b))

    pairs = {(a, b) for a, b in zip(cells, others, strict=True) if a.strip() and b.strip()}
    return 2 * sum(map(share_words, pairs)) >= len(pairs)


def is_audio_name(cell: str) -> bool:
    """Return True for the name of a recording in any format."""
    return AUDIO_SUFFIX.search(cell) is not None


def is_plain(cell: str) -> bool:
    """Return True for a cell without spaces, as most ids are."""
    return bool(cell) and " " not in cell


def names_recording(cell: str, folder: Path) -> bool:
    """Return True if a cell names a recording that is in the folder."""
    name = clean_name(cell)
    return bool(name) and find_recording(Path(name), folder) is not None


def choose_file(
    header: Sequence[str], rows: list[list[str]], columns: set[int], folder: Path
) -> int:
    """Choose the column that names the recordings; where there are none, by its name and look.

    Raises:
        DataError: when two columns name recordings, others in each row, as numbers of rows may.
    """
    named = find_named(header, AUDIO_COLUMNS)

    def rank(column: int) -> tuple:
        cells = {row[column] for row in rows}
        tests = (partial(names_recording, folder=folder), is_audio_name, is_plain)
        n_found, n_audio, n_plain = (sum(map(test, cells)) for test in tests)
        exist, are_audio, are_plain = (2 * n >= len(rows) for n in (n_found, n_audio, n_plain))
        by_name = -named.index(column) if column in named else -len(named)
        return exist, exist and are_audio, exist * n_found, by_name, are_audio, are_plain, -column

    ranks = {column: rank(column) for column in columns}
    best = max(columns, key=ranks.__getitem__)
    if ranks[best][0] and best not in find_named(header, AUDIO_COLUMNS[:-1]):
        for other in (i for i in columns if i != best and ranks[i][:3] == ranks[best][:3]):
            pairs = [
                [AUDIO_SUFFIX.sub("", clean_name(row[i])) for i in (best, other)] for row in rows
            ]
            if differing := [row for row, (a, b) in zip(rows, pairs, strict=True) if a != b]:
                found = number_cells(differing[0])
                raise DataError(
                    f"{folder}: columns {best + 1} and {other + 1} name different recordings, as "
                    f"in {found}{HOW_TO_NAME}"
                )
    return best


def choose_text(
    header: Sequence[str], rows: list[list[str]], columns: Iterable[int], separator: str
) -> int | None:
    """Choose the column that has the texts, or return None if that is not clear."""
    cells = {i: [row[i] for row in rows] for i in columns}
    cells = {i: column for i, column in cells.items() if any(column)}
    words = [i for i in cells if most(has_word, cells[i]) and not most(is_audio_name, cells[i])]
    sentences = [i for i in words if most(is_sentence, cells[i])]
    varied = [i for i in words if varies(cells[i])]
    named = [i for i in find_named(header, TEXT_COLUMNS) if i in columns]
    if known := [i for i in named if i in sentences or varies(cells.get(i, []))]:
        return known[0]
    clear = [i for i in sentences if i in varied]
    for group in (clear, words):
        if len(group) > 1 and all(agree(cells[i], cells[group[-1]]) for i in group):
            return group[-1]
    # Without quotes, what stands between two commas may be a part of the text.
    may_be_cut = separator == "," and not header and "," not in "".join(map("".join, rows))
    if len(clear) == 1 and not (may_be_cut and len(words) > 1):
        # Two words beside one that varies may be a speaker's name beside the text, or "two km"
        # beside "2 km".
        is_long = most(partial(is_sentence, n_words=3), cells[clear[0]])
        rivals = [i for i in varied if i not in clear and not re.search(r"\d", cells[i][0])]
        return clear[0] if is_long or not rivals else None
    if len(cells) == 1 and (sentences or varied):
        return words[0]
    return named[0] if named else None


def pick_column(flag: str, value: str, header: Sequence[str], width: int, path: Path) -> int:
    """Find the column that a flag gives by its number, from 1, or by its name in the header."""
    names = [name.casefold() for name in header]
    if value.isdecimal() and 1 <= int(value) <= width:
        return int(value) - 1
    if value.casefold() in names:
        return names.index(value.casefold())
    raise DataError(f"{flag} {value}: {path} has the columns {number_cells(header)}")


def number_cells(*rows: list[str]) -> str:
    """Write the cells of one or two rows with their columns' numbers: 1 'file' 'clip0', ..."""
    columns = enumerate(zip(*rows, strict=False), 1)
    return ", ".join(f"{i} {' '.join(repr(c[:60]) for c in cells)}" for i, cells in columns)


def looks_like_header(first: list[str], rows: list[list[str]], file: int, folder: Path) -> bool:
    """Return True if a first row names columns, and no recording."""
    if names_recording(first[file], folder):
        return False
    if file in find_named(first, AUDIO_COLUMNS):
        return True
    n_found = sum(names_recording(row[file], folder) for row in rows)
    return all(NAME.fullmatch(cell) or not cell for cell in first) and 2 * n_found >= max(
        1, len(rows)
    )


def check_cuts(path: Path, lines: list[str], rows: list[Row], separator: str, width: int) -> None:
    """Refuse a table without a header whose texts have commas or semicolons, but no quotes."""
    unclear = []
    for line_number, cells in rows if separator in QUOTED else ():
        bare = re.sub('"[^"]*"', "", lines[line_number - 1])
        n_spaced = bare.count(f"{separator} ")  # as between words
        n = bare.count(separator)
        is_spaced = 0 < n_spaced < n or (separator == ";" and n_spaced == n > 1)
        if len(cells) not in (1, width) or is_spaced:
            unclear.append((line_number, cells))
    if unclear:
        line_number, _ = max(unclear + rows, key=lambda row: len(row[1]))
        found = lines[line_number - 1].strip()[:80]
        raise DataError(
            f'{path} line {line_number}: "{separator}" may end a column or belong to the text in '
            f'{found!r}; write such texts "in quotes", or separate columns with | or tabs'
        )


def find_columns(
    path: Path, lines: list[str], rows: list[Row], separator: str, flags: dict[str, str | None]
) -> Columns:
    """Decide which column names the recording, which has the text, and if there is a header.

    Args:
        flags: --file_column and --text_column, each a number or a name, or None to find it.
    """
    first, folder = rows[0][1], path.parent
    is_known = find_named(first, AUDIO_COLUMNS) and find_named(first, TEXT_COLUMNS)
    in_header = bool(is_known) or any(flag and not flag.isdecimal() for flag in flags.values())
    widths = Counter(len(cells) for _, cells in rows if len(cells) > 1)
    if not widths:
        raise DataError(f"{path} line 1 has one column, {first[0][:80]!r}; expected two or more")
    width = len(first) if in_header else max(widths, key=lambda n: (widths[n], n))
    sample = [cells for _, cells in rows[1:] if len(cells) == width]
    sample = sample[:: len(sample) // SAMPLE + 1]
    whole = sample if in_header or len(first) != width else [first, *sample]
    columns = set(range(width))
    picked = {f: pick_column(f, v, first, width, path) for f, v in flags.items() if v}
    file, text = picked.get("--file_column"), picked.get("--text_column")
    if file is None:
        file = choose_file(first, whole, columns - {text}, folder)
    if not in_header and len(first) == width and looks_like_header(first, sample, file, folder):
        in_header = True
    if not in_header:
        check_cuts(path, lines, rows, separator, width)
    if text is None:
        body = (first, sample) if in_header else ((), whole)
        text = choose_text(*body, columns - {file}, separator)
    if text is None or text == file:
        found = number_cells(*([first, *sample[:1]] if in_header else [first]))
        raise DataError(
            f"{path} line {rows[0][0]} has the columns {found}, and which has the text is not "
            f"clear{HOW_TO_NAME}"
        )
    if in_header and not is_known:
        say(f"{path.name} line 1 is read as a header: {', '.join(first)}", file=sys.stderr)
    return Columns(file, text, width, tuple(first) if in_header else ())


def clean_name(name: str) -> str:
    """Return a recording's path in the folder, with / and without wavs/; "" if it is outside."""
    path = PureWindowsPath(name)  # understands both / and \
    if path.root or ".." in path.parts or not path.parts or "\0" in name:
        return ""
    return path.as_posix().removeprefix("wavs/")


def read_row(cells: list[str], columns: Columns, separator: str, place: str) -> Clip:
    """Make a clip from a row of a table. Its path is the one in the table, not yet looked up."""
    if len(cells) != columns.width:
        problem = f"{len(cells)} columns instead of {columns.width}"
        if separator in QUOTED:
            problem += '; a text with commas or semicolons needs "quotes"'
        return Clip(place, cells[0], cells[-1], problem=problem)
    name, transcript, problem = clean_name(cells[columns.file]), cells[columns.text], ""
    if not name:
        problem = OUTSIDE
    elif not transcript.strip():
        problem = "empty transcript"
    elif markup := find_markup(transcript):
        problem = f"the text has {markup}"
    clip_id = AUDIO_SUFFIX.sub("", name) or cells[columns.file]
    return Clip(place, clip_id, transcript, Path(name), problem=problem)


def read_table(
    path: Path, file_column: str | None = None, text_column: str | None = None
) -> list[Clip]:
    """Read the rows of a table, with their texts as they stand."""
    lines = read_text(path).split("\n")  # splitlines() would also break at U+2028 and others
    named = re.fullmatch(r'"?sep=(.)"?\s*', lines[0])  # as Excel in Europe needs it
    if not any(map(str.strip, lines[bool(named) :])):
        raise DataError(f"{path} is empty.")
    if lines[0].startswith('{"'):
        raise DataError(f"{path} holds JSON; expected columns, such as file|text")
    separator = named[1] if named else find_separator(lines)
    rows = split_rows(lines, separator, path)[bool(named) :]
    flags = {"--file_column": file_column, "--text_column": text_column}
    columns = find_columns(path, lines, rows, separator, flags)
    clips, first_lines, piece_before = [], {}, False  # the line of each id
    for line_number, cells in rows[bool(columns.names) :]:
        clip = read_row(cells, columns, separator, f"{path.name} line {line_number}")
        is_piece = len(cells) == 1 and bool(cells[0].strip())
        if columns.text < columns.file:  # a text with a line end begins in the row before
            if piece_before and not clip.problem:
                clip = clip._replace(problem=f"the text may begin in {clips[-1].place}")
        elif is_piece and clips and not clips[-1].problem:
            clips[-1] = clips[-1]._replace(problem=f"the text may go on in line {line_number}")
        piece_before = is_piece
        first = line_number if clip.problem else first_lines.setdefault(clip.clip_id, line_number)
        if first != line_number:
            clip = clip._replace(problem=f"duplicate id, first on line {first}")
        clips.append(clip)
    if not clips:
        raise DataError(f"{path} has a header and no rows.")
    return clips
