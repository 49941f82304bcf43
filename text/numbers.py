"""Spell everything with figures as English words: numbers, money, units, dates, times, telephones.

    spell_numerals("$3.50 at 10:30 for 5 kg")
    # "three dollars and fifty cents at ten thirty for five kilograms"

`spell_numerals` applies the rules at the end in order, from the longest patterns to the shortest.
Functions named _write_ leave figures ("3 dollars and 50 cents"), which the last rule spells.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from num2words import num2words

MAX_FIGURES = 15  # longer numbers are read figure by figure
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
CURRENCIES = {  # singular and plural, and those of the hundredths where people use them
    "$": ("dollar", "dollars", "cent", "cents"),
    "\u00a3": ("pound", "pounds", "penny", "pence"),
    "\u20ac": ("euro", "euros", "cent", "cents"),
    "\u00a5": ("yen", "yen"),
    "\u20b9": ("rupee", "rupees", "paisa", "paise"),
    "\u20a9": ("won", "won"),
    "\u20bd": ("ruble", "rubles"),
    "\u00a2": ("cent", "cents"),
    "CHF": ("franc", "francs"),
}
CODES = {"USD": "$", "GBP": "\u00a3", "EUR": "\u20ac", "JPY": "\u00a5", "INR": "\u20b9"}
CODES["CHF"] = "CHF"
NATIONS = {
    "US": "", "A": "Australian ", "AU": "Australian ", "C": "Canadian ", "CA": "Canadian ",
    "HK": "Hong Kong ", "NZ": "New Zealand ", "S": "Singapore ",
}  # fmt: skip
MAGNITUDES = {
    "k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion",
    "tn": "trillion", "hundred": "hundred", "thousand": "thousand", "million": "million",
    "billion": "billion", "trillion": "trillion",
}  # fmt: skip
UNITS = {  # mW is not MW
    "kg": "kilogram", "g": "gram", "mg": "milligram", "\u03bcg": "microgram", "t": "ton",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "km": "kilometer", "m": "meter",
    "cm": "centimeter", "mm": "millimeter", "\u03bcm": "micrometer", "nm": "nanometer",
    "mi": "mile", "yd": "yard", "ft": "foot", "inch": "inch", "ha": "hectare", "l": "liter",
    "L": "liter", "ml": "milliliter", "mL": "milliliter", "gal": "gallon", "h": "hour",
    "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "sec": "second",
    "secs": "second", "ms": "millisecond", "\u03bcs": "microsecond", "ns": "nanosecond",
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "W": "watt",
    "mW": "milliwatt", "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt",
    "kWh": "kilowatt-hour", "V": "volt", "kV": "kilovolt", "mA": "milliamp", "\u03a9": "ohm",
    "Pa": "pascal", "kPa": "kilopascal", "dB": "decibel", "kB": "kilobyte", "KB": "kilobyte",
    "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte", "Mbps": "megabit a second",
    "cal": "calorie", "kcal": "kilocalorie", "kJ": "kilojoule", "px": "pixel",
    "hp": "horsepower", "mph": "mile an hour", "kph": "kilometer an hour",
    "rpm": "revolution a minute", "fps": "frame a second", "%": "percent", "\u2030": "per mille",
    "sq ft": "square foot", "\u00b0": "degree", "\u00b0C": "degree Celsius",
    "\u00b0 C": "degree Celsius", "\u00b0F": "degree Fahrenheit",
    "\u00b0 F": "degree Fahrenheit",
}  # fmt: skip
# Plurals that do not just add an s to the first word: "miles an hour", but "square feet"
PLURALS = {"foot": "feet", "inch": "inches", "square foot": "square feet"}
PLURALS |= {name: name for name in UNITS.values() if name.endswith(("hertz", "power"))}
PLURALS |= {"percent": "percent", "per mille": "per mille"}
PER = {"s": "second", "d": "day", "wk": "week", "mo": "month", "yr": "year"}  # after a slash
DENOMINATORS = {*range(2, 11), 12, 16, 32, 64, 100}

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"  # a comma only before three figures
_NUMBER = rf"{_WHOLE}(?:\.\d+)?"
_FRACTION = r"(?:\d{1,3}[ -])?\d{1,3}/\d{1,3}(?![\d/])"


def any_of(words: Iterable[str]) -> str:
    """Build a pattern that matches any of the words, the longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


