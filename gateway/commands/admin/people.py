"""`byline people`: shows and changes who may act, and which roles they have. It is for administrators with a shell."""

import re
from typing import Annotated, Final

import typer
import uvloop

from engine.audit.trail import AuditEvent
from engine.errors import SettingsInvalid, TemporalUnreachable
from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR_ROLE
from engine.schedules.schedule_records import ScheduleRecords
from engine.schedules.temporal_schedules import TemporalSchedules
from engine.services import Services
from engine.temporal import connect_temporal
from engine.upkeep.ending import end_grants
from gateway.sign_in.built_in_people import BuiltInPeople
from gateway.terminal.columns import print_columns
from gateway.terminal.safe_text import escape_text
from gateway.terminal.services_context import open_command_services

app = typer.Typer(no_args_is_help=True)

_ROLE_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

PersonNameArgument = Annotated[str, typer.Argument(help="a person's name, subject or id")]
RoleArgument = Annotated[str, typer.Argument(help="a role's name, which you choose, or `administrator`")]


@app.command("add")
def add_person(
    username: str,
    name: Annotated[str, typer.Option(prompt=True)],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)],
) -> None:
    """Add a person to the built-in sign-in."""

    async def store_person() -> bool:
        async with open_command_services() as services:
            return await BuiltInPeople(services.database).add_person(username, name, password)

    if not uvloop.run(store_person()):
        raise SettingsInvalid(f"There is a '{username}' already.")
    typer.echo(f"{name} can sign in as {username}.")


@app.command("list")
def list_people() -> None:
    """List everybody who has acted: id, name, kind, whether they may act, and their roles."""

    async def find_people() -> tuple[list[Principal], dict[str, list[str]]]:
        async with open_command_services() as services:
            return await services.principals.list_principals(), await services.roles.list_all_roles()

    principals, roles_by_principal = uvloop.run(find_people())
    people_rows = [
        (
            principal.id,
            principal.name,
            principal.kind,
            "active" if principal.is_active else "not active",
            " ".join(roles_by_principal.get(principal.id, ())),
        )
        for principal in principals
    ]
    print_columns(people_rows, empty_message="Nobody has signed in yet.")


@app.command("deactivate")
def deactivate_person(name: PersonNameArgument) -> None:
    """Deactivate a person: their next action is refused, also in waiting runs, and their grants are revoked."""
    _change_active_state(name, is_active=False)


@app.command("activate")
def activate_person(name: PersonNameArgument) -> None:
    """Let a deactivated person act again."""
    _change_active_state(name, is_active=True)


@app.command("give-role")
def give_role(name: PersonNameArgument, role: RoleArgument) -> None:
    """Give a person a role; the policy file says what it allows."""
    if _ROLE_PATTERN.fullmatch(role) is None:
        raise SettingsInvalid(
            f"'{role}' is no role: write one word of lower-case letters, digits and hyphens."
        )

    async def record_role() -> bool:
        async with open_command_services() as services:
            principal = await resolve_person(services, name)
            if role == ADMINISTRATOR_ROLE and principal.kind != "person":
                raise SettingsInvalid(
                    f"{principal.name} is a service, and only a person can be an administrator."
                )
            record_event = await services.trail.make_recorder()
            audit_event = AuditEvent(kind="role.given", principal=principal, role=role)
            return await services.roles.assign_role(
                principal.id, role, lambda db_session: record_event(db_session, audit_event)
            )

    outcome_text = "now has" if uvloop.run(record_role()) else "already has"
    typer.echo(f"{escape_text(name)} {outcome_text} the role {role}.")


@app.command("take-role")
def take_role(name: PersonNameArgument, role: RoleArgument) -> None:
    """Take a role from a person; what it allowed is refused from now on."""

    async def withdraw_role() -> bool:
        async with open_command_services() as services:
            principal = await resolve_person(services, name)
            record_event = await services.trail.make_recorder()
            audit_event = AuditEvent(kind="role.taken", principal=principal, role=role)
            return await services.roles.remove_role(
                principal.id, role, lambda db_session: record_event(db_session, audit_event)
            )

    if not uvloop.run(withdraw_role()):
        raise SettingsInvalid(f"{name} does not have the role '{role}'.")
    typer.echo(f"{escape_text(name)} has the role {role} no more.")


async def resolve_person(services: Services, person_name: str) -> Principal:
    """Return the principal with this name, subject or id. Raises SettingsInvalid if there is none or more than one."""
    principals = await services.principals.find_by_name(person_name)
    if len(principals) != 1:
        # People choose their own names, so only the id tells two people apart for certain.
        candidate_lines = "".join(
            f"\n  {principal.id}  {escape_text(f'{principal.name} ({principal.subject} at {principal.issuer})')}"
            for principal in principals
        )
        raise SettingsInvalid(
            f"{len(principals)} people who have signed in are known as '{person_name}': give "
            f"the id of one.{candidate_lines}"
        )
    return principals[0]


def _change_active_state(person_name: str, *, is_active: bool) -> None:
    async def record_active_state() -> str:
        async with open_command_services() as services:
            principal = await resolve_person(services, person_name)
            await services.principals.set_active(principal.id, is_active=is_active)
            if is_active:
                return ""
            return await _pause_schedules(services, principal) + await _end_person_grants(services, principal)

    stop_message = uvloop.run(record_active_state())
    typer.echo(f"{person_name} is {'active' if is_active else 'not active'} now.{stop_message}")


async def _end_person_grants(services: Services, principal: Principal) -> str:
    """End a person's grants, here and upstream, and return a message about it."""
    ended_grants = await end_grants(services, principal)
    if not ended_grants:
        return ""
    pending_connections = dict.fromkeys(
        ended_grant.connection_name for ended_grant in ended_grants if not ended_grant.is_upstream_done
    )
    ended_message = f" Their grants are gone: {len(ended_grants)}."
    return (
        f"{ended_message} To be told upstream yet, which Byline goes on trying: {', '.join(pending_connections)}."
        if pending_connections
        else ended_message
    )


async def _pause_schedules(services: Services, principal: Principal) -> str:
    """Pause a person's schedules and return a message about it.

    The pause is recorded, and so it holds even if Temporal cannot be reached.
    """
    pause_reason = f"{principal.name} is not active here any more."
    paused_ids = await ScheduleRecords(services).pause_all_schedules(principal, pause_reason)
    if not paused_ids:
        return ""
    temporal_settings = services.settings.temporal
    paused_message = f" Their schedules are paused: {len(paused_ids)}."
    try:
        temporal_schedules = TemporalSchedules(
            await connect_temporal(temporal_settings), temporal_settings.task_queue
        )
        for schedule_id in paused_ids:
            await temporal_schedules.pause_schedule(schedule_id, pause_reason)
    except TemporalUnreachable:
        return f"{paused_message} Temporal does not answer, and hears of each when it would fire next."
    return paused_message
