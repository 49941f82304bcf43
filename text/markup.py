"""Take Markdown's marks and the tags of HTML and SSML out of a text that is to be spoken.

    strip_markup("### News\\nSee [the *docs*](https://example.com) <b>now</b>.")
    # ("\\n\\nNews\\n\\nSee the docs now.", ["<b>", "</b>"])

Headings, items of lists and blocks of HTML become paragraphs, which end with a pause.
"""

import re

_BLOCKS = (
    "p|div|h[1-6]|ul|ol|li|dl|dt|dd|table|tr|blockquote|pre|hr|section|article|header|footer|main|"
    "nav|title|head|body|html|figure|figcaption|speak"
)
_INLINE = (  # a word goes on after these
    "a|abbr|b|big|code|del|em|emphasis|font|i|ins|kbd|mark|phoneme|prosody|say-as|samp|small|span|"
    "strong|sub|sup|tt|u|var|w|word"
)
# Attributes have a =, or are one word: "a<b and c>d" has no tag.
_TAG = re.compile(r"</?(?P<name>[A-Za-z][\w:-]*)(?:\s[^<>]*=[^<>]*|\s+[\w-]+|)\s*/?>")
_TARGET = (  # of a link
    r"\([ \t]*(?:<[^<>\n]*>|(?:[^()\s]|\([^()\s]*\))*)(?:\s+[\"'(][^()\n]*[\"')])?\s*\)"
)
_RULE = r"[ \t]*:?-+:?[ \t]*"  # under a column's name


def _write_cells(match: re.Match) -> str:
    """Write the rows of a table as "a, b", each a paragraph."""
    rows = [[cell.strip() for cell in row.split("|")] for row in match["rows"].split("\n")]
    rows = [[cell for cell in row if cell] for row in rows]
    texts = [", ".join(row) for row in rows if not all(re.fullmatch(_RULE, cell) for cell in row)]
    return "\n\n" + "\n\n".join(texts) + "\n\n"


_RULES = [
    (r"\A---\n(?:[\w-]+:.*\n|[ \t].*\n)*---[ \t]*(?:\n|\Z)", ""),  # settings above a page
    (r"(?is)<!--.*?-->|<!\[CDATA\[|\]\]>|<!doctype[^>]*>|<\?.*?\?>", ""),
    (r"(?is)<(script|style)\b.*?</\1\s*>", ""),
    (r"<((?:https?://|mailto:)[^\s<>]+|[\w.+-]+@[\w.-]+)>", r"\1"),
    # Lines: fences, headings, lines under headings, quotes, items, tables, targets of links
    (r"(?m)^[ \t]*(?:```+|~~~+)[^\n`]*$", ""),
    (r"(?m)^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$", r"\n\n\1\n\n"),
    (r"(?m)^[ \t]*=[= \t]+$", "\n"),
    (r"(?m)(?<=\n)[ \t]*(?:-[ \t]*){3,}$|(?<=\n)[ \t]*(?:\*[ \t]*){3,}$|(?<=\n)[ \t]*_{3,}$", "\n"),
    (r"(?m)^(?:[ \t]*>)+[ \t]?", ""),
    (rf"(?m)^(?P<rows>.*\|.*\n{_RULE}\|(?:{_RULE}\|)*(?:{_RULE})?(?:\n.*\|.*)*)$", _write_cells),
    (r"(?m)^(?P<rows>[ \t]*\|.*\|[ \t]*)$", _write_cells),
    (
        r"(?m)^[ \t]*[-*+\u00b7\u2022\u2023\u25a0\u25aa\u25ab\u25cb\u25cf\u25e6][ \t]+"
        r"(?:\[[ xX]\][ \t]+)?(?=\S)",
        "\n\n",
    ),
    (r"(?m)^[ \t]*(?=\d{1,3}[.)][ \t]+\S)", "\n\n"),
    (r"(?m)^\[!(\w+)\]", r"\1."),
    (
        r"(?m)^ {0,3}\[[^\]\n]+\]:[ \t]*<?(?:\w+://|mailto:|\.{0,2}/|#\w)\S*"
        r"(?:[ \t]+[\"'(].*)?[ \t]*$",
        "",
    ),
    # Links, pictures, code, emphasis, escapes
    (rf"!\[([^\[\]]*)\]{_TARGET}", r"\1"),
    (rf"\[([^\[\]]*)\]{_TARGET}", r"\1"),
    (r"!?\[([^\[\]]*[^\W\d_][^\[\]]*)\]\[[^\[\]]*\]", r"\1"),
    (r"\[\^[^\[\]\s]+\]:?", ""),
    (r"(?<![`\w])(`+)(?!`)([^\n]+?)(?<!`)\1(?![`\w])", r"\2"),
    (r"(?<![\w*\\])(\*{1,3})(?=\S)([^*]+?)(?<=\S)\1(?![\d*])", r"\2"),
    (r"(?<![\d*\\])(\*\*)(?=\S)([^*\n]+?)(?<=\S)\1(?![\d*])", r"\2"),
    (r"(?<![\w_\\])(_{1,3})(?=\S)(.+?)(?<=\S)\1(?![\w_])", r"\2"),
    (r"~~(?=\S)(.+?)(?<=\S)~~", r"\1"),
    (r"\\([\\`*_{}\[\]()#+.!|>~-])|(?m:\\$)", r"\1"),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]


def strip_markup(text: str) -> tuple[str, list[str]]:
    """Remove the marks and tags of a text; return it and the tags, each once, in order."""
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    tags = dict.fromkeys(match[0] for match in _TAG.finditer(text))
    return _TAG.sub(_replace_tag, text), [*tags]


def _replace_tag(match: re.Match) -> str:
    """Replace a tag by the end of a paragraph, by a space, or by nothing within a word."""
    name = match["name"].lower()
    if re.fullmatch(_BLOCKS, name):
        return "\n\n"
    return "" if re.fullmatch(_INLINE, name) else " "