@lru_cache(maxsize=4096)
def _spell_whole(number: int, kind: str = "cardinal") -> str:
    return num2words(number, to=kind)


def _spell_figures(figures: str) -> str:
    return " ".join(_spell_whole(int(figure)) for figure in figures)


def spell_number(number: str) -> str:
    """Spell '1465' as 'fourteen sixty-five', '1,465' as 'one thousand, ...', '2.5' as a decimal."""
    whole, _, decimals = number.replace(",", "").partition(".")
    if len(whole) > MAX_FIGURES or (len(whole) > 1 and whole[0] == "0"):
        words = _spell_figures(whole)
    else:
        # Four figures without a comma are read as LJSpeech's reader does, as a year.
        is_year = number == whole and len(whole) == 4 and whole[1:3] != "00"
        words = _spell_whole(int(whole or 0), "year" if is_year else "cardinal")
    return f"{words} point {_spell_figures(decimals)}" if decimals else words


def _spell_ordinal(match: re.Match) -> str:
    whole = match[1].replace(",", "")
    if len(whole) > MAX_FIGURES:
        return _spell_figures(whole) + match[2]
    return _spell_whole(int(whole), "ordinal")


def _spell_plural(match: re.Match) -> str:
    """Spell '1990s', '90s', '747s' and "1990's"; but "2024's" is a genitive."""
    words = spell_number(match["number"])
    if words in ("one hundred", "one thousand"):
        words = words.removeprefix("one ")
    if match["apostrophe"] and not match["number"].endswith("0"):
        return f"{words}'s"
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return words + ("es" if words.endswith("x") else "s")


def _spell_time(match: re.Match) -> str:
    """Spell '10:30', '10:05', '10:00', '22:00', '10 am', '10:30:15'."""
    hour, minute, second, half = match.group("hour", "minute", "second", "half")
    if int(hour) > 24 or int(minute or 0) > 59 or int(second or 0) > 59:
        return match[0]
    words = [_spell_whole(int(hour))]
    if int(minute or 0):
        words += ["oh"] * (minute[0] == "0") + [_spell_whole(int(minute))]
    elif not half:
        words.append("hundred" if int(hour) > 12 else "o'clock")
    if second:
        words.append(f"and {_spell_whole(int(second))} second{'s' * (int(second) != 1)}")
    return " ".join([*words, half.lower(), "m"] if half else words)


def _write_date(year: str, month: str, day: str, found: str) -> str:
    if 1 <= int(month) <= 12 and 1 <= int(day) <= 31:
        return f"{MONTHS[int(month) - 1]} {int(day)}, {year}"
    return found


def _write_slashed_date(match: re.Match) -> str:
    """Write '3/4/2024' as 'March 4, 2024', but '13/4/2024' as 'April 13, 2024'."""
    month, day = (match[2], match[1]) if int(match[1]) > 12 else (match[1], match[2])
    return _write_date(match[3], month, day, match[0])


def _spell_phone(match: re.Match) -> str:
    """Spell '555-1234', '(555) 123-4567', '+44 20 7946 0958' figure by figure."""
    groups = re.findall(r"\d+", match[0])
    is_range = len(groups) == 2 and all(group.endswith("0") for group in groups)
    has_plus = match[0].startswith("+")
    if is_range or max(map(len, groups)) < 3 or (has_plus and sum(map(len, groups)) < 7):
        return match[0]
    return "plus " * has_plus + ", ".join(map(_spell_figures, groups))


