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

OverlapName = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow_all"]
"""What happens to a firing that is due while an earlier one still runs, or waits for a person."""

_YEAR_SECONDS: Final = 366 * 24 * 3600


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@cache
def _list_time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _check_time_zone(zone_name: str) -> str:
    if zone_name != "UTC" and zone_name not in _list_time_zones():
        raise ValueError(
            f"'{zone_name}' is no time zone: write a name of the IANA database, such as Europe/Berlin"
        )
    return zone_name


CronExpression = Annotated[
    str,
    Field(max_length=200, examples=["30 7 * * MON-FRI"]),
    AfterValidator(check_cron),
]


def _check_instant(timestamp: datetime) -> datetime:
    # Temporal counts nanoseconds in 64 bits, which end in the year 2262.
    if not 1970 < timestamp.year < 2262:
        raise ValueError("write a time between 1971 and 2261")
    return timestamp.astimezone(UTC)


UtcInstant = Annotated[AwareDatetime, AfterValidator(_check_instant)]
TimeZoneName = Annotated[
    str, Field(max_length=100, examples=["Europe/Berlin"]), AfterValidator(_check_time_zone)
]


class Interval(_FrozenModel):
    """A fixed interval, counted from midnight of 1 January 1970 (UTC) and shifted by the offset."""

    every_seconds: int = Field(ge=1, le=_YEAR_SECONDS)
    offset_seconds: int = Field(default=0, ge=0, le=_YEAR_SECONDS)

    @model_validator(mode="after")
    def _check_offset(self) -> "Interval":
        if self.offset_seconds >= self.every_seconds:
            raise ValueError("offset_seconds has to be less than every_seconds")
        return self


class Range(_FrozenModel):
    """Numbers from `start` to `end`, both included, each `step` apart."""

    start: int
    end: int | None = None
    step: int = Field(default=1, ge=1, le=1000)


FieldRanges = Annotated[tuple[Range, ...], Field(max_length=60)]

_FIELD_BOUNDS: Final = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day_of_month": (1, 31),
    "month": (1, 12),
    "day_of_week": (0, 6),
    "year": (2000, 2100),
}


class Calendar(_FrozenModel):
    """Times that match one range of each field; Sunday is day 0 of the week."""

    second: FieldRanges = (Range(start=0),)
    minute: FieldRanges = (Range(start=0),)
    hour: FieldRanges = (Range(start=0),)
    day_of_month: FieldRanges = (Range(start=1, end=31),)
    month: FieldRanges = (Range(start=1, end=12),)
    day_of_week: FieldRanges = (Range(start=0, end=6),)
    year: FieldRanges = ()

    @model_validator(mode="after")
    def _check_bounds(self) -> "Calendar":
        for field_name, (minimum, maximum) in _FIELD_BOUNDS.items():
            field_ranges: tuple[Range, ...] = getattr(self, field_name)
            if not field_ranges and field_name != "year":
                raise ValueError(f"{field_name} needs at least one range, or leave it out")
            for field_range in field_ranges:
                range_end = field_range.start if field_range.end is None else field_range.end
                if not minimum <= field_range.start <= range_end <= maximum:
                    raise ValueError(
                        f"{field_name} goes from {minimum} to {maximum}, and a range from its start to its end"
                    )
        return self


