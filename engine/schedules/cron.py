"""Validates cron expressions and says what is wrong with them. Temporal computes the times.

It does not use croniter or cronsim, because they accept expressions that Temporal refuses, such as `L` and `#`, and do
not name the field that is wrong.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_SHORTHANDS: Final = frozenset(
    {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
)
_MONTH_NAMES: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY_NAMES: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NUMBER_PATTERN: Final = re.compile(r"[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class _CronField:
    field_name: str
    minimum: int
    maximum: int
    number_by_word: Mapping[str, int] = field(default_factory=dict)


_SECOND_FIELD = _CronField("second", 0, 59)
_MINUTE_FIELD = _CronField("minute", 0, 59)
_HOUR_FIELD = _CronField("hour", 0, 23)
_DAY_FIELD = _CronField("day of the month", 1, 31)
_MONTH_FIELD = _CronField(
    "month", 1, 12, {month_name: month_number for month_number, month_name in enumerate(_MONTH_NAMES, 1)}
)
_WEEKDAY_FIELD = _CronField(
    "day of the week", 0, 7, {day_name: day_number for day_number, day_name in enumerate(_DAY_NAMES)}
)
_YEAR_FIELD = _CronField("year", 2000, 2100)

_STANDARD_FIELDS: Final = (_MINUTE_FIELD, _HOUR_FIELD, _DAY_FIELD, _MONTH_FIELD, _WEEKDAY_FIELD)
_FIELDS_BY_COUNT: Final = {
    5: _STANDARD_FIELDS,
    6: (*_STANDARD_FIELDS, _YEAR_FIELD),
    7: (_SECOND_FIELD, *_STANDARD_FIELDS, _YEAR_FIELD),
}


def check_cron(expression: str) -> str:
    """Return the expression if Temporal can read it; raises ValueError, which names the invalid field."""
    cron_text = expression.strip()
    if cron_text.startswith("@"):
        if cron_text.lower() in _SHORTHANDS:
            return cron_text
        raise ValueError(
            f"'{cron_text}' is none of {', '.join(sorted(_SHORTHANDS))}; for a fixed pace use an interval"
        )
    if "=" in cron_text:
        raise ValueError("a cron expression names no time zone here: say it in time_zone")
    field_texts = cron_text.split()
    if len(field_texts) not in _FIELDS_BY_COUNT:
        raise ValueError(
            f"'{cron_text}' has {len(field_texts)} fields: write minute, hour, day of the "
            "month, month and day of the week, "
            "then perhaps a year, and before it all perhaps a second"
        )
    for cron_field, field_text in zip(_FIELDS_BY_COUNT[len(field_texts)], field_texts, strict=True):
        for field_part in field_text.split(","):
            _check_field_part(cron_field, field_part)
    return cron_text


def _check_field_part(cron_field: _CronField, field_part: str) -> None:
    value_range, step_separator, step_text = field_part.partition("/")
    if step_separator and not (_NUMBER_PATTERN.fullmatch(step_text) and int(step_text)):
        raise ValueError(f"the {cron_field.field_name} '{field_part}' has a step that is no number above 0")
    if value_range == "*":
        return
    first_text, range_separator, last_text = value_range.partition("-")
    first_number = _parse_number(cron_field, first_text)
    if range_separator and _parse_number(cron_field, last_text) < first_number:
        raise ValueError(f"the {cron_field.field_name} '{field_part}' ends before it begins")


def _parse_number(cron_field: _CronField, number_text: str) -> int:
    number = cron_field.number_by_word.get(number_text.lower())
    if number is None and _NUMBER_PATTERN.fullmatch(number_text):
        number = int(number_text)
    if number is None or not cron_field.minimum <= number <= cron_field.maximum:
        raise ValueError(
            f"'{number_text}' is no {cron_field.field_name}: it goes from {cron_field.minimum} to {cron_field.maximum}"
        )
    return number