def _spell_version(match: re.Match) -> str:
    """Spell 'v2.0.1', 'version 3.10', '2.0.1', and 192.168.0.1 figure by figure."""
    parts = match["parts"].split(".")
    if not match["name"] and len(parts) == 4:
        return " dot ".join(map(_spell_figures, parts))
    return "version " * bool(match["name"]) + " point ".join(map(spell_number, parts))


def _write_range(match: re.Match) -> str:
    """Write '10-20', '1914-18', '$5-10', '9am-5pm' with "to" instead of the dash."""
    first, second = match[1], match[2]
    if first[0] in CURRENCIES and second[0] not in CURRENCIES:
        first, second = first[1:], first[0] + second
    if re.fullmatch(r"\d{4}", first) and re.fullmatch(r"0\d", second):
        second = f"oh {second[1]}"
    return f"{first} to {second}"


def _swap_separators(number: str) -> str:
    """Write '10.000,50' as '10,000.50'."""
    return number.translate({ord("."): ",", ord(","): "."})


def _write_dotted(match: re.Match) -> str:
    """Write '1.000.000' as '1,000,000', but not the address 192.168.100.200."""
    parts = match[0].split(".")
    is_address = len(parts) == 4 and all(str(int(x)) == x and int(x) < 256 for x in parts)
    return match[0] if is_address else _swap_separators(match[0])


def _write_power(match: re.Match) -> str:
    """Write '2.5e-3' as '2.5 times 10^-3'."""
    return f"{match[1]} times 10^{match[2].strip('+')}{int(match[3])}"


def _spell_fraction(match: re.Match) -> str:
    """Spell '1/2' and '2 3/4' as fractions, but not 9/11 and 24/7."""
    whole, top, bottom = match[1], int(match[2]), int(match[3])
    if not 0 < top < bottom or bottom not in DENOMINATORS:
        return match[0].replace("/", " ")
    ordinal = _spell_whole(bottom, "ordinal")
    names = {2: ("half", "halves"), 4: ("quarter", "quarters")}
    name = names.get(bottom, (ordinal, f"{ordinal}s"))[top > 1]
    if whole is None:
        return f"{_spell_whole(top)} {name}"
    return f"{spell_number(whole)} and {'a' if top == 1 else _spell_whole(top)} {name}"


def _plain_amount(number: str) -> str:
    """Keep a number from being read as a year: 1465 -> 1,465."""
    return f"{int(number):,}" if number.isdecimal() and len(number) == 4 else number


def _name_unit(unit: str, is_plural: bool) -> str:
    """Name a unit: 'km' -> 'kilometers', 'm^2' -> 'square meters'."""
    power = {"^2": "square ", "^3": "cubic "}.get(unit[-2:], "")
    name = UNITS[unit[:-2] if power else unit]
    if is_plural:
        first, space, rest = name.partition(" ")
        name = PLURALS.get(name, f"{first}s{space}{rest}")
    return power + name


def _name_divisor(divisor: str | None) -> str:
    """Name '/h' -> ' per hour', '/m^2' -> ' per square meter', '/person' -> ' per person'."""
    if not divisor:
        return ""
    unit, power = divisor[1:].removesuffix("^2").removesuffix("^3"), divisor[-2:]
    if unit in PER:
        return f" per {PER[unit]}" + {"^2": " squared", "^3": " cubed"}.get(power, "")
    return f" per {_name_unit(divisor[1:], is_plural=False) if unit in UNITS else unit}"


def _write_amount(match: re.Match) -> str:
    """Write '5kg', '1 ft', '10-ft', '60 km/h', '1/2 m^2' with the unit's name."""
    number, space, unit, divisor = match.groups()
    is_plural = number != "1" and space != "-" and not re.fullmatch(r"\d+/\d+", number)
    name = _name_unit(unit, is_plural) + _name_divisor(divisor)
    return f"{_plain_amount(number)}{'-' if space == '-' else ' '}{name}"


