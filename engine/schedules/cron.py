"""Validates cron expressions and says what is wrong with them. Temporal computes the times."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_EVERY: Final = frozenset({"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"})
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NUMBER: Final = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    most: int
    words: Mapping[str, int] = field(default_factory=dict)


_SECOND = _Field("second", 0, 59)
_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day of the month", 1, 31)
_MONTH = _Field("month", 1, 12, {word: number for number, word in enumerate(_MONTHS, 1)})
_WEEKDAY = _Field("day of the week", 0, 7, {word: number for number, word in enumerate(_DAYS)})
_YEAR = _Field("year", 2000, 2100)

_FIVE: Final = (_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)
_FIELDS: Final = {5: _FIVE, 6: (*_FIVE, _YEAR), 7: (_SECOND, *_FIVE, _YEAR)}


def check_cron(expression: str) -> str:
    """Return the expression if Temporal can read it; raises ValueError, which names the invalid field."""
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() in _EVERY:
            return text
        raise ValueError(f"'{text}' is none of {', '.join(sorted(_EVERY))}; for a fixed pace use an interval")
    if "=" in text:
        raise ValueError("a cron expression names no time zone here: say it in time_zone")
    fields = text.split()
    if len(fields) not in _FIELDS:
        raise ValueError(
            f"'{text}' has {len(fields)} fields: write minute, hour, day of the month, month and day of the week, "
            "then perhaps a year, and before it all perhaps a second"
        )
    for known, given in zip(_FIELDS[len(fields)], fields, strict=True):
        for part in given.split(","):
            _check_part(known, part)
    return text


def _check_part(known: _Field, part: str) -> None:
    values, stepped, step = part.partition("/")
    if stepped and not (_NUMBER.fullmatch(step) and int(step)):
        raise ValueError(f"the {known.name} '{part}' has a step that is no number above 0")
    if values == "*":
        return
    first, ranged, last = values.partition("-")
    start = _number(known, first)
    if ranged and _number(known, last) < start:
        raise ValueError(f"the {known.name} '{part}' ends before it begins")


def _number(known: _Field, text: str) -> int:
    number = known.words.get(text.lower())
    if number is None and _NUMBER.fullmatch(text):
        number = int(text)
    if number is None or not known.least <= number <= known.most:
        raise ValueError(f"'{text}' is no {known.name}: it goes from {known.least} to {known.most}")
    return number
