"""`byline schedules`: manages schedules, which call tools in your name. The gateway stores and fires them."""

import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.client.failures import WrongUse
from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_here, print_json
from gateway.commands.given import Arg, ArgsJson, given_arguments, json_object
from gateway.commands.plain import plain
from gateway.commands.tools import ToolName

app = typer.Typer(help="Tools called by the clock, in your name.", no_args_is_help=True)

ScheduleId = Annotated[str, typer.Argument(metavar="SCHEDULE", help="a schedule's id")]
Overlap = Annotated[
    str | None,
    typer.Option(
        help="what to do while an earlier firing still runs: skip, buffer_one, buffer_all, cancel_other,"
        " terminate_other or allow_all"
    ),
]
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command("list")
def list_schedules(*, as_json: AsJson = False) -> None:
    """List the schedules that are yours, or that somebody offers you."""
    with gateway_here() as gateway:
        found = gateway.items("schedules")
    if as_json:
        print_json({"items": found})
        return
    print_columns(
        [(each["id"], each["name"], each["tool"], _state(each)) for each in found],
        otherwise="You have no schedule.",
    )


@app.command()
def show(schedule: ScheduleId, *, as_json: AsJson = False) -> None:
    """Show when a schedule fires, with what, and what came of it."""
    with gateway_here() as gateway:
        found = gateway.get("schedules", schedule)
    print_json(found) if as_json else _show(found)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="what to call it")],
    tool: ToolName,
    arg: Arg = None,
    args_json: ArgsJson = None,
    cron: Annotated[
        list[str] | None, typer.Option(help="when, such as '30 7 * * MON-FRI'; may be repeated")
    ] = None,
    every: Annotated[list[str] | None, typer.Option(help="how often, such as 90s, 30m, 2h or 1d")] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="whose clock, such as Europe/Berlin; otherwise UTC")
    ] = None,
    jitter: Annotated[str | None, typer.Option(help="be late by a random time up to this")] = None,
    catch_up: Annotated[str | None, typer.Option(help="how late a firing may be after an outage")] = None,
    starts_at: Annotated[datetime | None, typer.Option(help="not before this instant (UTC)")] = None,
    ends_at: Annotated[datetime | None, typer.Option(help="not after this instant (UTC)")] = None,
    overlap: Overlap = None,
    *,
    pause_on_failure: Annotated[
        bool, typer.Option("--pause-on-failure", help="pause once a firing fails")
    ] = False,
    timing: Annotated[
        Path | None,
        typer.Option(
            allow_dash=True,
            help="a file with the timing in JSON, as the API takes it; other options go over it",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a schedule that calls a tool in your name."""
    said = {
        "cron": cron,
        "intervals": [{"every_seconds": _seconds(each)} for each in every or []] or None,
        "time_zone": time_zone,
        "jitter_seconds": None if jitter is None else _seconds(jitter),
        "catch_up_seconds": None if catch_up is None else _seconds(catch_up),
        "starts_at": _utc(starts_at),
        "ends_at": _utc(ends_at),
        "overlap": overlap,
        "pause_on_failure": pause_on_failure or None,
    }
    when = {
        **({} if timing is None else json_object(timing)),
        **{k: v for k, v in said.items() if v is not None},
    }
    if not when:
        raise WrongUse("Say when: with --cron, --every or --timing")
    with gateway_here() as gateway:
        wanted = {"name": name, "tool": tool, "timing": when}
        wanted["arguments"] = given_arguments(gateway, tool, arg or [], args_json)
        found = gateway.post("schedules", body=wanted, key=str(uuid.uuid4()))
    print_json(found) if as_json else _show(found)


@app.command()
def pause(
    schedule: ScheduleId,
    *,
    reason: Annotated[str | None, typer.Option(help="why, for whoever looks at it")] = None,
    as_json: AsJson = False,
) -> None:
    """Let a schedule fire no more for now."""
    _steer(schedule, "pause", {} if reason is None else {"reason": reason}, "is paused", as_json=as_json)


@app.command()
def resume(schedule: ScheduleId, *, as_json: AsJson = False) -> None:
    """Let a schedule go by the clock again."""
    _steer(schedule, "resume", None, "goes by the clock again", as_json=as_json)


@app.command()
def trigger(schedule: ScheduleId, *, as_json: AsJson = False) -> None:
    """Fire a schedule now, as its overlap policy allows."""
    _steer(schedule, "trigger", None, "fires now", as_json=as_json)


@app.command()
def backfill(
    schedule: ScheduleId,
    starts_at: Annotated[datetime, typer.Option(help="from this instant on (UTC)")],
    ends_at: Annotated[datetime, typer.Option(help="until this instant (UTC)")],
    overlap: Overlap = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make up for the firings of a time that is past."""
    period = {"starts_at": _utc(starts_at), "ends_at": _utc(ends_at), "overlap": overlap}
    _steer(schedule, "backfill", period, "makes up for that time", as_json=as_json)


@app.command()
def delete(schedule: ScheduleId) -> None:
    """Delete a schedule; runs that it began go on."""
    with gateway_here() as gateway:
        _, tag = gateway.read("schedules", schedule)
        gateway.change("DELETE", "schedules", schedule, tag=tag)
    typer.echo(f"Schedule {plain(schedule)} is gone.")


@app.command()
def offer(
    schedule: ScheduleId,
    to: Annotated[
        str | None, typer.Option(help="somebody's name, subject or id; none takes the offer back")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Offer a schedule to somebody, whose it is once they accept."""
    told = "is offered to nobody any more" if to is None else f"is offered to {to}"
    _steer(schedule, "offer", {"to": to}, told, as_json=as_json)


@app.command()
def accept(
    schedule: ScheduleId,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask whether that is meant")] = False,
    as_json: AsJson = False,
) -> None:
    """Take over a schedule that was offered to you: it acts as you from then on."""
    with gateway_here() as gateway:
        offered, tag = gateway.read("schedules", schedule)
        if not yes:
            _show(offered, err=True)
            typer.confirm("Shall it act as you, with your grants?", abort=True, err=True)
        found = gateway.change("POST", "schedules", schedule, "accept", tag=tag)
    print_json(found) if as_json else typer.echo(f"Schedule {plain(schedule)} is yours.")


@app.command()
def decline(schedule: ScheduleId) -> None:
    """Leave a schedule that was offered to you to its owner."""
    with gateway_here() as gateway:
        gateway.post("schedules", schedule, "decline")
    typer.echo(f"Schedule {plain(schedule)} stays with its owner.")


def _steer(schedule: str, what: str, body: object, told: str, *, as_json: bool) -> None:
    with gateway_here() as gateway:
        found = gateway.post("schedules", schedule, what, body=body)
    print_json(found) if as_json else typer.echo(f"Schedule {plain(schedule)} {plain(told)}.")


def _state(schedule: dict[str, Any]) -> str:
    if schedule["paused"]:
        return f"paused: {schedule['paused_because']}" if schedule["paused_because"] else "paused"
    following = schedule["next_firings"]
    return f"next {_moment(following[0])}" if following else "does not fire again"


def _show(schedule: dict[str, Any], *, err: bool = False) -> None:
    offered = schedule["offered_to"]
    facts = {
        "id": schedule["id"],
        "name": schedule["name"],
        "tool": schedule["tool"],
        "arguments": schedule["arguments"],
        "timing": {name: value for name, value in schedule["timing"].items() if value},
        "acts as": schedule["owner"]["name"],
        "offered to": None if offered is None else offered["name"],
        "state": _state(schedule),
    }
    rows = [(name, value) for name, value in facts.items() if value]
    rows += [
        ("fired", f"{_moment(each['started_at'])}  {each['run_id']}") for each in schedule["recent_firings"]
    ]
    print_columns(rows, otherwise="", err=err)


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text.strip())
    if found is None:
        raise WrongUse(f"'{text}' is no length of time: write 90s, 30m, 2h or 1d")
    return int(found[1]) * _SECONDS[found[2]]


def _utc(instant: datetime | None) -> str | None:
    if instant is None:
        return None
    return (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).isoformat()