def _write_money(match: re.Match) -> str:
    """Write an amount, apart from a letter right behind it: '$100s'."""
    glued = match.string[match.end() : match.end() + 1].isalnum()
    return _write_amount_of_money(match) + " " * glued


def _write_amount_of_money(match: re.Match) -> str:
    """Write '$3.50', '\u20ac3,50', '\u00a35m', '$1.5 million', 'US$5', '5 EUR', '$5/kg'."""
    found = match.groupdict()
    sign = CODES.get(found["sign"], found["sign"])
    names = CURRENCIES[sign]
    one, several = (NATIONS.get(found.get("nation") or "", "") + name for name in names[:2])
    if re.search(r"\b[Aa]n? \Z", match.string[max(0, match.start() - 4) : match.start()]):
        several = one  # "a $20 bill"
    number = re.sub(r",(?=\d\d?$)", ".", found["number"])
    divisor = _name_divisor(found["divisor"])
    if found["magnitude"]:
        return f"{number} {MAGNITUDES[found['magnitude'].lower()]} {several}{divisor}"
    whole, _, hundredths = number.partition(".")
    if len(names) == 2 or len(hundredths) != 2 or hundredths == "00":
        number = _plain_amount(whole) + (f".{hundredths}" if hundredths.strip("0") else "")
        return f"{number} {one if number == '1' else several}{divisor}"
    words = f"{int(hundredths)} {names[2] if hundredths == '01' else names[3]}"
    if whole.strip("0"):
        words = f"{_plain_amount(whole)} {one if whole == '1' else several} and {words}"
    return words + divisor


