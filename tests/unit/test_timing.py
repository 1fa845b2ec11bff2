import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from temporalio.client import ScheduleOverlapPolicy

from engine.schedules.cron import check_cron
from engine.schedules.timing import Calendar, Interval, Period, Timing

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def refusal(**timing_fields: Any) -> str:
    with pytest.raises(ValidationError) as error_info:
        Timing.model_validate({"cron": ["@daily"], **timing_fields})
    return str(error_info.value)


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * *",
        "0-59/15 */2 1,15 jan-mar MON",
        "0 0 * * 7",
        "0 0 1 1 * 2030",
        "30 0 0 1 1 * 2030/2",
        "@Hourly",
    ],
)
def test_a_cron_expression_that_fits_is_taken_as_it_is(expression: str) -> None:
    assert check_cron(f" {expression} ") == expression


@pytest.mark.parametrize(
    ("expression", "expected_message"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields: write minute, hour"),
        ("60 * * * *", "'60' is no minute: it goes from 0 to 59"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day of the month"),
        ("* * * bar *", "'bar' is no month"),
        ("* * * * 8", "'8' is no day of the week"),
        ("60 * * * * * 2030", "'60' is no second"),
        ("* * * * * 1999", "'1999' is no year"),
        ("5-1 * * * *", "ends before it begins"),
        ("*/0 * * * *", "step that is no number above 0"),
        ("*/x * * * *", "step that is no number above 0"),
        ("1,,2 * * * *", "'' is no minute"),
        ("-5 * * * *", "'' is no minute"),
        ("٣ * * * *", "is no minute"),
        ("@every 1h", "for a fixed pace use an interval"),
        ("CRON_TZ=Europe/Berlin 0 0 * * *", "say it in time_zone"),
    ],
)
def test_an_invalid_cron_expression_is_reported_by_its_field(expression: str, expected_message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected_message)):
        check_cron(expression)


@given(st.text(max_size=40))
def test_any_text_for_a_cron_expression_is_taken_or_reported(text: str) -> None:
    try:
        cron_problem = check_cron(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017 -- one way or the other
    else:
        assert cron_problem == text.strip()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Argentina/Ushuaia"])
def test_a_time_zone_of_the_iana_database_is_taken(zone: str) -> None:
    assert Timing(cron=("@daily",), time_zone=zone).to_temporal_spec().time_zone_name == zone


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "+02:00", "../../etc/passwd", "Europe/Berlin\n"])
def test_an_unknown_time_zone_is_reported(zone: str) -> None:
    assert "is no time zone" in refusal(time_zone=zone)


def test_a_schedule_that_never_fires_is_no_schedule() -> None:
    assert "say when" in refusal(cron=[])


@pytest.mark.parametrize(
    ("timing_fields", "problem"),
    [
        ({"starts_at": "2027-01-02T00:00:00Z", "ends_at": "2027-01-01T00:00:00Z"}, "after starts_at"),
        ({"starts_at": "2027-01-01T00:00:00"}, "timezone"),
        ({"ends_at": "9999-12-31T23:59:59-14:00"}, "between 1971 and 2261"),
        ({"intervals": [{"every_seconds": 60, "offset_seconds": 60}]}, "less than every_seconds"),
        ({"calendars": [{"hour": []}]}, "hour needs at least one range"),
        ({"calendars": [{"day_of_week": [{"start": 7}]}]}, "day_of_week goes from 0 to 6"),
        ({"calendars": [{"minute": [{"start": 30, "end": 10}]}]}, "from its start to its end"),
        ({"overlap": "pile_up"}, "Input should be 'skip'"),
        ({"catch_up_seconds": 1}, "greater than or equal to 10"),
        ({"every": 5}, "Extra inputs are not permitted"),
    ],
)
def test_a_timing_that_makes_no_sense_is_reported(timing_fields: dict[str, Any], problem: str) -> None:
    assert problem in refusal(**timing_fields)


def test_a_time_is_kept_as_the_instant_that_it_is() -> None:
    berlin = timezone(timedelta(hours=1))
    timing = Timing(cron=("@daily",), starts_at=NOON.astimezone(berlin))

    assert timing.to_temporal_spec().start_at == NOON
    assert Timing.model_validate(timing.model_dump(mode="json")) == timing


def test_what_is_left_out_skips_overlapping_firings_and_catches_up_for_an_hour() -> None:
    policy = Timing(intervals=(Interval(every_seconds=60),)).to_temporal_policy()

    assert policy.overlap == ScheduleOverlapPolicy.SKIP
    assert policy.catchup_window == timedelta(hours=1)
    assert not policy.pause_on_failure


def test_a_calendar_matches_every_day_at_midnight_where_nothing_else_is_said() -> None:
    (calendar,) = Timing(calendars=(Calendar(),)).to_temporal_spec().calendars

    assert [
        (schedule_range.start, schedule_range.end)
        for schedule_range in (*calendar.hour, *calendar.day_of_month)
    ] == [(0, 0), (1, 31)]


@pytest.mark.parametrize(
    ("hours", "problem"),
    [((-3, -1), None), ((-1, -3), "is over"), ((-3, 1), "is over"), ((-24 * 400, -1), "a year at most")],
)
def test_only_a_time_that_is_over_is_made_up_for(hours: tuple[int, int], problem: str | None) -> None:
    begin, end = (NOON + timedelta(hours=hour) for hour in hours)

    period_problem = Period(starts_at=begin, ends_at=end).find_problem(NOON)

    assert period_problem is None if problem is None else problem in str(period_problem)
