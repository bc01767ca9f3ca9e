"""Shows numbers as Excel does, by the number format of the cell.

Written here because openpyxl only tells whether a format is a date.

Source: ECMA-376, part 1, 18.8.30 (number formats) and 18.8.31 (their codes).
"""

import datetime
import math
import re
from decimal import ROUND_HALF_UP, Decimal
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from recipe.core.translation import _
from recipe.intake.cells import Cell, FormattedCell, InvalidCell

# Formats that Chinese versions of Excel and WPS use by number alone (18.8.30, zh-cn).
EAST_ASIAN = {
    **dict.fromkeys((27, 36, 50, 52, 57), 'yyyy"年"m"月"'), **dict.fromkeys((28, 29, 51, 53, 54, 58), 'm"月"d"日"'),
    30: "m-d-yy", 31: 'yyyy"年"m"月"d"日"', **dict.fromkeys((32, 34, 55), 'h"时"mm"分"'),
    **dict.fromkeys((33, 35, 56), 'h"时"mm"分"ss"秒"'),
}  # fmt: skip


def iso(when: Union[datetime.date, datetime.time]) -> str:
    """A date or time in ISO format; midnight is left out."""
    if isinstance(when, datetime.datetime):
        return when.date().isoformat() if when.time() == datetime.time() else when.isoformat(" ", "seconds")
    if isinstance(when, datetime.time):
        return when.isoformat("seconds")
    return str(when)


class Formats(Dict[int, Callable[[str], Cell]]):
    """A cell's style → the function that shows its number. Functions are made on first use."""

    def __init__(self, epoch: datetime.datetime) -> None:
        super().__init__()
        self.epoch = epoch
        self.styles: List[int] = []  # style → number of its format
        self.codes: Dict[int, str] = {}  # number of a format → the workbook's own code for it

    def __missing__(self, style: int) -> Callable[[str], Cell]:
        number = self.styles[style] if 0 <= style < len(self.styles) else 0
        show: Callable[[str], Cell] = _general
        if number:
            from openpyxl.styles.numbers import BUILTIN_FORMATS  # takes a third of a second to import

            code = self.codes.get(number) or EAST_ASIAN.get(number) or BUILTIN_FORMATS.get(number, "General")
            show = _formatter(code, self.epoch)
        self[style] = show
        return show


def _formatter(code: str, epoch: datetime.datetime) -> Callable[[str], Cell]:
    """The function that shows a stored number in the format `code`.

    Dates are shown as ISO, durations as h:mm:ss; percent, thousands, currency and leading zeros as in Excel; numbers in
    rarer formats as plain numbers.
    """
    from openpyxl.styles.numbers import is_date_format, is_timedelta_format

    if is_timedelta_format(code):
        return lambda text: _duration(float(text))
    if is_date_format(code) or "aaa" in code:
        bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\\.', "", code.split(";")[0]).lower()
        clock = "h" in bare or "s" in bare
        calendar = "d" in bare or "y" in bare or "aaa" in bare or not clock
        return lambda text: _date(text, epoch, calendar, clock)
    sections = [_section(part) for part in _sections(code)]
    if code == "General" or not sections or not all(sections[:2]):
        return _general
    return lambda text: _formatted(text, sections)


def _general(text: str) -> Cell:
    """A number with the 15 digits that Excel keeps: 52, 0.3 (stored as 0.30000000000000004), 1.5."""
    if text.isdigit() and len(text) < 16:
        return FormattedCell(int(text))
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number")
    kept = format(value, ".15g")
    if value.is_integer() and abs(value) < 1e21:
        return FormattedCell(int(Decimal(kept)))
    return FormattedCell(kept.upper())


def _duration(days: float) -> Cell:
    seconds = round(abs(days) * 86400)
    return FormattedCell(f"{'-' * (days < 0)}{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}")


def _date(text: str, epoch: datetime.datetime, calendar: bool, clock: bool) -> Cell:
    from openpyxl.utils.datetime import from_excel

    try:
        days = round(float(text) * 86400) / 86400  # to the second
        when = from_excel(days, epoch)
    except (OverflowError, ValueError):
        return _no_date(text)
    if isinstance(when, datetime.time):  # less than a day: a time, or the day before Excel's first
        return FormattedCell(iso(when)) if clock else _no_date(text)
    if days < 0 or not isinstance(when, datetime.datetime):
        return _no_date(text)
    return FormattedCell(iso(when.time() if not calendar else when.date() if not clock else when))


def _no_date(text: str) -> Cell:
    return InvalidCell(text, _("{number} is formatted as a date but is not one", number=text))


def _sections(code: str) -> List[str]:
    """A format's sections: for positive numbers, negative numbers, zero, text."""
    return re.findall(r'((?:"[^"]*"|\\.|\[[^\]]*\]|[^;"\\])*)(?:;|$)', code)[:-1][:4]  # the last match is empty


