"""`byline schedules`: manages schedules, which call tools in your name. The gateway stores and fires them."""

import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.client.command_errors import UsageInvalid
from gateway.commands.client.tools import ToolNameArgument
from gateway.terminal.api_client import JsonOption, open_gateway, print_json
from gateway.terminal.argument_options import (
    ArgumentOption,
    ArgumentsFileOption,
    read_arguments,
    read_json_object,
)
from gateway.terminal.columns import print_columns
from gateway.terminal.safe_text import escape_text

app = typer.Typer(help="Manage schedules, which call tools in your name at set times.", no_args_is_help=True)

ScheduleIdArgument = Annotated[str, typer.Argument(metavar="SCHEDULE", help="a schedule's id")]
OverlapOption = Annotated[
    str | None,
    typer.Option(
        help="what to do if an earlier firing still runs: skip, buffer_one, buffer_all, cancel_other,"
        " terminate_other or allow_all"
    ),
]
_SECONDS_PER_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command("list")
def list_schedules(*, should_print_json: JsonOption = False) -> None:
    """List your schedules, and those that somebody offers you."""
    with open_gateway() as gateway_client:
        schedule_items = gateway_client.list_items("schedules")
    if should_print_json:
        print_json({"items": schedule_items})
        return
    print_columns(
        [
            (
                schedule_item["id"],
                schedule_item["name"],
                schedule_item["tool"],
                _describe_state(schedule_item),
            )
            for schedule_item in schedule_items
        ],
        empty_message="You have no schedule.",
    )


@app.command()
def show(schedule: ScheduleIdArgument, *, should_print_json: JsonOption = False) -> None:
    """Show a schedule's timing, its arguments and its latest firings."""
    with open_gateway() as gateway_client:
        schedule_item = gateway_client.get_document("schedules", schedule)
    print_json(schedule_item) if should_print_json else _print_schedule(schedule_item)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="a name for the schedule")],
    tool: ToolNameArgument,
    argument_pairs: ArgumentOption = None,
    args_json: ArgumentsFileOption = None,
    cron: Annotated[
        list[str] | None, typer.Option(help="a cron expression, such as '30 7 * * MON-FRI'; may be repeated")
    ] = None,
    every: Annotated[
        list[str] | None, typer.Option(help="an interval, such as 90s, 30m, 2h or 1d; may be repeated")
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(help="the time zone of the cron expressions, such as Europe/Berlin; by default UTC"),
    ] = None,
    jitter: Annotated[str | None, typer.Option(help="delay each firing by a random time up to this")] = None,
    catch_up: Annotated[
        str | None, typer.Option(help="how late a firing may still start after an outage")
    ] = None,
    starts_at: Annotated[datetime | None, typer.Option(help="fire from this time on (UTC)")] = None,
    ends_at: Annotated[datetime | None, typer.Option(help="fire until this time (UTC)")] = None,
    overlap: OverlapOption = None,
    *,
    should_pause_on_failure: Annotated[
        bool, typer.Option("--pause-on-failure", help="pause the schedule if a firing fails")
    ] = False,
    timing: Annotated[
        Path | None,
        typer.Option(
            allow_dash=True,
            help="a JSON file with the timing as in the REST API; other options override its values",
        ),
    ] = None,
    should_print_json: JsonOption = False,
) -> None:
    """Create a schedule that calls a tool in your name."""
    timing_options = {
        "cron": cron,
        "intervals": [{"every_seconds": _parse_seconds(interval_text)} for interval_text in every or []]
        or None,
        "time_zone": time_zone,
        "jitter_seconds": None if jitter is None else _parse_seconds(jitter),
        "catch_up_seconds": None if catch_up is None else _parse_seconds(catch_up),
        "starts_at": _to_utc_text(starts_at),
        "ends_at": _to_utc_text(ends_at),
        "overlap": overlap,
        "pause_on_failure": should_pause_on_failure or None,
    }
    schedule_timing = {
        **({} if timing is None else read_json_object(timing)),
        **{
            option_name: option_value
            for option_name, option_value in timing_options.items()
            if option_value is not None
        },
    }
    if not schedule_timing:
        raise UsageInvalid("Say when: with --cron, --every or --timing")
    with open_gateway() as gateway_client:
        request_body = {"name": name, "tool": tool, "timing": schedule_timing}
        request_body["arguments"] = read_arguments(gateway_client, tool, argument_pairs or [], args_json)
        schedule_item = gateway_client.post_document(
            "schedules", request_body=request_body, idempotency_key=str(uuid.uuid4())
        )
    print_json(schedule_item) if should_print_json else _print_schedule(schedule_item)


@app.command()
def pause(
    schedule: ScheduleIdArgument,
    *,
    reason: Annotated[str | None, typer.Option(help="the reason, which the schedule then shows")] = None,
    should_print_json: JsonOption = False,
) -> None:
    """Pause a schedule, which does not fire until it is resumed."""
    _control_schedule(
        schedule,
        "pause",
        {} if reason is None else {"reason": reason},
        "is paused",
        should_print_json=should_print_json,
    )


@app.command()
def resume(schedule: ScheduleIdArgument, *, should_print_json: JsonOption = False) -> None:
    """Resume a paused schedule."""
    _control_schedule(
        schedule, "resume", None, "goes by the clock again", should_print_json=should_print_json
    )


