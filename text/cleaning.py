"""English text as people type it, to the words that are read aloud, but for its figures.

    expand_abbreviations("Dr. No lives at 5 Main St.")   # "Doctor No lives at 5 Main Street."
    spell_capitals("The FBI and NASA of Henry VIII")     # "The f b i and NASA of Henry the eighth"
    spell_signs("R&D = fun")                             # "R and D  equals  fun"

Rules see the case of the letters, because it tells "No. 5" from "no. It" and "IT" from "it". What
is a matter of single words stands in tables.
"""

import re
import unicodedata
from collections.abc import Iterable

TITLES = {  # a sentence does not end with these unless the text does
    "mr": "mister", "mrs": "missus", "ms": "miz", "messrs": "messieurs", "dr": "doctor",
    "prof": "professor", "rev": "reverend", "hon": "honorable", "gov": "governor",
    "sen": "senator", "rep": "representative", "pres": "president", "maj": "major",
    "gen": "general", "capt": "captain", "lt": "lieutenant", "col": "colonel", "sgt": "sergeant",
    "cpl": "corporal", "pvt": "private", "cmdr": "commander", "adm": "admiral", "mt": "mount",
    "st": "saint", "ft": "fort",
}  # fmt: skip
ABBREVIATIONS = {
    **TITLES,
    "co": "company", "ltd": "limited", "inc": "incorporated", "corp": "corporation",
    "bros": "brothers", "dept": "department", "jr": "junior", "sr": "senior", "esq": "esquire",
    "etc": "et cetera", "&c": "et cetera", "vs": "versus", "approx": "approximately",
    "ave": "avenue", "blvd": "boulevard", "rd": "road", "tel": "telephone", "vol": "volume",
    "vols": "volumes", "mss": "manuscripts", "ph.d": "p h d", "ph. d": "p h d", "ll.d": "l l d",
}  # fmt: skip
# With a small letter these are words, or parts of them, that may end a sentence.
CAPITALISED = {"rep", "sen", "pres", "gov", "adm", "ave", "mt", "inc", "tel"}
# After a name or before no name: "Main St.", "Elm Dr."
AFTER_NAMES = {"st": "street", "dr": "drive", "ft": "feet"}
# Only before a number: "No. 5" but "No. It", "p. 5" but "P. Smith".
BEFORE_NUMBERS = {
    "no": "number", "nos": "numbers", "p": "page", "pp": "pages", "fig": "figure",
    "figs": "figures", "ch": "chapter", "chap": "chapter", "sec": "section", "art": "article",
    "eq": "equation", "pt": "part", "c": "circa", "ca": "circa", "est": "established",
    "jan": "january", "feb": "february", "mar": "march", "apr": "april", "jun": "june",
    "jul": "july", "aug": "august", "sep": "september", "sept": "september", "oct": "october",
    "nov": "november", "dec": "december",
}  # fmt: skip
DOTTED_UNITS = {  # after a number, without their dots, as numbers.py knows them
    "in": "inch",
    **{
        u: u
        for u in ("ft", "lb", "lbs", "oz", "mi", "yd", "hr", "hrs", "min", "mins", "sec", "gal")
    },
}
# Words that begin a sentence when they are capitalised, so that "Co. The" ends one.
STARTERS = (
    "A After All Although An And As At Because Before But By During Each Every For From Had Has "
    "Have He Her Here His How However I If In Is It Its Many My No Not Now On One Only Or Our She "
    "Since So Some Such That The Their Then There These They This Those Though Thus To Under Until "
    "Was We Were What When Where Which While Who Why With Yes Yet You Your"
)
SIGNS = {
    "&": " and ", "@": " at ", "#": " hashtag ", "+": " plus ", "=": " equals ", "_": " ",
    "%": " percent ", "\u00b0": " degrees ", "\u00d7": " times ", "\u00f7": " divided by ",
    "\u00b1": " plus or minus ", "<": " less than ", ">": " greater than ",
    "\u2264": " at most ", "\u2265": " at least ", "\u2248": " about ", "~": " about ",
    "\u2260": " is not equal to ", "\u00a7": " section ", "\u00a9": " copyright ", "|": " ",
    "\\": " backslash ", "*": " ", "\u2022": " ", "\u2122": " ", "\u00ae": " ", "^": " ",
    "\u2192": " to ", "\u221e": " infinity ", "\u221a": " square root of ", "\u00a2": " cents ",
    "\u2014": " - ", "\u2015": " - ", "$": " dollars ", "\u00a3": " pounds ",
    "\u20ac": " euros ", "\u00a5": " yen ",
}  # fmt: skip
# Characters that Unicode's own table of equivalents (NFKC) lacks or gets wrong for reading.
CHARACTERS = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u00b4`\u2039\u203a", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d\u300e\u300f\u301d", '"'),
    **dict.fromkeys("\u2010\u2011\u2043\ufe63\uff0d", "-"),
    **dict.fromkeys("\u22ef\u2025", "..."),
    "\u00b2": "^2", "\u00b3": "^3", "\u2044": "/", "\u2116": "No. ", "\u2122": " ",
    "\u2032": "\u2032", "\u2033": "\u2033", "\u3002": ".", "\u00bf": "", "\u00a1": "",
}  # fmt: skip
IN_ADDRESSES = {
    ".": "dot", "@": "at", "-": "dash", "_": "underscore", "/": "slash", ":": "colon",
    "?": "question mark", "=": "equals", "&": "and", "#": "hash", "+": "plus", "%": "percent",
    "~": "tilde",
}  # fmt: skip
DOMAINS = (
    "com org net edu gov mil info biz io ai dev app uk co de fr es nl eu ca au jp cn ru ch se pl "
    "py txt pdf html csv json wav mp3 jpg png exe"
)
KINGS = (
    "Alexander Alfonso Benedict Catherine Charles Christian Clement Edward Elizabeth Francis "
    "Frederick George Gregory Gustav Henry Innocent Ivan James John Leo Louis Mary Napoleon "
    "Nicholas Paul Philip Pius Ramses Richard Umberto Urban Wilhelm William"
)
NUMBERED = "Act Article Book Chapter Part Phase Scene Section Type Volume War"
ROMAN = (
    "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX XXI XXII XXIII XXIV "
    "XXV XXVI XXVII XXVIII XXIX XXX"
)
# Said letter by letter though they could be pronounced.
INITIALISMS = (
    "abc ac ad ai aka am aol apa api ata atm bc ceo cfo cia coo cv dea diy ecg eeg ekg epa er esa "
    "est eta eu fda gui hiv icu id ie io ios iou ip ipo iq ira irs iso ivf lol ma mba mit mri nra "
    "nsa ny nyu ok os pa phd pm pow pr qa rna roi sos suv tba uae ucla ufo ui uk ul un ups url us "
    "usa usaf usb ussr utc uv ux vip"
)
AMBIGUOUS = "us am ad ma pa id ok un er"  # words, where all the text is in capitals
UTTERANCES = "hmm shh psst mr mrs ms dr nth"
# How English words begin and end; with vowels between, all others are said letter by letter.
ONSETS = (
    "b bl br c ch chr cl cr cz d dr dw f fl fr g gh gl gn gr gw h j k kh kl kn kr kw l ll m n p "
    "ph pl pr ps q r rh s sc sch schw scr sh shr sk sl sm sn sp sph spl spr sq st str sv sw t th "
    "thr thw tr ts tw v vl w wh wr x z"
)
CODAS = (
    "b bb bbs bs bt bts c ch chs cht chts ck cks cs ct cts d dd dds ds dst dth f ff ffs fs ft fth "
    "fts g gg ggs gh ghs ght ghts gn gns gs h hl hm hn hns hr hrs j k ks l lb lbs lc lch ld lds "
    "lf lfs lk lks ll lls lm lms ln lp lps ls lsh lt lth lts ltz lx lz m mb mbs mm mn mns mp mph "
    "mps mpt ms n nc nch nck nct nd nds ndt ng ngs nk nks nn nns ns nst nt nth nths nts ntz nx nz "
    "p ph phs pp pps ps pt pth pts q r rb rbs rc rch rck rct rd rds rf rfs rg rgs rk rks rl rld "
    "rlds rls rm rms rn rns rnt rp rps rr rrs rs rsh rst rsts rt rth rths rts rtz rv rx rz s sc "
    "sch sh sk sks sm sms sp sps ss st sts t tch th ths ts tt tts tz v w wd wds wk wks wl wls wn "
    "wns ws x xt xth z"
)
MAX_UNPRONOUNCEABLE = 5  # letters; longer words without a syllable of English are names


_KINGS, _NUMBERED = frozenset(KINGS.split()), frozenset(NUMBERED.split())
_INITIALISMS, _AMBIGUOUS = frozenset(INITIALISMS.split()), frozenset(AMBIGUOUS.split())
_UTTERANCES = frozenset(UTTERANCES.split())


def _any_of(words: Iterable[str]) -> str:
    """A pattern of the words, longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_STARTER = rf"(?:{_any_of(STARTERS.split())})\b(?!\.)"
_END = re.compile(rf"[\"')\]]*(?:\s*\Z|\s*\n\s*\n|\s+[\"'(]*{_STARTER})")
_END_OF_TEXT = re.compile(r"[\"')\]]*\s*\Z")
_ABBREVIATION = re.compile(r"(?<![\w.'])((?i:ph\. ?d|ll\.d)|[A-Za-z]{1,6}|&c)\.")
_BEFORE_NUMBER = re.compile(r"\s*#?(?:\d|[IVX]{2,}\b)")
_NAME_AHEAD = re.compile(r"\s*[A-Z]")
_NAME_BEHIND = re.compile(r"(?:\b[A-Z][\w'-]*|\d(?:st|nd|rd|th)) \Z")
_NUMBER_BEHIND = re.compile(r"\d[ -]?\Z")
_SQUARE_UNIT = re.compile(r"\bsq\.? ft\b")
_BRITISH_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr)(?=\s+[A-Z])")
_LETTERS = re.compile(r"(?<![\w.'])(?:(?:[A-Za-z]\.){2,}(?:[A-Z](?![\w.]))?|[A-Z]\.[A-Z](?![\w.]))")
_INITIALS = re.compile(r"(?<![\w.'])[A-Z]\.(?:\s[A-Z]\.)*(?=\s+[A-Z\"'(]|[A-Z]|\s+[a-z])")
_ADDRESS = re.compile(
    r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|(?<!\w)(?:(?:https?|ftp)://|www\.)[^\s<>\"]*[\w/]"
    rf"|(?<![\w@.-])(?:[\w-]+\.)+(?:{_any_of(DOMAINS.split())})\b(?!\.?[A-Z])"
    r"(?:/[\w./?=&#%~+-]*[\w/])?"
)
_WORLD_WAR = re.compile(r"\bWW ?(I{1,2}|[12])\b")
_ROMAN = re.compile(rf"\b([A-Z][a-z]+)( the)? ({_any_of(ROMAN.split())})\b")
_CAPITALS = re.compile(r"(?<![A-Za-z'])([A-Z]{2,})('s|s)?(?![A-Za-z])")
_CODE = re.compile(r"(?<![A-Za-z])(?!USD|GBP|EUR|JPY|INR|CHF)[A-Z]{2,3}(?=\d)")
_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_JOINED_SENTENCES = re.compile(r"(?<=[a-z][.!?])(?=[A-Z][a-z])")
_ELLIPSIS = re.compile(r"\.(?:\s\.){2,}|\.{4,}")
_DOUBLE_QUOTE = re.compile("``|''|,,(?=\\w)")
_VOWELS = "[aeiouy]{1,3}"
_SYLLABLES = re.compile(
    rf"(?:{_any_of(ONSETS.split())})?(?:qu)?{_VOWELS}"
    rf"(?:(?:{_any_of(CODAS.split())})?(?:{_any_of(ONSETS.split())})?{_VOWELS})*"
    rf"(?:{_any_of(CODAS.split())})?"
)


def replace_characters(text: str, known: frozenset[str]) -> str:
    """Typographic and other variants of characters as a keyboard has them; accents stay."""
    plain = []
    for c in _THOUSANDS.sub(",", text):
        if c.isascii() or c in known:
            plain.append(c)
        elif c in CHARACTERS:
            plain.append(CHARACTERS[c])
        elif c.isdecimal():
            plain.append(str(unicodedata.decimal(c)))
        elif c.isnumeric():  # must not run into the number before it: 1\u00bd is not 11/2
            plain.append(" " + unicodedata.normalize("NFKC", c).replace("\u2044", "/"))
        else:
            plain.append(unicodedata.normalize("NFKC", c))
    return "".join(plain)


def is_pronounceable(word: str) -> bool:
    """Whether a word in lower case is made of English syllables: 'nasa', but not 'fbi'."""
    return bool(_SYLLABLES.fullmatch(word)) and any(c not in "aeiou" for c in word)


def _say_address(match: re.Match) -> str:
    """'bob@example.com', 'https://www.example.org/a-b'."""
    address = re.sub(r"^\w+://", "", match[0]).rstrip("/")
    words = []
    for part in re.findall(r"[A-Za-z]+|\d+|.", address):
        lower = part.lower()
        if part.isascii() and part.isalpha() and len(part) <= MAX_UNPRONOUNCEABLE:
            is_word = is_pronounceable(lower) and lower not in _INITIALISMS
            part = part if is_word else " ".join(part.lower())
        words.append(IN_ADDRESSES.get(part, part))
    return " ".join(words)


def _expand(match: re.Match) -> str:
    """An abbreviation and its dot, by what stands before and after."""
    text, word, end = match.string, match[1].lower(), match.end()
    before = text[max(0, match.start() - 30) : match.start()]
    if word in DOTTED_UNITS and _NUMBER_BEHIND.search(before):
        full, is_title = DOTTED_UNITS[word], False
    elif word in BEFORE_NUMBERS and _BEFORE_NUMBER.match(text, end):
        return f"{_match_capital(BEFORE_NUMBERS[word], match[1])} "
    elif word not in ABBREVIATIONS or (word in CAPITALISED and match[1].islower()):
        return match[0]
    else:
        full, is_title = ABBREVIATIONS[word], word in TITLES
        is_behind = _NAME_BEHIND.search(before) or word == "ft"
        by_number = before[-3:-1] in ("st", "nd", "rd", "th") and before[:-3][-1:].isdigit()
        if word in AFTER_NAMES and is_behind and (by_number or not _NAME_AHEAD.match(text, end)):
            full, is_title = AFTER_NAMES[word], False
    full = _match_capital(full, match[1])
    ends = (_END_OF_TEXT if is_title else _END).match(text, end) or text.startswith("..", end)
    return full + ("." if ends else " " if text[end : end + 1].isalnum() else "")


def _match_capital(word: str, found: str) -> str:
    return word.capitalize() if found[0].isupper() else word


def _say_letters(match: re.Match) -> str:
    """'U.S.', 'p.m.', 'J.R.R. Tolkien'; the dot stays where a sentence ends."""
    letters = " ".join(re.findall("[A-Za-z]", match[0]))
    text, end = match.string, match.end()
    if match[0].endswith(".") and (_END.match(text, end) or text.startswith("..", end)):
        return f"{letters}."
    return letters + (" " if text[end : end + 1].isalnum() else "")


def _say_initials(match: re.Match) -> str:
    """'J. D. Tippit'; "I." after a small letter is a word that ends a sentence."""
    before = match.string[max(0, match.start() - 30) : match.start()]
    if match[0] == "I." and before and not _NAME_BEHIND.search(before):
        return match[0]
    return _say_letters(match)


def expand_abbreviations(text: str) -> str:
    """Addresses, abbreviations and initials in words."""
    if "." in text or "@" in text or "://" in text:
        text = _ADDRESS.sub(_say_address, text)
        text = _ABBREVIATION.sub(_expand, text)
        text = _LETTERS.sub(_say_letters, text)
        text = _INITIALS.sub(_say_initials, text)
        text = _JOINED_SENTENCES.sub(" ", text)
    return _BRITISH_TITLE.sub(lambda m: TITLES[m[0].lower()].capitalize(), text)


def _say_roman(match: re.Match) -> str:
    """'Henry VIII', 'World War II'; one letter only after words that are followed by a number."""
    word, roman = match[1], match[3]
    number = ROMAN.split().index(roman) + 1
    is_king = word in _KINGS or bool(match[2])
    if len(roman) == 1 and word not in _NUMBERED and not (is_king and roman != "I"):
        return match[0]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number not in (11, 12, 13) else 0, "th")
    return f"{word} the {number}{ending}" if is_king else f"{word} {number}"


def expand_codes(text: str) -> str:
    """Roman numbers as figures, and the letters of codes such as MP3 apart from each other."""
    text = _WORLD_WAR.sub(lambda m: f"World War {2 if m[1] in ('II', '2') else 1}", text)
    text = _ROMAN.sub(_say_roman, text)
    return _CODE.sub(lambda m: " ".join(m[0].lower()) + " ", text)


def spell_capitals(text: str, is_shouted: bool = False) -> str:
    """Words in capitals letter by letter where that is how they are said.

    Args:
        is_shouted: whether all that was typed is in capitals, so that US is more likely a word.
    """

    def say(match: re.Match) -> str:
        word, end = match[1].lower(), match.end()
        before, after = text[max(0, match.start() - 1) : match.start()], text[end : end + 1]
        if after == "'":  # ISN'T
            return match[0]
        is_joined = len(word) <= 3 and "&" in (before, after)  # AT&T
        is_initialism = word in _INITIALISMS and not (is_shouted and word in _AMBIGUOUS)
        is_odd = len(word) <= MAX_UNPRONOUNCEABLE and not is_pronounceable(word)
        if is_joined or is_initialism or (is_odd and word not in _UTTERANCES):
            return " ".join(word) + ("'s" if match[2] else "")
        return match[0]

    return _CAPITALS.sub(say, text)


def spell_signs(text: str, known: frozenset[str]) -> str:
    """Names of the signs that the table of symbols lacks, and one kind of ellipsis and quotes."""
    text = _ELLIPSIS.sub("...", text)
    text = _DOUBLE_QUOTE.sub('"', text)
    if "#" in text and "#" not in known:
        text = re.sub(r"(?<=[A-Z])#(?!\w)", " sharp", text)
    if known.issuperset(text) or SIGNS.keys().isdisjoint(text):
        return text
    sayable = known | {c.lower() for c in known}  # another alphabet has no such words
    return "".join(
        SIGNS[c] if c not in known and c in SIGNS and sayable.issuperset(SIGNS[c]) else c
        for c in text
    )
