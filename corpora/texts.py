"""Read files of text, and notice what is no transcript: subtitles, HTML and their like."""

import re
from pathlib import Path

from command_line.files import DataError

_CLOCK = r"\d+(?::\d\d)+"  # 0:12 or 00:00:12
# A time of day ("at 10:30", "[see 4:5]") is read out; these forms only stand in subtitles.
MARKUP = {
    "subtitles": r"\AWEBVTT|\A\[Script Info\]|-->|^\{\d+\}\{\d+\}|\{\\an?\d",
    "time stamps": (
        rf"[\[<]\s*(?:{_CLOCK}(?:[.,]\d+)?|\d+\.\d+s?)\s*(?:[\]>]|-)"  # [00:12.5], [0.0s -> 2.5s]
        r"|^\s*\(?(?:\d+:\d\d:\d\d|\d+:\d\d[.,]\d+|00?:\d\d)(?!\d)"  # begin a line
        r"|^\s*\d+:\d\d(?:[ \t]*\n|[ \t].*\n\s*\d+:\d\d\s)"  # a line alone, or begin two lines
        r"|\d:\d\d:\d\d[.,:;]\d\d|<\|[\w.]+\|>"  # and Whisper's tokens
        r"|^\s*\d+(?:\.\d+)?\t\d+(?:\.\d+)?\t|^\s*\d+\.\d+[ \t]+\d+\.\d+[ \t]"  # start and end
    ),
    "RTF": r"\A\s*\{\\rtf",
    "HTML": (
        r"<!DOCTYPE|<\?xml|</[a-z]\w*\s*>|<[a-z][\w-]*(?:\s[^<>]*=[^<>]*|\s*/)>"
        r"|<(?:html|head|body|div|span|p|br|b|i|u|em|strong|font|a|c|v)(?:[\s./][^<>]*)?>"
    ),
    "JSON": r'\A\s*(?:\[\s*)?\{\s*"[^"]*"\s*:',
    "a TextGrid": r'\AFile type = "',
    "NUL characters": r"\0",
}
_MARKUP = re.compile(
    "|".join(f"({pattern})" for pattern in MARKUP.values()), re.IGNORECASE | re.MULTILINE
)
_SIGN = re.compile(r"[<>{\[\t\0]|\d[.:]\d")  # in all of these; most texts have none


def find_markup(text: str) -> str:
    """Name what a text holds that is not said, with the place; "" if there is nothing."""
    match = _SIGN.search(text) and _MARKUP.search(text)
    if not match:
        return ""
    return f"{list(MARKUP)[match.lastindex - 1]} ({text[match.start() :].strip()[:30]!r})"


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without the line ends at its end."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        line_number = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not UTF-8: see line {line_number}.") from error