# A unit or currency, in figures or words, before which "2,5" is no list
_MEASURES = {
    *UNITS,
    *UNITS.values(),
    *CURRENCIES,
    *CODES,
    *(n for c in CURRENCIES.values() for n in c),
}
_MEASURES |= {"feet", "inches", "day", "week", "month", "year", "time", "point", "per cent"}
_MEASURES |= {"hundred", "thousand", "million", "billion", "trillion", "bn"}
_MEASURE_AHEAD = rf"(?=\s?(?:{any_of(_MEASURES)})s?(?:\^[23])?(?![\w^]))"
_SIGN = rf"[{''.join(sign for sign in CURRENCIES if len(sign) == 1)}]"
_PRICE = rf"(?P<number>\d+,\d\d?(?![\d,])|{_NUMBER}|\.\d+)"
_PRICE += rf"(?:[\s-]?(?P<magnitude>(?i:{any_of(MAGNITUDES)}))(?![\w^]))?"
_DIVISOR = r"(?P<divisor>/[A-Za-z\u03bc]+(?:\^[23])?)?"
_HOUR = r"(?<![\w.,:])(?P<hour>\d{1,2})"
_MINUTE = r"(?P<minute>\d\d)(?::(?P<second>\d\d))?"
_END_OF_RANGE = rf"(?:{_SIGN})?(?:\d\d?:\d\d|{_NUMBER})"
_PHONE = (  # with a country, in American forms, and any three groups with dashes
    r"\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,6}|(?:1[ -])?\(\d{3}\)\s?\d{3}[ .-]\d{4}"
    r"|0\d{1,4} \d{3,4} \d{3,4}|\d{3} \d{3} \d{4}|\d{3}\.\d{3}\.\d{4}|\d+(?:-\d+){2,}"
    r"|[2-9]\d\d-\d{4}"
)
_EURO = r"(?:\u20ac|EUR|CHF)"
_RULES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (
        r"(?:(?<=\d)|(?<=\d[s%])|(?<=[ap] m)|(?<=[ap]m)|(?<=[AP]M))\s*[\u2010-\u2015]\s*"
        rf"(?={_SIGN}?\d)",
        "-",
    ),
    (r"\u2212\s?", " minus "),
    # Numbers as other languages and programs write them: 10.000,50; 10 000; 10'000; 2,5 km; 1e-5
    (r"(?<![\w.,])\d{1,3}(?:\.\d{3})+,\d+(?![.,]?\d)", lambda m: _swap_separators(m[0])),
    (r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,}(?![.,]?\d)", _write_dotted),
    (rf"(?<!\w){_EURO}\s?\d{{1,3}}(?:\.\d{{3}})+(?![\d.,]\d)", lambda m: _swap_separators(m[0])),
    (
        rf"(?<![\w.,])\d{{1,3}}(?:\.\d{{3}})+(?=\s?(?:{_EURO}|[Ee]uros?\b))",
        lambda m: _swap_separators(m[0]),
    ),
    (
        r"(?<![\w.,+-])(?<!\d )[1-9]\d{0,2}(?:(?: \d{3}){2,}| 000| \d{3}(?=,\d\d?\b)"
        rf"| \d{{3}}{_MEASURE_AHEAD})(?! ?\d)",
        lambda m: m[0].replace(" ", ","),
    ),
    (
        rf"({_SIGN} ?[1-9]\d{{0,2}})((?: \d{{3}})+)(?! ?\d)",
        lambda m: m[1] + m[2].replace(" ", ","),
    ),
    (r"(?<![\w.,'])\d{1,3}(?:'\d{3})+(?![\d'])", lambda m: m[0].replace("'", ",")),
    (r"(?<![\w.,])\d{1,3}(?:_\d{3})+(?!\w)", lambda m: m[0].replace("_", ",")),
    (
        r"(?<![\w.,])\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])",  # 12,34,567, as in India
        lambda m: f"{int(m[0].replace(',', '')):,}",
    ),
    (
        rf"(?<![\w.,])(\d+|\d{{1,3}}(?:,\d{{3}})+),(\d{{1,2}}|\d{{4,}})"
        rf"(?=(?:\s?[-\u2013x\u00d7]\s?\d+(?:[.,]\d+)?)?{_MEASURE_AHEAD})",
        r"\1.\2",
    ),
    (r"(?<![\w.,])(0|\d{1,3}(?:,\d{3})+),(\d\d?|\d{4,})(?![\d,])", r"\1.\2"),
    (r"(?<![\w.,])(\d+),(?=\d+[eE][+-]?\d{1,3}(?!\w))", r"\1."),
    (rf"(?<![\w.,])({_NUMBER})[eE]([+-]?)(\d{{1,3}})(?!\w|\.\d)", _write_power),
    (
        rf"(?<![\w.,])({_NUMBER})[eE]([+-])(\d{{1,3}})(?=(?:{any_of(UNITS)})(?!\w))",
        lambda m: _write_power(m) + " ",
    ),
    # Dates, telephone numbers, versions, ranges, times
    (r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda m: _write_date(m[1], m[2], m[3], m[0])),
    (r"(?<![\w/])(\d{1,2})/(\d{1,2})/(\d{4}|\d\d)(?![\w/])", _write_slashed_date),
    (
        r"(?<![\w.])(\d{1,2})\.(\d{1,2})\.(\d{4})(?!\.?\w)",
        lambda m: _write_date(m[3], m[2], m[1], m[0]),
    ),
    (rf"(?<![\w.,/$+-])(?:{_PHONE})(?![\w/-])", _spell_phone),
    (
        r"(?<![\w.])(?:(?P<name>[Vv]ersion |[Vv]er\. ?|v\.? ?)(?=\d)|(?=\d+\.\d+\.\d))"
        r"(?P<parts>\d+(?:\.\d+)*)(?!\w)",
        _spell_version,
    ),
    (rf"(?<![\w.)%'\"^-])-(?={_SIGN}?\.?\d)", "minus "),
    (
        rf"(?<![\w.,-])({_END_OF_RANGE}(?:\s?(?:[AaPp] ?[Mm]|%|\u00b0[CF]?|[a-z]{{1,2}}))?)-"
        rf"({_END_OF_RANGE})(?![-\d])",
        _write_range,
    ),
    (r"(:\d\d) [-\u2013] (?=\d\d?:\d\d)", r"\1 to "),
    (rf"{_HOUR}(?:[:.]{_MINUTE})?\s?(?P<half>[AaPp])[. ]?[Mm](?!\w)", _spell_time),
    (rf"{_HOUR}:{_MINUTE}(?P<half>)(?![\d:])", _spell_time),
    (r"(?<=\d):(?=\d)", " to "),
    (
        r"\b(\d+) ?h(?:rs?)? ?(\d\d?) ?m(?:ins?)?(?: ?(\d\d?) ?s)?\b",
        lambda m: f"{m[1]} h {m[2]} min" + f" {m[3]} sec" * bool(m[3]),
    ),
    # Money, units, fractions
    (
        rf"(?<!\w)(?:(?P<nation>{any_of(NATIONS)})(?:(?<=\w\w) )?)?"  # A$5, US $5, but "A $5 note"
        rf"(?P<sign>{_SIGN}|{any_of(CODES)})\s?{_PRICE}{_DIVISOR}",
        _write_money,
    ),
    (rf"(?<![\d.,]){_PRICE}\s?(?P<sign>{_SIGN}|(?:{any_of(CODES)})\b){_DIVISOR}", _write_money),
    (r"(?<![\w.,])(\d\d?)p\b", lambda m: f"{m[1]} {'penny' if m[1] == '1' else 'pence'}"),
    (
        rf"(?<![\d.,])({_NUMBER})(?:\s?bn|M)\b",
        lambda m: m[1] + " " + ("billion" if m[0][-1] == "n" else "million"),
    ),
    (
        r"\u00b0\s?(\d+)['\u2032](?:\s?(\d+(?:\.\d+)?)[\"\u2033])?",
        lambda m: f"\u00b0 {m[1]} minutes" + (f" {m[2]} seconds" if m[2] else ""),
    ),
    (r"\b(\d+)['\u2032]\s?(\d+(?:\.\d+)?)(?:[\"\u2033]|'')?(?!\w)", r"\1 feet \2 inches"),
    (r"(?<=\d)\u2032(?!\w)", " feet"),
    (r"(?<=\d)\u2033(?!\w)", " inches"),
    (
        rf"(?<![\w.,/])({_FRACTION}|{_NUMBER})(\s?|-)((?:{any_of(UNITS)})(?:\^[23])?){_DIVISOR}(?![\w^])",
        _write_amount,
    ),
    (r"(?<![\w.,/])(?:(\d{1,3})[ -])?(\d{1,3})/(\d{1,3})(?![\d/])", _spell_fraction),
    # Numbers with letters and signs
    (rf"(?<![\w.,])'?(?P<number>{_WHOLE})(?P<apostrophe>')?s\b", _spell_plural),
    (rf"\b({_WHOLE})((?i:st|nd|rd|th))\b", _spell_ordinal),
    (r"#\s?(?=\d)", " number "),
    (r"\^2(?!\d)", " squared"),
    (r"\^3(?!\d)", " cubed"),
    (r"\^(-?)(?=\d)", lambda m: " to the power of " + "minus " * bool(m[1])),
    (r"(?<=\d)\s?[xX]\s?(?=\d)", " by "),
    (r"(?<=\d)\s?\*\s?(?=\d)", " times "),
    (r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " "),
    (rf"(?<!\w)\.\d+|{_NUMBER}", lambda m: spell_number(m[0])),
]
_COMPILED = [(re.compile(pattern), action) for pattern, action in _RULES]


def spell_numerals(text: str) -> str:
    """Spell everything with figures as words."""
    if re.search(r"\d", text):
        for pattern, action in _COMPILED:
            text = pattern.sub(action, text)
    return text
