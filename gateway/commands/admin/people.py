"""`byline people`: shows and changes who may act, and which roles they have. It is for administrators with a shell."""

from typing import Annotated

import typer
import uvloop

from engine.administration.people import Deactivation, activate_principal, deactivate_principal
from engine.administration.roles import give_role, take_role
from engine.errors import SettingsInvalid
from engine.identity.model import Principal
from engine.services import Services
from gateway.sign_in.built_in_people import BuiltInPeople
from gateway.terminal.columns import print_columns
from gateway.terminal.safe_text import escape_text
from gateway.terminal.services_context import open_command_services
from gateway.terminal.shell_user import read_shell_user

app = typer.Typer(no_args_is_help=True)

PersonNameArgument = Annotated[str, typer.Argument(help="a person's name, subject or id")]
RoleArgument = Annotated[str, typer.Argument(help="a word of your own, or `administrator`")]


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

    async def stop_person() -> Deactivation:
        async with open_command_services() as services:
            principal = await resolve_person(services, name)
            return await deactivate_principal(services, read_shell_user(), principal)

    deactivation = uvloop.run(stop_person())
    typer.echo(
        f"{name} is not active now.{_describe_schedules(deactivation)}{_describe_grants(deactivation)}"
    )


@app.command("activate")
def activate_person(name: PersonNameArgument) -> None:
    """Let a deactivated person act again."""

    async def let_person_act() -> None:
        async with open_command_services() as services:
            principal = await resolve_person(services, name)
            await activate_principal(services, read_shell_user(), principal)

    uvloop.run(let_person_act())
    typer.echo(f"{name} is active now.")


@app.command("give-role")
def assign_role(name: PersonNameArgument, role: RoleArgument) -> None:
    """Give a person a role; the policy file says what it allows."""

    async def record_role() -> bool:
        async with open_command_services() as services:
            principal = await resolve_person(services, name)
            return await give_role(services, read_shell_user(), principal, role)

    outcome_text = "now has" if uvloop.run(record_role()) else "already has"
    typer.echo(f"{escape_text(name)} {outcome_text} the role {role}.")


@app.command("take-role")
def withdraw_role(name: PersonNameArgument, role: RoleArgument) -> None:
    """Take a role from a person; what it allowed is refused from now on."""

    async def delete_role() -> bool:
        async with open_command_services() as services:
            principal = await resolve_person(services, name)
            return await take_role(services, read_shell_user(), principal, role)

    if not uvloop.run(delete_role()):
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


def _describe_grants(deactivation: Deactivation) -> str:
    if not deactivation.removed_grants:
        return ""
    pending_connections = dict.fromkeys(
        removed_grant.grant.connection_name
        for removed_grant in deactivation.removed_grants
        if removed_grant.upstream_error is not None
    )
    grants_message = f" Their grants are gone: {len(deactivation.removed_grants)}."
    return (
        f"{grants_message} To be told upstream yet, which Byline goes on trying: {', '.join(pending_connections)}."
        if pending_connections
        else grants_message
    )


def _describe_schedules(deactivation: Deactivation) -> str:
    if not deactivation.paused_schedule_ids:
        return ""
    paused_message = f" Their schedules are paused: {len(deactivation.paused_schedule_ids)}."
    return (
        paused_message
        if deactivation.is_temporal_notified
        else f"{paused_message} Temporal does not answer, and hears of each when it would fire next."
    )