class Timing(_FrozenModel):
    """When a schedule fires: at each time of any cron expression, interval or calendar, except the times to skip."""

    cron: Annotated[tuple[CronExpression, ...], Field(max_length=20)] = ()
    intervals: Annotated[tuple[Interval, ...], Field(max_length=20)] = ()
    calendars: Annotated[tuple[Calendar, ...], Field(max_length=20)] = ()
    skip: Annotated[tuple[Calendar, ...], Field(max_length=20)] = ()
    time_zone: TimeZoneName = "UTC"
    jitter_seconds: int = Field(
        default=0, ge=0, le=_YEAR_SECONDS, description="Each firing is delayed by a random time up to this."
    )
    starts_at: UtcInstant | None = None
    ends_at: UtcInstant | None = None
    overlap: OverlapName = Field(
        default="skip",
        description="What to do if an earlier firing still runs, or waits for somebody.",
    )
    catch_up_seconds: int = Field(
        default=3600,
        ge=10,
        le=_YEAR_SECONDS,
        description="How late a firing may still start after Temporal was down.",
    )
    pause_on_failure: bool = Field(
        default=False, description="Whether the schedule pauses if a firing fails."
    )

    @model_validator(mode="after")
    def _check_times(self) -> "Timing":
        if not (self.cron or self.intervals or self.calendars):
            raise ValueError("say when: give at least one cron expression, interval or calendar")
        if self.starts_at is not None and self.ends_at is not None and self.ends_at <= self.starts_at:
            raise ValueError("ends_at has to be after starts_at")
        return self

    def to_temporal_spec(self) -> ScheduleSpec:
        """Return the times as a Temporal schedule specification."""
        return ScheduleSpec(
            cron_expressions=list(self.cron),
            intervals=[_to_interval_spec(interval) for interval in self.intervals],
            calendars=[_to_calendar_spec(calendar) for calendar in self.calendars],
            skip=[_to_calendar_spec(calendar) for calendar in self.skip],
            time_zone_name=self.time_zone,
            jitter=timedelta(seconds=self.jitter_seconds) if self.jitter_seconds else None,
            start_at=self.starts_at,
            end_at=self.ends_at,
        )

    def to_temporal_policy(self) -> SchedulePolicy:
        """Return the Temporal policy for firings that overlap, are late or fail."""
        return SchedulePolicy(
            overlap=to_overlap_policy(self.overlap),
            catchup_window=timedelta(seconds=self.catch_up_seconds),
            pause_on_failure=self.pause_on_failure,
        )


class Period(_FrozenModel):
    """A past period whose firings are to be started now."""

    starts_at: UtcInstant
    ends_at: UtcInstant
    overlap: OverlapName | None = Field(
        default=None, description="The overlap policy to use instead of the schedule's own."
    )

    def find_problem(self, current_time: datetime) -> str | None:
        """Return what is wrong with the period at this moment, or None."""
        if not self.starts_at < self.ends_at <= current_time:
            return "Firings can be made up for a time that is over: starts_at, then ends_at, then now."
        if self.ends_at - self.starts_at > timedelta(seconds=_YEAR_SECONDS):
            return "Firings can be made up for a year at most."
        return None


def to_overlap_policy(overlap_name: OverlapName) -> ScheduleOverlapPolicy:
    """Return the overlap policy as Temporal's enum value."""
    return ScheduleOverlapPolicy[overlap_name.upper()]


def _to_interval_spec(interval: Interval) -> ScheduleIntervalSpec:
    offset = timedelta(seconds=interval.offset_seconds) if interval.offset_seconds else None
    return ScheduleIntervalSpec(timedelta(seconds=interval.every_seconds), offset)


def _to_calendar_spec(calendar: Calendar) -> ScheduleCalendarSpec:
    return ScheduleCalendarSpec(
        second=_to_schedule_ranges(calendar.second),
        minute=_to_schedule_ranges(calendar.minute),
        hour=_to_schedule_ranges(calendar.hour),
        day_of_month=_to_schedule_ranges(calendar.day_of_month),
        month=_to_schedule_ranges(calendar.month),
        day_of_week=_to_schedule_ranges(calendar.day_of_week),
        year=_to_schedule_ranges(calendar.year),
    )


def _to_schedule_ranges(field_ranges: Iterable[Range]) -> tuple[ScheduleRange, ...]:
    return tuple(
        ScheduleRange(
            field_range.start,
            field_range.start if field_range.end is None else field_range.end,
            field_range.step,
        )
        for field_range in field_ranges
    )
