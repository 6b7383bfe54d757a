"""English as it is read aloud: numbers, dates, times, money, units, symbols and abbreviations become words.

Rules run in order, the most specific first, and each rewrites what it recognises; the names of numbers come from
num2words. Where a text can be read in more than one way, the plainest reading wins: four digits from 1100 to 2099
are a year, a date in digits is American unless it can't be, `St.` is a saint before a name and a street after one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

from num2words import num2words

Match = re.Match[str]

MAX_DIGITS = 15
"""Longer numbers are read digit by digit."""
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
"""One and many of a currency, one and many of its hundredth."""
SCALES = {"k": "thousand", "K": "thousand", "m": "million", "M": "million", "bn": "billion", "B": "billion"}
UNITS = {
    "km/h": "kilometer per hour", "m/s": "meter per second", "km": "kilometer", "cm": "centimeter", "mm": "millimeter",
    "m": "meter", "mi": "mile", "ft": "foot", "mph": "mile per hour", "kg": "kilogram", "mg": "milligram", "g": "gram",
    "lbs": "pound", "lb": "pound", "oz": "ounce", "ml": "milliliter", "L": "liter", "tsp": "teaspoon",
    "tbsp": "tablespoon", "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "kB": "kilobyte",
    "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte", "kWh": "kilowatt hour", "kW": "kilowatt",
    "W": "watt", "V": "volt", "dB": "decibel", "ms": "millisecond", "sec": "second", "secs": "second",
    "min": "minute", "mins": "minute", "hr": "hour", "hrs": "hour", "°C": "degree Celsius", "°F": "degree Fahrenheit",
    "°": "degree",
}  # fmt: skip
ABBREVIATIONS = {
    "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Dr": "Doctor", "Prof": "Professor", "Jr": "Junior", "Sr": "Senior",
    "Gen": "General", "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Rev": "Reverend",
    "Hon": "Honorable", "Gov": "Governor", "Sen": "Senator", "Co": "Company", "Inc": "Incorporated",
    "Ltd": "Limited", "Corp": "Corporation", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Mt": "Mount",
    "Dept": "Department", "dept": "department", "approx": "approximately", "vs": "versus", "etc": "et cetera",
    "Messrs": "Messieurs",
}  # fmt: skip
BEFORE_NUMBERS = {"No": "number", "no": "number", "Nos": "numbers", "p": "page", "pp": "pages", "Fig": "figure",
                  "Vol": "volume", "vol": "volume", "Ch": "chapter", "Sec": "section"}  # fmt: skip
SYMBOLS = {
    "&": "and", "@": "at", "%": "percent", "+": "plus", "=": "equals", "\u00d7": "times", "°": "degrees",
    "§": "section", "÷": "divided by", "±": "plus or minus", "$": "dollars", "£": "pounds", "€": "euros",
    "¥": "yen", "₹": "rupees", "½": "one half", "¼": "one quarter", "¾": "three quarters", "#": "number",
}  # fmt: skip
PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2212": "-", "\u0131": "i", "ß": "ss", "æ": "ae",
     "\u00b5": " micro ", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ð": "th", "Ð": "Th", "þ": "th", "Þ": "Th"}
)  # fmt: skip
DASHES = "\u2013\u2014"


def read_aloud(text: str) -> str:
    """Write an English text in words, as a reader would say it; punctuation stays.

    Whatever it is given, it returns neither digits nor symbols; letters of other scripts stay as they are.
    """
    text = _plain_latin(text.translate(PLAIN))
    for pattern, replace in RULES:
        text = pattern.sub(replace, text)
    return " ".join(text.split())


def cardinal(number: str) -> str:
    """Name a number that counts or measures, such as `1,234.50` or `007`."""
    whole, _, decimals = number.replace(",", "").partition(".")
    if len(whole) > MAX_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        words = digits(whole)
    else:
        words = str(num2words(int(whole or 0))).replace(",", "")
    return f"{words} point {digits(decimals)}" if decimals else words


def digits(number: str) -> str:
    """Name a number digit by digit."""
    return " ".join(str(num2words(int(digit))) for digit in number)


def ordinal(number: str) -> str:
    """Name a place in a row."""
    return str(num2words(int(number), to="ordinal")).replace(",", "") if len(number) <= MAX_DIGITS else digits(number)


def number(text: str) -> str:
    """Name a number of which nothing else is known: a year if it looks like one."""
    return str(num2words(int(text), to="year")) if re.fullmatch(r"1[1-9]\d\d|20\d\d", text) else cardinal(text)


def plural(noun: str) -> str:
    """Put the first word of a unit into the plural, `feet` and `hertz` included."""
    head, *rest = noun.split()
    head = "feet" if head == "foot" else head if head.endswith("hertz") else f"{head}s"
    return " ".join([head, *rest])


def _plain_latin(text: str) -> str:
    """Take accents off Latin letters and full width off digits; what is neither letter nor number becomes a space."""
    return "".join(
        character if character.isascii() or character in SYMBOLS or character in DASHES else _base(character)
        for character in unicodedata.normalize("NFC", text)
    )


def _base(character: str) -> str:
    plain = "".join(part for part in unicodedata.normalize("NFKD", character) if part.isascii())
    stroked = re.match("LATIN (SMALL|CAPITAL) LETTER ([A-Z]) WITH", unicodedata.name(character, ""))
    if stroked and not plain:
        return stroked[2] if stroked[1] == "CAPITAL" else stroked[2].lower()
    return plain or (character if unicodedata.category(character)[0] in "LMN" else " ")


def _address(match: Match) -> str:
    spoken = re.sub(r"^https?://", "", match[0]).replace(".", " dot ").replace("@", " at ")
    return re.sub(r"[/:?=&#_-]+", " slash ", spoken.strip("/"))


def _long_date(match: Match) -> str:
    month, day, year = match.groups()
    named = next(name for name in MONTHS if name.startswith(month.rstrip(".")[:3]))
    return f"{named} {ordinal(day)}" + (f", {number(year)}" if year else "")


def _day_first_date(match: Match) -> str:
    the, day, month = match.groups()
    named = next(name for name in MONTHS if name.startswith(month.rstrip(".")[:3]))
    return f"{the or 'the '}{ordinal(day)} of {named}"


def _iso_date(match: Match) -> str:
    year, month, day = match.groups()
    return f"{MONTHS[int(month) - 1]} {ordinal(day)}, {number(year)}"


def _slashed_date(match: Match) -> str:
    first, second, year = match.groups()
    month, day = (second, first) if int(first) > 12 else (first, second)
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return f"{cardinal(first)} {cardinal(second)} {number(year)}"
    return f"{MONTHS[int(month) - 1]} {ordinal(day)}, {number(year)}"


def _time(match: Match) -> str:
    hour, minute, half = match.groups()
    if int(minute) == 0:
        spoken = cardinal(str(int(hour))) + ("" if half else " o'clock")
    else:
        oh = "oh " if int(minute) < 10 else ""
        spoken = f"{cardinal(str(int(hour)))} {oh}{cardinal(str(int(minute)))}"
    return f"{spoken} {half[0].lower()}.m." if half else spoken


def _money(match: Match) -> str:
    sign, amount, scale = match.groups()
    one, many, one_part, many_parts = CURRENCIES[sign]
    whole, _, parts = amount.replace(",", "").partition(".")
    if scale:
        return f"{cardinal(amount)} {SCALES.get(scale, scale.strip())} {many}"
    if len(parts) != 2:
        return f"{cardinal(amount)} {one if amount == '1' else many}"
    spoken = f"{cardinal(whole)} {one if whole == '1' else many}"
    if int(parts):
        spoken += f" and {cardinal(str(int(parts)))} {one_part if int(parts) == 1 else many_parts}"
    return spoken


def _quantity(match: Match) -> str:
    amount, unit = match.groups()
    return f"{cardinal(amount)} {UNITS[unit] if amount == '1' else plural(UNITS[unit])}"


def _decade(match: Match) -> str:
    century, ten = match[1] or "", match[2]
    if ten == "0":
        return f"{cardinal(century)} hundreds" if century else "hundreds"
    named = "tens" if ten == "1" else cardinal(ten + "0").removesuffix("y") + "ies"
    return f"{cardinal(century)} {named}" if century else named


def _fraction(match: Match) -> str:
    whole, above, below, unit = match.groups()
    if not (2 <= int(below) <= 100 and 0 < int(above) < int(below)):
        return f"{whole or ''}{cardinal(above)} slash {cardinal(below)} {unit or ''}"
    name = {"2": "half", "4": "quarter"}.get(below, ordinal(below)) + ("s" if int(above) > 1 else "")
    spoken = (f"{cardinal(whole.strip())} and " if whole else "") + f"{cardinal(above)} {name}"
    return f"{spoken} {plural(UNITS[unit]) if whole else UNITS[unit]}" if unit else spoken


def _roman(numeral: str) -> str:
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in numeral]
    return str(sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True)))


_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_MONTH = "(" + "|".join(rf"{name}|{name[:3]}\." for name in MONTHS) + r"|Sept\.)"
_HALF = r"\s?([AaPp])\.?[Mm]\b\.?"
_SIGNS = "[" + "".join(CURRENCIES) + "]"


def _any(table: Iterable[str]) -> str:
    """Match any of some strings, the longest first."""
    return "(" + "|".join(re.escape(key) for key in sorted(table, key=len, reverse=True)) + ")"


_UNIT = rf"{_any(UNITS)}(?![\w/])(?:\.(?=\s+[a-z]))?"
_NUMERAL = r"([IVX]{2,}|[VX]|I(?=\s*(?:$|[.,:;])))\b"
_NUMBERED = "(Chapter|Part|Volume|Book|Act|Scene|Section|Article|World War|Type|Mark|Phase|Level|Class|Figure|Table)"
_WRITTEN: list[tuple[str, str | Callable[[Match], str]]] = [
    (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)[^\s,;()]*[\w/]|\b[\w-]+\.(?:com|org|net|edu)\b", _address),
    # Dates and times
    (r"\b(\d{4})-(0[1-9]|1[0-2])-(\d\d)\b", _iso_date),
    (r"\b(\d\d?)/(\d\d?)/(\d{4})\b", _slashed_date),
    (rf"\b{_MONTH}\s+(\d\d?)(?:st|nd|rd|th)?\b(?![:/.,]\d)(?:,?\s+(\d{{4}})\b)?", _long_date),
    (rf"\b([Tt]he\s+)?(\d\d?)(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?!\w)", _day_first_date),
    (rf"\b([01]?\d|2[0-4]):([0-5]\d)(?!:?\d)(?:{_HALF})?", _time),
    (rf"\b(\d\d?){_HALF}", lambda m: f"{cardinal(m[1])} {m[2].lower()}.m."),
    (r"(?<![\w'])'?(1[1-9]|20)?(\d)0'?s\b", _decade),
    # Money and measures
    (rf"({_SIGNS})\s?({_NUMBER})({_any(SCALES)[1:-1]}\b|\s(?:thousand|million|billion|trillion)\b)?", _money),
    (r"(?<![\w.,/)-])-(?=\d)", "minus "),
    (r"(?<=\d)(?=[½¼¾])", " and "),
    (rf"(?<![\d/])(\d+\s)?(\d+)/(\d+)(?![\d/])(?:\s?{_UNIT})?", _fraction),
    (rf"({_NUMBER})\s?{_UNIT}", _quantity),
    # Other shapes of numbers
    (r"\b(?:(\d{3})-)?(\d{3})-(\d{4})\b", lambda m: ", ".join(digits(part) for part in m.groups() if part)),
    (rf"(?<=\d)\s?[-{DASHES}]\s?(?=\d)", " to "),
    (r"(?<=\d)\^(?=\d)", " to the power of "),
    (r"(\d+)(?:st|nd|rd|th)\b", lambda m: ordinal(m[1])),
    (rf"\b{_any(BEFORE_NUMBERS)}\.\s?(?=\d)", lambda m: BEFORE_NUMBERS[m[1]] + " "),
    (rf"({_NUMBER})", lambda m: f" {number(m[1])} "),
    (rf"\b{_NUMBERED}\s+{_NUMERAL}", lambda m: f"{m[1]} {cardinal(_roman(m[2]))}"),
    (r"\b([A-Z][a-z]+)\s+([IVX]{2,})\b", lambda m: f"{m[1]} the {ordinal(_roman(m[2]))}"),
    # Abbreviations
    (r"(?<=[a-z]\s)St\.(?!\s+[A-Z])|\bSt\.$", "Street"),
    (r"\bSt\.", "Saint"),
    (r"\be\.g\.", "for example"),
    (r"\bi\.e\.", "that is"),
    (rf"\b{_any(ABBREVIATIONS)}(?:\.(?!\s*$)|(?=\.\s*$))", lambda m: ABBREVIATIONS[m[1]]),
    # What is left of symbols
    (_any(SYMBOLS), lambda m: f" {SYMBOLS[m[1]]} "),
    (r"[()\[\]{}<>*_^~|\\/`]", " "),
    (r"\s+(?=[,.;:!?](?:\s|$))", ""),
]
RULES = [(re.compile(pattern), replace) for pattern, replace in _WRITTEN]
"""What is recognised, and what is said for it, in order."""
