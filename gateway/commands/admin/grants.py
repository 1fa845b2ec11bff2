"""`byline grants`: shows and removes what people granted. It is for administrators with a shell."""

from typing import Annotated

import typer
import uvloop

from engine.connections.connection import SHARED_HOLDER
from engine.errors import AccountUnclear, BylineError, SettingsInvalid
from engine.grants.grants import Grant
from gateway.commands.admin.people import resolve_person
from gateway.terminal.safe_text import escape_text
from gateway.terminal.services_context import open_command_services
from gateway.terminal.shell_user import read_shell_user

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_grants(
    name: Annotated[str, typer.Argument(help="a person's name, subject or id, or `shared`")],
) -> None:
    """List a person's grants: connection, upstream account and scopes, never a token."""

    async def find_grants() -> list[Grant]:
        async with open_command_services() as services:
            holder = name if name == SHARED_HOLDER else (await resolve_person(services, name)).id
            return await services.grants.list_grants(holder)

    found_grants = uvloop.run(find_grants())
    for grant in found_grants:
        typer.echo(
            f"{grant.connection_name}  {escape_text(grant.account)}  {escape_text(' '.join(grant.scopes))}  "
            f"since {grant.created_at:%Y-%m-%d}{', has lapsed' if grant.has_lapsed else ''}"
        )
    if not found_grants:
        typer.echo(f"{name} has granted nothing.")


@app.command("remove")
def forget_grant(
    name: Annotated[str, typer.Argument(help="a person's name, subject or id, or `shared`")],
    connection: str,
    account: Annotated[str | None, typer.Option(help="the account, if there are several")] = None,
) -> None:
    """Delete a grant and revoke it upstream; the next action that needs it asks for a sign-in again."""

    async def end_grant() -> str | None:
        async with open_command_services() as services:
            declared_connection = await services.catalogue.get_connection(connection)
            if (declared_connection.mode == "shared") != (name == SHARED_HOLDER):
                expected_holder = "a person" if name == SHARED_HOLDER else "`shared`"
                raise SettingsInvalid(
                    f"Connection '{connection}' is {declared_connection.mode}: name {expected_holder}."
                )
            principal = None if name == SHARED_HOLDER else await resolve_person(services, name)
            try:
                removed_grant = await services.grant_removal.remove_grant(
                    read_shell_user(), declared_connection, principal, account
                )
            except AccountUnclear:
                raise
            except BylineError as error:
                return f" Its upstream is to be told yet, which Byline goes on trying: {error}"
            return None if removed_grant is None else ""

    upstream_note = uvloop.run(end_grant())
    if upstream_note is None:
        raise SettingsInvalid(f"{name} has no grant on connection '{connection}'.")
    typer.echo(f"The grant of {name} on {connection} is gone.{upstream_note}")
