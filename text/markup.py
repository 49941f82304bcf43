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
_TAG = re.compile(r"</?(?P<name>[A-Za-z][\w:-]*)(?:\s[^<>]*|/)?>")
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
    (r"(?m)^[ \t]*[-*+\u2022][ \t]+(?:\[[ xX]\][ \t]+)?(?=\S)", "\n\n"),
    (r"(?m)^[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+(?:[ \t]*:?-+:?[ \t]*)?$", ""),
    (r"(?m)^[ \t]*\|(.*)\|[ \t]*$", lambda m: ", ".join(map(str.strip, m[1].split("|"))) + "\n\n"),
    (r"(?m)^ {0,3}\[[^\]\n]+\]:[ \t]*<?(?:\w+:|[/.#])\S*.*$", ""),
    # Links, pictures, code, emphasis, escapes
    (
        r"!?\[([^\[\]]*)\]\([ \t]*<?(?:[^()\s]|\([^()\s]*\))*>?(?:\s+[\"'(][^()\n]*[\"')])?\s*\)",
        r"\1",
    ),
    (r"\[([^\[\]]*[^\W\d_][^\[\]]*)\]\[[^\[\]]*\]", r"\1"),
    (r"\[\^[^\[\]\s]+\]:?", ""),
    (r"(?<![`\w])(`{1,2})(?!`)([^`\n]+)\1(?![`\w])", r"\2"),
    (r"(?<![\w*\\])(\*{1,3})(?=\S)([^*]+?)(?<=\S)\1(?![\d*])", r"\2"),
    (r"(?<![\w_\\])(_{1,3})(?=\S)(.+?)(?<=\S)\1(?![\w_])", r"\2"),
    (r"~~(?=\S)(.+?)(?<=\S)~~", r"\1"),
    (r"\\([\\`*_{}\[\]()#+.!|>~-])", r"\1"),
]
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]


def strip_markup(text: str) -> tuple[str, list[str]]:
    """Remove the marks and tags of a text; return it and the tags, each once, in order."""
    if not re.search(r"[#*_`~<>\[=|\\-]", text):
        return text, []
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
