"""`byline people`: shows and changes who may act, and which roles they have. It is for administrators with a shell."""

import re
from typing import Annotated, Final

import typer
import uvloop

from engine.audit.trail import AuditEvent
from engine.errors import SettingsInvalid, TemporalUnreachable
from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR
from engine.schedules.clock import Clock
from engine.schedules.records import ScheduleRecords
from engine.services import Services
from engine.temporal import connect
from engine.upkeep.ending import end_grants
from gateway.commands.columns import print_columns
from gateway.commands.opened import services_here
from gateway.commands.plain import plain
from gateway.sign_in.people import People

app = typer.Typer(no_args_is_help=True)

_ROLE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

Name = Annotated[str, typer.Argument(help="a person's name, subject or id")]
Role = Annotated[str, typer.Argument(help="a word of your own, or `administrator`")]


@app.command("add")
def add_person(
    username: str,
    name: Annotated[str, typer.Option(prompt=True)],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)],
) -> None:
    """Add a person to the built-in sign-in."""

    async def add() -> bool:
        async with services_here() as services:
            return await People(services.database).add(username, name, password)

    if not uvloop.run(add()):
        raise SettingsInvalid(f"There is a '{username}' already.")
    typer.echo(f"{name} can sign in as {username}.")


@app.command("list")
def list_people() -> None:
    """Show everybody who has acted: id, name, kind, whether they may act, and their roles."""

    async def find() -> tuple[list[Principal], dict[str, list[str]]]:
        async with services_here() as services:
            return await services.principals.all(), await services.roles.all()

    known, roles = uvloop.run(find())
    rows = [
        (
            one.id,
            one.name,
            one.kind,
            "active" if one.active else "not active",
            " ".join(roles.get(one.id, ())),
        )
        for one in known
    ]
    print_columns(rows, otherwise="Nobody has signed in yet.")


@app.command("deactivate")
def deactivate_person(name: Name) -> None:
    """Stop somebody: their next action is refused, also in runs that wait, and what they granted is revoked."""
    _set_active(name, active=False)


@app.command("activate")
def activate_person(name: Name) -> None:
    """Let somebody act again."""
    _set_active(name, active=True)


@app.command("give-role")
def give_role(name: Name, role: Role) -> None:
    """Give somebody a role; what it allows is the policy file's to say."""
    if _ROLE.fullmatch(role) is None:
        raise SettingsInvalid(
            f"'{role}' is no role: write one word of lower-case letters, digits and hyphens."
        )

    async def give() -> bool:
        async with services_here() as services:
            one = await one_person(services, name)
            if role == ADMINISTRATOR and one.kind != "person":
                raise SettingsInvalid(f"{one.name} is a service, and only a person can be an administrator.")
            record = await services.trail.recorder()
            given = AuditEvent(kind="role.given", principal=one, role=role)
            return await services.roles.give(one.id, role, lambda session: record(session, given))

    said = "now has" if uvloop.run(give()) else "already has"
    typer.echo(f"{plain(name)} {said} the role {role}.")


@app.command("take-role")
def take_role(name: Name, role: Role) -> None:
    """Take a role from somebody; what it allowed is refused from now on."""

    async def take() -> bool:
        async with services_here() as services:
            one = await one_person(services, name)
            record = await services.trail.recorder()
            taken = AuditEvent(kind="role.taken", principal=one, role=role)
            return await services.roles.take(one.id, role, lambda session: record(session, taken))

    if not uvloop.run(take()):
        raise SettingsInvalid(f"{name} does not have the role '{role}'.")
    typer.echo(f"{plain(name)} has the role {role} no more.")


async def one_person(services: Services, name: str) -> Principal:
    """Return the principal with this name, subject or id. Raises SettingsInvalid if there is none or more than one."""
    known = await services.principals.named(name)
    if len(known) != 1:
        # People choose their own names, so only the id tells two people apart for certain.
        found = "".join(
            f"\n  {one.id}  {plain(f'{one.name} ({one.subject} at {one.issuer})')}" for one in known
        )
        raise SettingsInvalid(
            f"{len(known)} people who have signed in are known as '{name}': give the id of one.{found}"
        )
    return known[0]


def _set_active(name: str, *, active: bool) -> None:
    async def change() -> str:
        async with services_here() as services:
            person = await one_person(services, name)
            await services.principals.set_active(person.id, active=active)
            if active:
                return ""
            return await _stop_schedules(services, person) + await _end_grants(services, person)

    stopped = uvloop.run(change())
    typer.echo(f"{name} is {'active' if active else 'not active'} now.{stopped}")


async def _end_grants(services: Services, person: Principal) -> str:
    """End a person's grants, here and upstream, and return a message about it."""
    ended = await end_grants(services, person)
    if not ended:
        return ""
    untold = dict.fromkeys(each.connection for each in ended if not each.told)
    told = f" Their grants are gone: {len(ended)}."
    return (
        f"{told} To be told upstream yet, which Byline goes on trying: {', '.join(untold)}."
        if untold
        else told
    )


async def _stop_schedules(services: Services, person: Principal) -> str:
    """Pause a person's schedules and return a message about it.

    The pause is recorded, and so it holds even if Temporal cannot be reached.
    """
    because = f"{person.name} is not active here any more."
    stopped = await ScheduleRecords(services).stop_all_of(person, because)
    if not stopped:
        return ""
    settings = services.settings.temporal
    told = f" Their schedules are paused: {len(stopped)}."
    try:
        clock = Clock(await connect(settings), settings.task_queue)
        for schedule_id in stopped:
            await clock.pause(schedule_id, because)
    except TemporalUnreachable:
        return f"{told} Temporal does not answer, and hears of each when it would fire next."
    return told
