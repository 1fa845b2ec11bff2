"""`byline audit`: shows who did what to which record, as whom, with which result, and verifies the audit trail."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer
import uvloop

from engine.audit.trail import Line, Trail
from engine.audit.verify import Proof, verify_trail
from engine.errors import SettingsInvalid
from engine.services import Services
from gateway.commands.opened import services_here
from gateway.commands.plain import plain

app = typer.Typer(invoke_without_command=True)


@app.callback()
def audit(
    context: typer.Context,
    record: Annotated[str | None, typer.Option(help="system:kind/id, such as zendesk:ticket/35436")] = None,
    principal: Annotated[str | None, typer.Option(help="a person's name, subject or id")] = None,
    run: Annotated[str | None, typer.Option(help="a run's id")] = None,
    since: Annotated[datetime | None, typer.Option(help="from this instant on (UTC)")] = None,
    until: Annotated[datetime | None, typer.Option(help="before this instant (UTC)")] = None,
    writes: Annotated[bool, typer.Option("--writes", help="leave out what only read")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document a line")] = False,  # noqa: FBT002
    limit: Annotated[int, typer.Option(help="at most this many lines of the trail, the newest")] = 1000,
) -> None:
    """Answer by record, by person, by run and by time."""
    if context.invoked_subcommand is not None:
        return
    lines = uvloop.run(_find(record, principal, run, _utc(since), _utc(until), limit, writes_only=writes))
    for line in lines:
        typer.echo(
            json.dumps({"seq": line.seq, "time": line.time.isoformat(), "kind": line.kind, **line.event})
            if as_json
            else _told(line)
        )
    if not lines and not as_json:
        typer.echo("The trail has nothing that fits.")


@app.command()
def verify(
    noted: Annotated[
        str | None, typer.Option(help="seq:hash of a head written down earlier, to find a cut-off end")
    ] = None,
) -> None:
    """Prove that no line was edited, deleted, inserted or reordered; exits with 1 where one was."""
    proof = uvloop.run(_prove(noted))
    for problem in proof.problems:
        typer.echo(problem, err=True)
    if not proof.holds:
        raise typer.Exit(1)
    typer.echo(f"The trail holds: {proof.lines} lines, head {proof.head_seq}:{proof.head_hash}")


async def _find(
    record: str | None,
    principal: str | None,
    run: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    *,
    writes_only: bool,
) -> list[Line]:
    system, record_id = _record(record)
    async with services_here() as services:
        found: list[Line] = []
        for principal_id in await _principal_ids(services, principal):
            found += await services.trail.find(
                system=system,
                record_id=record_id,
                principal_id=principal_id,
                run_id=run,
                since=since,
                until=until,
                writes_only=writes_only,
                limit=limit,
            )
        return await _without_answered_intents(services.trail, sorted(found, key=lambda line: line.seq))


async def _prove(noted: str | None) -> Proof:
    seq, _, digest = (noted or "").partition(":")
    if noted is not None and not (seq.isdigit() and digest):
        raise SettingsInvalid("--noted takes what `byline audit verify` printed as head: seq:hash")
    async with services_here() as services:
        return await verify_trail(
            services.database, services.keys, noted=(int(seq), digest) if noted else None
        )


async def _principal_ids(services: Services, principal: str | None) -> list[str | None]:
    if principal is None:
        return [None]
    known = await services.principals.named(principal)
    return [person.id for person in known] or [principal]


def _record(record: str | None) -> tuple[str | None, str | None]:
    if record is None:
        return None, None
    system, separator, record_id = record.partition(":")
    if not separator:
        raise SettingsInvalid("--record takes system:kind/id, such as zendesk:ticket/35436")
    return system, record_id


def _utc(instant: datetime | None) -> datetime | None:
    return instant if instant is None or instant.tzinfo is not None else instant.replace(tzinfo=UTC)


async def _without_answered_intents(trail: Trail, lines: list[Line]) -> list[Line]:
    """Return the lines without the intents whose outcome is known, since an outcome repeats its intent."""
    answered = {line.event.get("intent") for line in lines}
    intents = [line for line in lines if line.kind == "action.intended"]
    # The filters may exclude the outcome of an intent that they include.
    for run_id in {str(intent.event.get("run_id")) for intent in intents if intent.seq not in answered}:
        answered |= {line.event.get("intent") for line in await trail.find(run_id=run_id, limit=None)}
    return [line for line in lines if line.kind != "action.intended" or line.seq not in answered]


def _told(line: Line) -> str:
    event = line.event
    principal, actor, by = event.get("principal", {}), event.get("actor", {}), event.get("by", {})
    facts = {
        "who": f"{principal['name']} ({principal['sub']} at {principal['iss']})" if principal else None,
        "through": _actor(actor, event.get("trigger")) if actor else None,
        "by": f"{by['name']} ({by['sub']} at {by['iss']})" if by else None,
        "did": " ".join(str(event[name]) for name in ("action", "method", "resource") if event.get(name))
        or None,
        "record": f"{event['system']}:{event['record_id']}" if event.get("record_id") else None,
        "workflows": " → ".join(event.get("chain", ())) or None,
        "run": event.get("run_id"),
        "connection": f"{event['connection']} ({event.get('mode', 'user')})"
        if event.get("connection")
        else None,
        "scopes": " ".join(event.get("scopes", ())) or None,
        "account": event.get("account"),
        "grant": f"{event['grant_id']}, token {event.get('fingerprint', '–')}"
        if event.get("grant_id")
        else None,
        "verdict": _verdict(line),
        "said": event.get("message"),
    }
    head = f"{line.time:%Y-%m-%d %H:%M:%S} UTC  {line.kind}  (line {line.seq})"
    return (
        "\n".join([head, *(f"  {name:<11}{plain(value)}" for name, value in facts.items() if value)]) + "\n"
    )


def _actor(actor: Mapping[str, str], trigger: str | None) -> str:
    told = f"{actor['name']} ({actor['kind']} {actor['id']})"
    return told if trigger is None else f"{told}, by {trigger}"


def _verdict(line: Line) -> str | None:
    if line.kind == "action.intended":
        return "unknown: the request was about to leave, and no outcome was recorded"
    status = f" ({line.event['status']})" if line.event.get("status") else ""
    verdict = line.event.get("verdict") or line.event.get("error")
    return f"{verdict}{status}" if verdict else None
