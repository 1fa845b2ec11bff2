"""The timing of a schedule as the API takes it, and its translation to Temporal's types. It computes no times."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Final, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from temporalio.client import (
    ScheduleCalendarSpec,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
)

from engine.schedules.cron import check_cron

Overlap = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow_all"]
"""What happens to a firing that is due while an earlier one still runs, or waits for a person."""

_YEAR: Final = 366 * 24 * 3600


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _zone(name: str) -> str:
    if name != "UTC" and name not in _zones():
        raise ValueError(
            f"'{name}' is no time zone: write a name of the IANA database, such as Europe/Berlin"
        )
    return name


Cron = Annotated[
    str,
    Field(max_length=200, examples=["30 7 * * MON-FRI"]),
    AfterValidator(check_cron),
]


def _instant(moment: datetime) -> datetime:
    # Temporal counts nanoseconds in 64 bits, which end in the year 2262.
    if not 1970 < moment.year < 2262:
        raise ValueError("write a time between 1971 and 2261")
    return moment.astimezone(UTC)


Instant = Annotated[AwareDatetime, AfterValidator(_instant)]
TimeZone = Annotated[str, Field(max_length=100, examples=["Europe/Berlin"]), AfterValidator(_zone)]


class Interval(_Said):
    """A fixed interval, counted from midnight of 1 January 1970 (UTC) and shifted by the offset."""

    every_seconds: int = Field(ge=1, le=_YEAR)
    offset_seconds: int = Field(default=0, ge=0, le=_YEAR)

    @model_validator(mode="after")
    def _offset_within(self) -> "Interval":
        if self.offset_seconds >= self.every_seconds:
            raise ValueError("offset_seconds has to be less than every_seconds")
        return self


class Range(_Said):
    """Numbers from `start` to `end`, both included, each `step` apart."""

    start: int
    end: int | None = None
    step: int = Field(default=1, ge=1, le=1000)


Ranges = Annotated[tuple[Range, ...], Field(max_length=60)]

_BOUNDS: Final = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day_of_month": (1, 31),
    "month": (1, 12),
    "day_of_week": (0, 6),
    "year": (2000, 2100),
}


class Calendar(_Said):
    """Times that match one range of each field; Sunday is day 0 of the week."""

    second: Ranges = (Range(start=0),)
    minute: Ranges = (Range(start=0),)
    hour: Ranges = (Range(start=0),)
    day_of_month: Ranges = (Range(start=1, end=31),)
    month: Ranges = (Range(start=1, end=12),)
    day_of_week: Ranges = (Range(start=0, end=6),)
    year: Ranges = ()

    @model_validator(mode="after")
    def _within_bounds(self) -> "Calendar":
        for name, (least, most) in _BOUNDS.items():
            ranges: tuple[Range, ...] = getattr(self, name)
            if not ranges and name != "year":
                raise ValueError(f"{name} needs at least one range, or leave it out")
            for each in ranges:
                end = each.start if each.end is None else each.end
                if not least <= each.start <= end <= most:
                    raise ValueError(
                        f"{name} goes from {least} to {most}, and a range from its start to its end"
                    )
        return self


class Timing(_Said):
    """When a schedule fires: at each time of any cron expression, interval or calendar, except the times to skip."""

    cron: Annotated[tuple[Cron, ...], Field(max_length=20)] = ()
    intervals: Annotated[tuple[Interval, ...], Field(max_length=20)] = ()
    calendars: Annotated[tuple[Calendar, ...], Field(max_length=20)] = ()
    skip: Annotated[tuple[Calendar, ...], Field(max_length=20)] = ()
    time_zone: TimeZone = "UTC"
    jitter_seconds: int = Field(
        default=0, ge=0, le=_YEAR, description="Each firing is late by a random time up to this."
    )
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    overlap: Overlap = Field(
        default="skip",
        description="What to do at a time when an earlier firing still runs, or waits for somebody.",
    )
    catch_up_seconds: int = Field(
        default=3600, ge=10, le=_YEAR, description="How late a firing may be after Temporal was down."
    )
    pause_on_failure: bool = Field(default=False, description="Pause once a firing fails.")

    @model_validator(mode="after")
    def _some_time(self) -> "Timing":
        if not (self.cron or self.intervals or self.calendars):
            raise ValueError("say when: give at least one cron expression, interval or calendar")
        if self.starts_at is not None and self.ends_at is not None and self.ends_at <= self.starts_at:
            raise ValueError("ends_at has to be after starts_at")
        return self

    def spec(self) -> ScheduleSpec:
        """Return the times as a Temporal schedule specification."""
        return ScheduleSpec(
            cron_expressions=list(self.cron),
            intervals=[_interval(interval) for interval in self.intervals],
            calendars=[_calendar(calendar) for calendar in self.calendars],
            skip=[_calendar(calendar) for calendar in self.skip],
            time_zone_name=self.time_zone,
            jitter=timedelta(seconds=self.jitter_seconds) if self.jitter_seconds else None,
            start_at=self.starts_at,
            end_at=self.ends_at,
        )

    def policy(self) -> SchedulePolicy:
        """Return the Temporal policy for firings that overlap, are late or fail."""
        return SchedulePolicy(
            overlap=overlap_policy(self.overlap),
            catchup_window=timedelta(seconds=self.catch_up_seconds),
            pause_on_failure=self.pause_on_failure,
        )


class Period(_Said):
    """A past period whose firings are to be started now."""

    starts_at: Instant
    ends_at: Instant
    overlap: Overlap | None = Field(default=None, description="In place of the schedule's own policy.")

    def problem(self, now: datetime) -> str | None:
        """Return what is wrong with the period at this moment, or None."""
        if not self.starts_at < self.ends_at <= now:
            return "Firings can be made up for a time that is over: starts_at, then ends_at, then now."
        if self.ends_at - self.starts_at > timedelta(seconds=_YEAR):
            return "Firings can be made up for a year at most."
        return None


def overlap_policy(overlap: Overlap) -> ScheduleOverlapPolicy:
    """Return the overlap policy as Temporal's enum value."""
    return ScheduleOverlapPolicy[overlap.upper()]


def _interval(interval: Interval) -> ScheduleIntervalSpec:
    offset = timedelta(seconds=interval.offset_seconds) if interval.offset_seconds else None
    return ScheduleIntervalSpec(timedelta(seconds=interval.every_seconds), offset)


def _calendar(calendar: Calendar) -> ScheduleCalendarSpec:
    return ScheduleCalendarSpec(
        second=_ranges(calendar.second),
        minute=_ranges(calendar.minute),
        hour=_ranges(calendar.hour),
        day_of_month=_ranges(calendar.day_of_month),
        month=_ranges(calendar.month),
        day_of_week=_ranges(calendar.day_of_week),
        year=_ranges(calendar.year),
    )


def _ranges(ranges: Iterable[Range]) -> tuple[ScheduleRange, ...]:
    return tuple(
        ScheduleRange(each.start, each.start if each.end is None else each.end, each.step) for each in ranges
    )