@app.command()
def trigger(schedule: ScheduleIdArgument, *, should_print_json: JsonOption = False) -> None:
    """Fire a schedule now, as far as its overlap policy allows."""
    _control_schedule(schedule, "trigger", None, "fires now", should_print_json=should_print_json)


@app.command()
def backfill(
    schedule: ScheduleIdArgument,
    starts_at: Annotated[datetime, typer.Option(help="the start of the period (UTC)")],
    ends_at: Annotated[datetime, typer.Option(help="the end of the period (UTC)")],
    overlap: OverlapOption = None,
    *,
    should_print_json: JsonOption = False,
) -> None:
    """Fire a schedule for each of its times in a past period."""
    request_body = {
        "starts_at": _to_utc_text(starts_at),
        "ends_at": _to_utc_text(ends_at),
        "overlap": overlap,
    }
    _control_schedule(
        schedule, "backfill", request_body, "makes up for that time", should_print_json=should_print_json
    )


@app.command()
def delete(schedule: ScheduleIdArgument) -> None:
    """Delete a schedule; runs that it started continue."""
    with open_gateway() as gateway_client:
        _, etag = gateway_client.read_with_etag("schedules", schedule)
        gateway_client.change_if_unchanged("DELETE", "schedules", schedule, etag=etag)
    typer.echo(f"Schedule {escape_text(schedule)} is gone.")


@app.command()
def offer(
    schedule: ScheduleIdArgument,
    to: Annotated[
        str | None, typer.Option(help="a person's name, subject or id; if omitted, the offer is withdrawn")
    ] = None,
    *,
    should_print_json: JsonOption = False,
) -> None:
    """Offer a schedule to somebody, who owns it once they accept."""
    success_message = "is offered to nobody any more" if to is None else f"is offered to {to}"
    _control_schedule(schedule, "offer", {"to": to}, success_message, should_print_json=should_print_json)


@app.command()
def accept(
    schedule: ScheduleIdArgument,
    *,
    is_confirmed: Annotated[
        bool, typer.Option("--yes", help="accept without asking for confirmation")
    ] = False,
    should_print_json: JsonOption = False,
) -> None:
    """Accept a schedule that was offered to you, which then acts as you."""
    with open_gateway() as gateway_client:
        offered_schedule, etag = gateway_client.read_with_etag("schedules", schedule)
        if not is_confirmed:
            _print_schedule(offered_schedule, should_use_stderr=True)
            typer.confirm("Shall it act as you, with your grants?", abort=True, err=True)
        schedule_item = gateway_client.change_if_unchanged("POST", "schedules", schedule, "accept", etag=etag)
    print_json(schedule_item) if should_print_json else typer.echo(
        f"Schedule {escape_text(schedule)} is yours."
    )


@app.command()
def decline(schedule: ScheduleIdArgument) -> None:
    """Decline a schedule that was offered to you, which stays with its owner."""
    with open_gateway() as gateway_client:
        gateway_client.post_document("schedules", schedule, "decline")
    typer.echo(f"Schedule {escape_text(schedule)} stays with its owner.")


def _control_schedule(
    schedule_id: str, operation: str, request_body: object, success_message: str, *, should_print_json: bool
) -> None:
    with open_gateway() as gateway_client:
        schedule_item = gateway_client.post_document(
            "schedules", schedule_id, operation, request_body=request_body
        )
    print_json(schedule_item) if should_print_json else typer.echo(
        f"Schedule {escape_text(schedule_id)} {escape_text(success_message)}."
    )


def _describe_state(schedule_item: dict[str, Any]) -> str:
    if schedule_item["paused"]:
        return f"paused: {schedule_item['paused_because']}" if schedule_item["paused_because"] else "paused"
    next_firings = schedule_item["next_firings"]
    return f"next {_format_instant(next_firings[0])}" if next_firings else "does not fire again"


def _print_schedule(schedule_item: dict[str, Any], *, should_use_stderr: bool = False) -> None:
    offered_principal = schedule_item["offered_to"]
    schedule_facts = {
        "id": schedule_item["id"],
        "name": schedule_item["name"],
        "tool": schedule_item["tool"],
        "arguments": schedule_item["arguments"],
        "timing": {
            fact_name: fact_value for fact_name, fact_value in schedule_item["timing"].items() if fact_value
        },
        "acts as": schedule_item["owner"]["name"],
        "offered to": None if offered_principal is None else offered_principal["name"],
        "state": _describe_state(schedule_item),
    }
    fact_rows = [(fact_name, fact_value) for fact_name, fact_value in schedule_facts.items() if fact_value]
    fact_rows += [
        ("fired", f"{_format_instant(recent_firing['started_at'])}  {recent_firing['run_id']}")
        for recent_firing in schedule_item["recent_firings"]
    ]
    print_columns(fact_rows, empty_message="", should_use_stderr=should_use_stderr)


def _format_instant(instant_text: str) -> str:
    return f"{datetime.fromisoformat(instant_text):%Y-%m-%d %H:%M:%S} UTC"


def _parse_seconds(duration_text: str) -> int:
    duration_match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", duration_text.strip())
    if duration_match is None:
        raise UsageInvalid(f"'{duration_text}' is no length of time: write 90s, 30m, 2h or 1d")
    return int(duration_match[1]) * _SECONDS_PER_UNIT[duration_match[2]]


def _to_utc_text(instant: datetime | None) -> str | None:
    if instant is None:
        return None
    return (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).isoformat()
