"""`byline grants`: shows and removes what people granted. It is for administrators with a shell."""

from typing import Annotated

import typer
import uvloop

from engine.connections.connection import SHARED
from engine.connections.grants import Grant
from engine.errors import AccountUnclear, BylineError, SettingsInvalid
from gateway.commands.opened import services_here
from gateway.commands.people import one_person
from gateway.commands.plain import plain
from gateway.grants import remove_grant

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_grants(
    name: Annotated[str, typer.Argument(help="a person's name, subject or id, or `shared`")],
) -> None:
    """Show what somebody granted: connection, upstream account and scopes, never a token."""

    async def find() -> list[Grant]:
        async with services_here() as services:
            holder = name if name == SHARED else (await one_person(services, name)).id
            return await services.grants.of(holder)

    found = uvloop.run(find())
    for grant in found:
        typer.echo(
            f"{grant.connection}  {plain(grant.account)}  {plain(' '.join(grant.scopes))}  "
            f"since {grant.created_at:%Y-%m-%d}{', has lapsed' if grant.has_lapsed else ''}"
        )
    if not found:
        typer.echo(f"{name} has granted nothing.")


@app.command("remove")
def forget_grant(
    name: Annotated[str, typer.Argument(help="a person's name, subject or id, or `shared`")],
    connection: str,
    account: Annotated[str | None, typer.Option(help="the account, where there are several")] = None,
) -> None:
    """Forget a grant and revoke it upstream; the next action that needs it asks again."""

    async def remove() -> str | None:
        async with services_here() as services:
            declared = await services.catalogue.get(connection)
            if (declared.mode == "shared") != (name == SHARED):
                whose = "a person" if name == SHARED else "`shared`"
                raise SettingsInvalid(f"Connection '{connection}' is {declared.mode}: name {whose}.")
            person = None if name == SHARED else await one_person(services, name)
            try:
                return "" if await remove_grant(services, declared, person, account) else None
            except AccountUnclear:
                raise
            except BylineError as error:
                return f" Its upstream is to be told yet, which Byline goes on trying: {error}"

    untold = uvloop.run(remove())
    if untold is None:
        raise SettingsInvalid(f"{name} has no grant on connection '{connection}'.")
    typer.echo(f"The grant of {name} on {connection} is gone.{untold}")
