"""Read a lexicon: words, and how each is to be spoken.

    read_lexicon("words.tsv", tokenizer)    # {"dr.": "Doktor", "nguyen": "{W IH1 N}"}

A line is word<TAB>respelling or phonemes; phonemes stand in braces. Capitals in the word make no
difference. A respelling cannot contain a word of the lexicon, so that it is never respelled again.
"""

from command_line.files import DataError, read_text
from text.tokenizer import Tokenizer, plain_spelling


def read_lexicon(path: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Read a lexicon's words, in lower case, and check that the tokenizer can speak each."""
    lines = read_text("--lexicon", path).split("\n")
    lexicon, places = {}, {}
    for number, line in enumerate(lines, start=1):
        place, (word, _, spoken) = f"--lexicon {path}, line {number}", line.partition("\t")
        word, spoken = plain_spelling(word.strip()).lower(), spoken.strip()
        if not line.strip():
            continue
        if not (word and spoken) or "\t" in spoken or "{" in word:
            raise DataError(f"{place}: must be word<TAB>respelling or phonemes, found {line!r:.80}")
        if word in lexicon:
            raise DataError(f"{place}: {word!r} is on line {places[word]} too, must be there once")
        try:
            tokenizer.encode(spoken)
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        lexicon[word], places[word] = spoken, number
    whole = tokenizer.with_lexicon(lexicon)
    for word, spoken in lexicon.items():
        if whole.respell(spoken) != spoken:
            problem = "holds a word of the lexicon, must be spoken as it is written"
            raise DataError(f"--lexicon {path}, line {places[word]}: {spoken!r:.80} {problem}")
    return lexicon
