"""`byline audit`: shows who did what to which record, as whom, with which result, and verifies the audit trail."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer
import uvloop

from engine.audit.trail import AuditTrail, TrailLine
from engine.audit.verify import TrailProof, verify_trail
from engine.errors import SettingsInvalid
from engine.services import Services
from gateway.terminal.safe_text import escape_text
from gateway.terminal.services_context import open_command_services

app = typer.Typer(invoke_without_command=True)


@app.callback()
def show_trail(
    command_context: typer.Context,
    record: Annotated[
        str | None, typer.Option(help="a record as system:kind/id, such as zendesk:ticket/35436")
    ] = None,
    principal: Annotated[str | None, typer.Option(help="a person's name, subject or id")] = None,
    run: Annotated[str | None, typer.Option(help="a run's id")] = None,
    since: Annotated[datetime | None, typer.Option(help="only lines from this time on (UTC)")] = None,
    until: Annotated[datetime | None, typer.Option(help="only lines before this time (UTC)")] = None,
    should_skip_reads: Annotated[bool, typer.Option("--writes", help="omit actions that only read")] = False,  # noqa: FBT002
    should_print_json: Annotated[bool, typer.Option("--json", help="one JSON document per line")] = False,  # noqa: FBT002
    limit: Annotated[int, typer.Option(help="print at most this many lines, the newest")] = 1000,
) -> None:
    """Show the lines of the audit trail that match all options."""
    if command_context.invoked_subcommand is not None:
        return
    trail_lines = uvloop.run(
        _find_lines(
            record, principal, run, _to_utc(since), _to_utc(until), limit, should_skip_reads=should_skip_reads
        )
    )
    for trail_line in trail_lines:
        typer.echo(
            json.dumps(
                {
                    "seq": trail_line.seq,
                    "time": trail_line.time.isoformat(),
                    "kind": trail_line.kind,
                    **trail_line.event,
                }
            )
            if should_print_json
            else _format_line(trail_line)
        )
    if not trail_lines and not should_print_json:
        typer.echo("The trail has nothing that fits.")


@app.command()
def verify(
    noted: Annotated[
        str | None,
        typer.Option(
            help="a head that an earlier verification printed, as seq:hash; detects that lines after it were removed"
        ),
    ] = None,
) -> None:
    """Verify that no line was edited, deleted, inserted or reordered; exits with 1 if one was."""
    proof = uvloop.run(_verify_against_head(noted))
    for problem in proof.problems:
        typer.echo(problem, err=True)
    if not proof.is_intact:
        raise typer.Exit(1)
    typer.echo(f"The trail holds: {proof.line_count} lines, head {proof.head_seq}:{proof.head_hash}")


async def _find_lines(
    record_name: str | None,
    principal_name: str | None,
    run_id: str | None,
    occurred_since: datetime | None,
    occurred_until: datetime | None,
    max_lines: int,
    *,
    should_skip_reads: bool,
) -> list[TrailLine]:
    system_name, record_id = _parse_record(record_name)
    async with open_command_services() as services:
        trail_lines: list[TrailLine] = []
        for principal_id in await _find_principal_ids(services, principal_name):
            trail_lines += await services.trail.find_lines(
                system=system_name,
                record_id=record_id,
                principal_id=principal_id,
                run_id=run_id,
                since=occurred_since,
                until=occurred_until,
                writes_only=should_skip_reads,
                limit=max_lines,
            )
        return await _drop_answered_intents(
            services.trail, sorted(trail_lines, key=lambda trail_line: trail_line.seq)
        )


async def _verify_against_head(noted_head: str | None) -> TrailProof:
    head_seq, _, head_hash = (noted_head or "").partition(":")
    if noted_head is not None and not (head_seq.isdigit() and head_hash):
        raise SettingsInvalid("--noted takes what `byline audit verify` printed as head: seq:hash")
    async with open_command_services() as services:
        return await verify_trail(
            services.database,
            services.signing_keys,
            noted_head=(int(head_seq), head_hash) if noted_head else None,
        )


async def _find_principal_ids(services: Services, principal_name: str | None) -> list[str | None]:
    if principal_name is None:
        return [None]
    principals = await services.principals.find_by_name(principal_name)
    return [principal.id for principal in principals] or [principal_name]


def _parse_record(record_name: str | None) -> tuple[str | None, str | None]:
    if record_name is None:
        return None, None
    system_name, separator, record_id = record_name.partition(":")
    if not separator:
        raise SettingsInvalid("--record takes system:kind/id, such as zendesk:ticket/35436")
    return system_name, record_id


def _to_utc(instant: datetime | None) -> datetime | None:
    return instant if instant is None or instant.tzinfo is not None else instant.replace(tzinfo=UTC)


async def _drop_answered_intents(audit_trail: AuditTrail, trail_lines: list[TrailLine]) -> list[TrailLine]:
    """Return the lines without the intents whose outcome is known, since an outcome repeats its intent."""
    answered_intents = {trail_line.event.get("intent") for trail_line in trail_lines}
    intent_lines = [trail_line for trail_line in trail_lines if trail_line.kind == "action.intended"]
    # The filters may exclude the outcome of an intent that they include.
    for run_id in {
        str(intent_line.event.get("run_id"))
        for intent_line in intent_lines
        if intent_line.seq not in answered_intents
    }:
        answered_intents |= {
            trail_line.event.get("intent")
            for trail_line in await audit_trail.find_lines(run_id=run_id, limit=None)
        }
    return [
        trail_line
        for trail_line in trail_lines
        if trail_line.kind != "action.intended" or trail_line.seq not in answered_intents
    ]


def _format_line(trail_line: TrailLine) -> str:
    event_fields = trail_line.event
    principal, actor, administrator = (
        event_fields.get("principal", {}),
        event_fields.get("actor", {}),
        event_fields.get("by", {}),
    )
    line_facts = {
        "who": f"{principal['name']} ({principal['sub']} at {principal['iss']})" if principal else None,
        "through": _format_actor(actor, event_fields.get("trigger")) if actor else None,
        "by": f"{administrator['name']} ({administrator['sub']} at {administrator['iss']})"
        if administrator
        else None,
        "did": " ".join(
            str(event_fields[field_name])
            for field_name in ("action", "method", "resource")
            if event_fields.get(field_name)
        )
        or None,
        "record": f"{event_fields['system']}:{event_fields['record_id']}"
        if event_fields.get("record_id")
        else None,
        "workflows": " → ".join(event_fields.get("chain", ())) or None,
        "run": event_fields.get("run_id"),
        "connection": f"{event_fields['connection']} ({event_fields.get('mode', 'user')})"
        if event_fields.get("connection")
        else None,
        "scopes": " ".join(event_fields.get("scopes", ())) or None,
        "account": event_fields.get("account"),
        "grant": f"{event_fields['grant_id']}, token {event_fields.get('fingerprint', '–')}"
        if event_fields.get("grant_id")
        else None,
        "verdict": _format_verdict(trail_line),
        "said": event_fields.get("message"),
    }
    heading = f"{trail_line.time:%Y-%m-%d %H:%M:%S} UTC  {trail_line.kind}  (line {trail_line.seq})"
    return (
        "\n".join(
            [
                heading,
                *(
                    f"  {fact_name:<11}{escape_text(fact_value)}"
                    for fact_name, fact_value in line_facts.items()
                    if fact_value
                ),
            ]
        )
        + "\n"
    )


def _format_actor(actor: Mapping[str, str], trigger: str | None) -> str:
    actor_text = f"{actor['name']} ({actor['kind']} {actor['id']})"
    return actor_text if trigger is None else f"{actor_text}, by {trigger}"


def _format_verdict(trail_line: TrailLine) -> str | None:
    if trail_line.kind == "action.intended":
        return "unknown: the request was about to leave, and no outcome was recorded"
    status_text = f" ({trail_line.event['status']})" if trail_line.event.get("status") else ""
    verdict = trail_line.event.get("verdict") or trail_line.event.get("error")
    return f"{verdict}{status_text}" if verdict else None
