"""Turn English text as people type it into words as they are read aloud.

    expand_abbreviations("Dr. No lives at 5 Main St.")   # "Doctor No lives at 5 Main Street."
    spell_capitals("The FBI and NASA")                   # "The f b i and NASA"
    spell_signs("R&D = fun", known)                      # "R and D  equals  fun"

Numbers are in numbers.py. Letters keep their case, which tells "No. 5" from "no. It".
"""

import re
from functools import lru_cache

from num2words import num2words

from text.numbers import any_of, spell_numerals


def _split(words: str) -> frozenset[str]:
    return frozenset(words.split())


TITLES = {  # a full stop after one of these ends a sentence only at the end of the text
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
# Abbreviations only with a capital: in lower case, these are words that may end a sentence.
CAPITALISED = _split("rep sen pres gov adm ave mt inc tel")
# Abbreviations with another meaning after a name, or with no name after them: "Main St.", "Elm Dr."
AFTER_NAMES = {"st": "street", "dr": "drive", "ft": "feet"}
# Abbreviations only before a number: "No. 5" but "No. It", "p. 5" but "P. Smith"
BEFORE_NUMBERS = {
    "no": "number", "nos": "numbers", "p": "page", "pp": "pages", "fig": "figure",
    "figs": "figures", "ch": "chapter", "chap": "chapter", "sec": "section", "art": "article",
    "eq": "equation", "pt": "part", "c": "circa", "ca": "circa", "est": "established",
    "jan": "january", "feb": "february", "mar": "march", "apr": "april", "jun": "june",
    "jul": "july", "aug": "august", "sep": "september", "sept": "september", "oct": "october",
    "nov": "november", "dec": "december",
}  # fmt: skip
# Units that people write with a full stop after a number, as numbers.py knows them
DOTTED_UNITS = {u: u for u in _split("ft lb lbs oz mi yd hr hrs min mins sec gal")} | {"in": "inch"}
# Words that begin a sentence if they have a capital: a sentence ends in "Co. The".
STARTERS = _split(
    "A About After Again All Almost Also Although Always An And Another Any Anybody Anyone Are As "
    "At Because Before Both But By Can Come Could Did Do Does During Each Either Even Everybody "
    "Everyone Everything Every Few Finally For From Go Had Has Have He Her Here His How However I "
    "If In Instead Is It Its Just Last Later Let Many Maybe Meanwhile Might More Most Much Must My "
    "Neither Never Next No Nobody None Nor Not Nothing Now Often On Once One Only Or Our Others "
    "Perhaps Please Several Shall She Should Since So Some Somebody Someone Something Sometimes "
    "Soon Still Such Suddenly That The Their Then There Therefore These They This Those Though "
    "Through Thus To Today Tomorrow Tonight Under Until Was We Were What When Where Whether Which "
    "While Who Whose Why Will With Without Would Yes Yesterday Yet You Your"
)
STREETS = _split("street drive avenue boulevard road")
# What may go on with a time, as "7 a.m. Monday": other capitals after it begin a sentence.
TIMED = _split(
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May "
    "June July August September October November December Eastern Central Mountain Pacific "
    "Atlantic Greenwich London Paris Tokyo Moscow Beijing Standard Daylight Local Christmas Easter"
)
# Words that look like an abbreviation of BEFORE_NUMBERS; in lower case they may end a sentence.
WORDS_BEFORE_NUMBERS = _split("art fig figs chap sec")
NO_MORE = "in on of at for to and or but with by from as when because since until among behind"
SIGNS = {
    "&": " and ", "@": " at ", "#": " hashtag ", "+": " plus ", "=": " equals ", "_": " ",
    "%": " percent ", "\u00b0": " degrees ", "\u00d7": " times ", "\u00f7": " divided by ",
    "\u00b1": " plus or minus ", "<": " less than ", ">": " greater than ",
    "\u2264": " at most ", "\u2265": " at least ", "\u2248": " about ", "~": " about ",
    "\u2260": " is not equal to ", "\u00a7": " section ", "\u00a9": " copyright ", "|": " ",
    "/": " ", "\\": " backslash ", "*": " ", "\u2022": " ", "\u2122": " ", "\u00ae": " ", "^": " ",
    "\u2192": " to ", "\u221e": " infinity ", "\u221a": " square root of ", "\u00a2": " cents ",
    "\u2014": " - ", "\u2015": " - ", "$": " dollars ", "\u00a3": " pounds ",
    "\u20ac": " euros ", "\u00a5": " yen ",
}  # fmt: skip
OPERATORS = {  # as programmers type them
    **dict.fromkeys(("!=", "!==", "=/=", "<>"), "\u2260"),
    **dict.fromkeys(("==", "===", ":="), "="),
    **dict.fromkeys(("->", "-->", "=>", "==>"), "\u2192"),
    "<=": "\u2264", ">=": "\u2265", "~=": "\u2248", "+/-": "\u00b1", "&&": "&",
}  # fmt: skip
SIGNS_IN_ADDRESSES = {
    ".": "dot", "@": "at", "-": "dash", "_": "underscore", "/": "slash", ":": "colon",
    "?": "question mark", "=": "equals", "&": "and", "#": "hash", "+": "plus", "%": "percent",
    "~": "tilde",
}  # fmt: skip
DOMAINS = _split(
    "com org net edu gov mil info biz io ai dev app uk co de fr es nl eu ca au jp cn ru ch se pl "
    "py txt pdf html csv json wav mp3 jpg png exe"
)
KINGS = _split(
    "Alexander Alfonso Benedict Catherine Charles Christian Clement Edward Elizabeth Francis "
    "Frederick George Gregory Gustav Henry Innocent Ivan James John Leo Louis Mary Napoleon "
    "Nicholas Paul Philip Pius Ramses Richard Umberto Urban Wilhelm William"
)
NUMBERED = _split("Act Article Book Chapter Part Phase Scene Section Type Volume War")
ROMAN = (
    "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX XXI XXII XXIII XXIV "
    "XXV XXVI XXVII XXVIII XXIX XXX"
)
# Read letter by letter although they can be pronounced
INITIALISMS = _split(
    "abc ac ad ai aka am aol apa api ata atm bc ceo cfo cia coo cv dea diy ecg eeg ekg epa er esa "
    "est eta eu fda gui hiv icu id ie io ios iou ip ipo iq ira irs iso iv ivf lol ma mba mit mri "
    "nra nsa ny nyu ok os pa phd pm pow pr qa rna roi sos suv tba uae ucla ufo ui uk ul un ups url "
    "us usa usaf usb ussr utc uv ux vip"
)
WORDS_WHEN_SHOUTED = _split("us am ad ma pa id ok un er")  # in a text that is all capitals
UTTERANCES = _split("hmm shh psst mr mrs ms dr nth")
# How the syllables of English words begin and end. Short words that have none are read letter by
# letter; longer ones are taken for names.
ONSETS = _split(
    "b bl br c ch chr cl cr cz d dr dw f fl fr g gh gl gn gr gw h j k kh kl kn kr kw l ll m n p "
    "ph pl pr ps q r rh s sc sch schw scr sh shr sk sl sm sn sp sph spl spr sq st str sv sw t th "
    "thr thw tr ts tw v vl w wh wr x z"
)
CODAS = _split(
    "b bb bbs bs bt bts c ch chs cht chts ck cks cs ct cts d dd dds ds dst dth f ff ffs fs ft fth "
    "fts g gg ggs gh ghs ght ghts gn gns gs h hl hm hn hns hr hrs j k ks l lb lbs lc lch ld lds "
    "lf lfs lk lks ll lls lm lms ln lp lps ls lsh lt lth lts ltz lx lz m mb mbs mm mn mns mp mph "
    "mps mpt ms n nc nch nck nct nd nds ndt ng ngs nk nks nn nns ns nst nt nth nths nts ntz nx nz "
    "p ph phs pp pps ps pt pth pts q r rb rbs rc rch rck rct rd rds rf rfs rg rgs rk rks rl rld "
    "rlds rls rm rms rn rns rnt rp rps rr rrs rs rsh rst rsts rt rth rths rts rtz rv rx rz s sc "
    "sch sh sk sks sm sms sp sps ss st sts t tch th ths ts tt tts tz v w wd wds wk wks wl wls wn "
    "wns ws x xt xth z"
)
MAX_SPELLED = 5  # letters of a word that is read letter by letter for its lack of syllables

_OPERATOR = re.compile(any_of(OPERATORS))
_STARTER = rf"(?:{any_of(STARTERS)})\b(?!\.)"
_SENTENCE_END = re.compile(rf"[\"')\]]*(?:\s*\Z|\s*\n\s*\n|\s+[\"'(]*{_STARTER})|\.\.")
_TEXT_END = re.compile(r"[\"')\]]*\s*\Z|\.\.")
_ABBREVIATION = re.compile(r"(?<![\w.])(?<!\w')((?i:ph\. ?d|ll\.d)|[A-Za-z]{1,6}|&c)\.")
_NUMBER_AHEAD = re.compile(r"\s*#?(?:\d|[IVX]{2,}\b)")
_NUMBER_BEHIND = re.compile(r"\d[ -]?\Z")
_NAME_AHEAD = re.compile(rf"\s*(?!{_STARTER})[A-Z]")
_NAME_BEHIND = re.compile(r"\b[A-Z][\w'-]* \Z")
_STREET_BEHIND = re.compile(rf"\b(?!{_STARTER})[A-Z][\w'-]* \Z")
# "on Main St. Peter waited", but "on Mount St. Helens"
_ON_STREET = re.compile(
    r"\b(?:(?P<on>(?i:on|along|down|up|off|across|onto))|\d+) (?:[A-Z][\w'-]* )?"
    r"(?!(?:Mount|Mt|Fort|Ft|Lake|Port|Bay|Cape|Point|Sault|East|West|North|South)\b|"
    rf"(?:{any_of(TIMED)})\b)(?:[A-Z][\w'-]*|\d+(?:st|nd|rd|th)) \Z"
)
_ARTICLE_BEHIND = re.compile(r"\b(?i:the|an?|my|his|her|our|your|their) \Z")
_CAPITAL = r"[\"')\]]*\s+[\"'(]*(?:[A-Z][a-z]|[AI]\b)"
_COUNT = rf"\s+\d[\d,.]*\s+(?!(?:{any_of([*DOTTED_UNITS, *_split(NO_MORE)])})\b)[a-z]{{2,}}"
_NEW_SENTENCE = re.compile(rf"{_CAPITAL}|{_COUNT}")
_SENTENCE_AFTER_TIME = re.compile(rf"(?![\"')\]]*\s+(?:{any_of(TIMED)})\b){_CAPITAL}|{_COUNT}")
_TIME_FIRST = re.compile(  # "At 7 a.m." is no sentence yet, nor "the 7 a.m." a noun
    r"(?:\A|[.!?][\"')\]]*\s+)[\"'(]*(?:At|By|Around|About|From|Until|Before|After|Since|Till)"
    r"(?: [a-z]+)? [\d:]+\s?\Z|\b(?i:the|an?|this|my|his|her|our|your|their) [\d:]+\s?\Z"
)
_I_AHEAD = re.compile(r"\s+I\b")
_SAID = re.compile(  # and then "no"
    r"(?:,|\b(?i:said|say|says|saying|answer|answers|answered|reply|replied|replies|voted?|votes|"
    r"shouted|cried|whispered|told (?:him|her|me|us|them)|yes or|oh|mean|means|meant|simply|"
    r"definitely|absolutely|(?:a|an|the) (?:firm|clear|flat|resounding|definite|polite|simple|"
    r"loud|quiet|big|final|short|hard))) [\"']?\Z"
)
_IS = r"(?:is|was|are|were|be|been|remains|remained) (?:still |always |again )?\Z"
_REPLY_IS = re.compile(rf"\b(?i:answer|reply|response|vote|verdict|decision|result)s? {_IS}")
_IS_NO = re.compile(rf"\b{_IS}|\b(?:[Aa]|[Hh]ell) \Z|[:!?] \Z")
_PEOPLE = r"\s+\d[\d,.]*\s+(?!(?:was|is|as|has|does|this)\b)(?:people|men|women|children|[a-z]+s)\b"
_COUNT_AHEAD, _PEOPLE_AHEAD = re.compile(_COUNT), re.compile(_PEOPLE)
_REFERENCE_BEHIND = re.compile(
    r"(?:\A|[(\[,;:]\s*|\b(?i:see|in|cf|of|and|or|to|from|under|by|per|with|also|the) )\Z"
)
_FIGURE_BEHIND = re.compile(r"\d[^.!?]*, \Z")  # as in "vol. 2, no. 3"
_ORDINAL_BEHIND = re.compile(r"\d(?:st|nd|rd|th)[ -]\Z")
_MONTH = re.compile(  # without a full stop: "Dec 25", "25 Dec"
    r"\b(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b(?:(?= \d)|(?<=\d \w{3})|(?<=\d \w{4}))"
)
_VERSUS = re.compile(r"\bvs\b(?!\.)")
_BRITISH_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr)(?=\s+[A-Z])")
_LETTERS = re.compile(
    r"(?<![\w.])(?<!\w')(?:(?:[A-Za-z]\.){2,}(?:[A-Z](?![\w.]))?|[A-Z]\.[A-Z](?![\w.]))"
)
_INITIALS = re.compile(r"(?<![\w.])(?<!\w')[A-Z]\.(?:\s[A-Z]\.)*(?=\s+[A-Z\"'(]|[A-Z]|\s+[a-z])")
_NUMBERED_BEHIND = re.compile(rf"\b(?i:{any_of(NUMBERED)}) \Z")
_JOINED_SENTENCES = re.compile(r"(?<=[a-z][.!?])(?=[A-Z][a-z])")
_ADDRESS = re.compile(
    r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|(?<!\w)(?:(?:https?|ftp)://|www\.)[^\s<>\"]*[\w/]"
    rf"|(?<![\w@.-])(?:[\w-]+\.)+(?:{any_of(DOMAINS)})\b(?!\.?[A-Z])"
    r"(?:/[\w./?=&#%~+-]*[\w/])?"
)
_WORLD_WAR = re.compile(r"\bWW ?(I{1,2}|[12])\b")
_ROMAN = re.compile(
    rf"\b([A-Z][a-z]+|{any_of(map(str.upper, NUMBERED))})( the)? ({any_of(ROMAN.split())})\b"
)
_CAPITALS = re.compile(  # not ISN'T
    r"(?<![A-Za-z])(?<![A-Za-z]')([A-Z]{2,})('s|s)?(?![A-Za-z])(?!'[A-Za-z])"
)
_CODE = re.compile(r"(?<![A-Za-z])(?!USD|GBP|EUR|JPY|INR|CHF)[A-Z]{2,3}(?=\d)")
_ELLIPSIS = re.compile(r"\.(?:\s\.){2,}|\.{4,}")
_DOUBLE_QUOTE = re.compile("``|''|,,(?=\\w)")
_ONSET, _VOWELS, _CODA = f"(?:{any_of(ONSETS)})?", "[aeiouy]{1,3}", f"(?:{any_of(CODAS)})?"
_SYLLABLES = re.compile(rf"{_ONSET}(?:qu)?{_VOWELS}(?:{_CODA}{_ONSET}{_VOWELS})*{_CODA}")


@lru_cache(maxsize=16)
def has_capitals(known: frozenset[str]) -> bool:
    """Tell if a table of characters has capitals."""
    return any(c != c.lower() for c in known)


@lru_cache(maxsize=16)
def has_figures(known: frozenset[str]) -> bool:
    """Tell if a table of characters has figures."""
    return any(c.isdecimal() for c in known)


def is_shouted(text: str) -> bool:
    """Tell if a text is all capitals, and not just a name."""
    return text.isupper() and len(text.split()) > 2


def to_words(text: str, known: frozenset[str]) -> str:
    """Spell out abbreviations, addresses and signs, and numbers and capitals that `known` lacks."""
    if not known.issuperset("=<>"):
        text = _OPERATOR.sub(lambda m: OPERATORS[m[0]], text)
    shouted = is_shouted(text)
    text = expand_roman_numerals(expand_abbreviations(text))
    if not has_capitals(known):
        text = spell_codes(text)
    if not has_figures(known):
        text = spell_numerals(text)
    if not has_capitals(known):
        text = spell_capitals(text, shouted)
    return spell_signs(text, known)


def expand_abbreviations(text: str) -> str:
    """Spell out addresses, abbreviations and initials."""
    if "." in text or "@" in text or "://" in text:
        text = _ADDRESS.sub(_spell_address, text)
        text = _ABBREVIATION.sub(_expand_abbreviation, text)
        text = _LETTERS.sub(_spell_letters, text)
        text = _INITIALS.sub(_spell_initials, text)
        text = _JOINED_SENTENCES.sub(" ", text)
    text = _MONTH.sub(lambda m: BEFORE_NUMBERS[m[0].lower()].capitalize(), text)
    text = _VERSUS.sub("versus", text)
    return _BRITISH_TITLE.sub(lambda m: TITLES[m[0].lower()].capitalize(), text)


def _spell_address(match: re.Match) -> str:
    """Spell 'bob@example.com' or 'https://www.example.org/a-b'."""
    address = re.sub(r"^\w+://", "", match[0]).rstrip("/")
    words = []
    for part in re.findall(r"[A-Za-z]+|\d+|.", address):
        lower = part.lower()
        if re.fullmatch("[a-z]+", lower) and len(part) <= MAX_SPELLED:
            is_word = is_pronounceable(lower) and lower not in INITIALISMS
            part = part if is_word else " ".join(lower)
        words.append(SIGNS_IN_ADDRESSES.get(part, part))
    return " ".join(words)


def _expand_abbreviation(match: re.Match) -> str:
    """Replace an abbreviation and its full stop, with regard to the text before and after it."""
    text, word, end = match.string, match[1].lower(), match.end()
    before = _before(match)
    if word in DOTTED_UNITS and _NUMBER_BEHIND.search(before):
        full = DOTTED_UNITS[word]
    elif match[1] in ("C", "P"):  # 20 degrees C. 5 men left.
        return match[0]
    elif word in BEFORE_NUMBERS and _NUMBER_AHEAD.match(text, end):
        if match[1].islower() and _is_word(word, before, text, end):
            return match[0]
        return f"{_match_capital(BEFORE_NUMBERS[word], match[1])} "
    elif word not in ABBREVIATIONS or (word in CAPITALISED and match[1].islower()):
        return match[0]
    elif word in AFTER_NAMES and (
        _ORDINAL_BEHIND.search(before)
        or ((word == "ft" or _STREET_BEHIND.search(before)) and not _NAME_AHEAD.match(text, end))
        or (word == "st" and _ON_STREET.search(before))
    ):
        full = AFTER_NAMES[word]
    else:
        full = ABBREVIATIONS[word]
    is_title = full == TITLES.get(word) and not _ARTICLE_BEHIND.search(before)
    ends = (_TEXT_END if is_title else _SENTENCE_END).match(text, end)
    on_street = full in STREETS and _ON_STREET.search(before)
    if full in DOTTED_UNITS.values() or word == "etc" or (on_street and on_street["on"]):
        ends = ends or _NEW_SENTENCE.match(text, end)
    return _match_capital(full, match[1]) + ("." if ends else _space(match))


def _is_word(word: str, before: str, text: str, end: int) -> bool:
    """Tell if the 'no.' of "he said no. 5 men left" is a word that ends a sentence."""
    if word == "no":
        if _FIGURE_BEHIND.search(before):
            return False
        is_count = _REPLY_IS.search(before) and _COUNT_AHEAD.match(text, end)
        is_people = _IS_NO.search(before) and _PEOPLE_AHEAD.match(text, end)
        return bool(_SAID.search(before) or is_count or is_people)
    return word in WORDS_BEFORE_NUMBERS and not _REFERENCE_BEHIND.search(before)


def _before(match: re.Match) -> str:
    """Return the text just before a match, long enough for a name."""
    return match.string[max(0, match.start() - 30) : match.start()]


def _space(match: re.Match) -> str:
    """Return the space needed between a word that replaces a match and the text after it."""
    return " " if match.string[match.end() : match.end() + 1].isalnum() else ""


def _match_capital(word: str, found: str) -> str:
    return word.capitalize() if found[0].isupper() else word


def _spell_letters(match: re.Match) -> str:
    """Spell 'U.S.', 'p.m.', 'J.R.R.'; the full stop stays where a sentence ends."""
    letters = " ".join(re.findall("[A-Za-z]", match[0]))
    ends = match[0].endswith(".") and _SENTENCE_END.match(match.string, match.end())
    if letters.lower() in ("a m", "p m"):
        is_first = _TIME_FIRST.search(_before(match))
        after = _TEXT_END if is_first else _SENTENCE_AFTER_TIME
        is_end = ends and not (is_first and _I_AHEAD.match(match.string, match.end()))
        ends = is_end or after.match(match.string, match.end())
    if ends:
        return f"{letters}."
    return letters + _space(match)


def _spell_initials(match: re.Match) -> str:
    """Spell the 'J. D.' of 'J. D. Tippit', but not the "I." that ends a sentence."""
    before = _before(match)
    if _NUMBERED_BEHIND.search(before):
        return match[0]  # Chapter I. The Beginning
    is_initial = _NAME_BEHIND.search(before) or _ORDINAL_BEHIND.search(before) or not before
    return match[0] if match[0] == "I." and not is_initial else _spell_letters(match)


def expand_roman_numerals(text: str) -> str:
    """Write the Roman numerals of kings, wars and chapters in figures."""
    text = _WORLD_WAR.sub(lambda m: f"World War {2 if m[1] in ('II', '2') else 1}", text)
    return _ROMAN.sub(_write_roman, text)


def _write_roman(match: re.Match) -> str:
    """Write 'Henry VIII', 'World War II'; one letter only after words that a number follows."""
    word, roman = match[1], match[3]
    if word in STARTERS:
        return match[0]  # The IV was in his arm.
    number = ROMAN.split().index(roman) + 1
    is_king = word in KINGS or bool(match[2])
    if len(roman) == 1 and word.capitalize() not in NUMBERED and not (is_king and roman != "I"):
        return match[0]
    if word.isupper() and roman == "I" and re.match(r"\s*\w", match.string[match.end() :]):
        return match[0]  # THE PART I LIKE
    return f"{word} the {num2words(number, to='ordinal_num')}" if is_king else f"{word} {number}"


def spell_codes(text: str) -> str:
    """Spell the letters of codes such as MP3 one by one."""
    return _CODE.sub(lambda m: " ".join(m[0].lower()) + " ", text)


def spell_capitals(text: str, is_shouted: bool = False) -> str:
    """Spell words in capitals letter by letter where people do; a shouted US is the word "us"."""

    def spell(match: re.Match) -> str:
        word = match[1].lower()
        around = text[: match.start()][-1:] + text[match.end() :][:1]
        is_joined = len(word) <= 3 and "&" in around  # AT&T
        is_initialism = word in INITIALISMS and not (is_shouted and word in WORDS_WHEN_SHOUTED)
        is_odd = len(word) <= MAX_SPELLED and not is_pronounceable(word) and word not in UTTERANCES
        if is_joined or is_initialism or is_odd:
            return " ".join(word) + ("'s" if match[2] else "")
        return match[0]

    return _CAPITALS.sub(spell, text)


def is_pronounceable(word: str) -> bool:
    """Tell if a word in lower case is made of English syllables: 'nasa' is, 'fbi' is not."""
    return bool(_SYLLABLES.fullmatch(word)) and any(c not in "aeiou" for c in word)


def spell_signs(text: str, known: frozenset[str]) -> str:
    """Name the signs that `known` lacks, if it has the letters of their names; unify quotes."""
    text = _DOUBLE_QUOTE.sub('"', _ELLIPSIS.sub("...", text))
    if "#" not in known:
        text = re.sub(r"(?<=[A-Z])#(?!\w)", " sharp", text)
    if known.issuperset(text) or SIGNS.keys().isdisjoint(text):
        return text
    sayable = known | {c.lower() for c in known}
    names = {c: name for c, name in SIGNS.items() if c not in known and sayable.issuperset(name)}
    return "".join(names.get(c, c) for c in text)