class _Section(NamedTuple):
    prefix: str
    suffix: str
    min_digits: int = 0  # before the point
    thousands: bool = False
    min_decimals: int = 0
    max_decimals: int = 0
    exponent_digits: int = 0  # 0: not scientific
    percent_signs: int = 0
    thousands_hidden: int = 0  # "0," shows thousands
    template: Tuple[str, ...] = ()  # digits and the characters between them: 000-00000000
    general: bool = False


def _section(code: str) -> Optional[_Section]:
    """Parses a section; None for the rarer kinds (fractions, conditions, text only …)."""
    if re.search(r"\[[<>=]", code):
        return None
    code = re.sub(r"\[\$([^\]-]*)[^\]]*\]", lambda m: "".join(f"\\{c}" for c in m.group(1)), code)
    code = re.sub(r"\[[^\]]*\]", "", code)
    code = re.sub(r'"([^"]*)"', lambda m: "".join(f"\\{c}" for c in m.group(1)), code)
    code = re.sub(r"(?<!\\)[_*].", "", code)
    code = code.replace("G/通用格式", "General").replace("General", "\x01")
    signs = re.findall(r"\\.|[^\\]", code)
    bare = "".join("\x00" if len(sign) == 2 else sign for sign in signs)
    found = re.search(r"\x01|[#0?][#0?,]*(?:\.[#0?]*)?(?:E[+-]0+)?", bare)
    if not found:
        return None
    before, after = bare[: found.start()], bare[found.end() :]
    literal = ["".join(c[-1] for c in part) for part in (signs[: found.start()], signs[found.end() :])]
    if found.group() == "\x01":
        return _Section(literal[0], literal[1], general=True)
    if re.search(r"[#?/@]|0", before + after):
        is_template = re.fullmatch(r"[0#\x00 ()-]+", bare)  # such as a telephone number
        return _Section("", "", template=tuple(signs)) if is_template else None
    pattern = found.group()
    scale = len(after) - len(after.lstrip(","))
    literal[1] = literal[1][scale:]
    whole, _point, behind = pattern.partition(".")
    scientific = re.search(r"E[+-](0+)", pattern)
    whole, behind = whole.partition("E")[0], behind.partition("E")[0]
    if scientific and len(whole) > 1:
        return None
    scale += len(whole) - len(whole.rstrip(","))
    return _Section(
        literal[0], literal[1], whole.count("0"), "," in whole.rstrip(","), behind.count("0"),
        len(behind), len(scientific.group(1)) if scientific else 0, bare.count("%"), scale,
    )  # fmt: skip


def _formatted(text: str, sections: List[Optional[_Section]]) -> Cell:
    value = Decimal(format(float(text), ".15g"))
    if not value.is_finite():
        raise ValueError(f"{text} is not a number")
    section, sign = sections[0], "-" if value < 0 else ""
    if value < 0 and len(sections) > 1 and sections[1]:
        section = sections[1]
        marked = "-" in section.prefix + section.suffix or "(" in section.prefix
        sign = "" if marked else sign
    elif value == 0 and len(sections) > 2:
        section = sections[2]
        if section is None or (not section.min_digits and not section.min_decimals and not section.general):
            return FormattedCell(
                "-" if section and "-" in section.prefix else 0
            )  # accounting formats show zero as a dash
    assert section is not None
    value = abs(value) * 100**section.percent_signs / 1000**section.thousands_hidden
    if section.general:
        number = _general(str(value)) or ""
    elif section.template:
        places = sum(len(one) == 1 and one in "0#" for one in section.template)
        rest = list(str(value.quantize(Decimal(1), ROUND_HALF_UP)).zfill(places))
        signs = [rest.pop() if len(one) == 1 and one in "0#" else one[-1] for one in reversed(section.template)]
        number = "".join(rest) + "".join(reversed(signs))
    elif section.exponent_digits:
        mantissa, exponent = f"{value:.{section.max_decimals}E}".split("E")
        number = f"{mantissa}E{exponent[0]}{exponent[1:].zfill(section.exponent_digits)}"
    else:
        rounded = value.quantize(Decimal(1).scaleb(-section.max_decimals), ROUND_HALF_UP)
        number = f"{rounded:{',' if section.thousands else ''}f}"
        whole, point, behind = number.partition(".")
        behind = behind[: section.min_decimals] + behind[section.min_decimals :].rstrip("0")
        number = whole.zfill(section.min_digits) + (point + behind if behind else "")
    if not any(digit in "123456789" for digit in number):
        sign = ""
    return FormattedCell(f"{sign}{section.prefix}{number}{section.suffix}".strip())
