"""`byline clients`: back ends that call in their users' names, each with a secret that is shown once."""

from typing import Annotated

import typer
import uvloop

from engine.errors import SettingsInvalid
from gateway.authorization_server.clients import Client, Clients
from gateway.commands.columns import print_columns
from gateway.commands.opened import services_here

app = typer.Typer(help="Back ends that call in their users' names.", no_args_is_help=True)


@app.command("add-backend")
def add_backend(
    name: Annotated[str, typer.Argument(help="what the trail calls it")],
    audience: Annotated[
        list[str] | None,
        typer.Option(help="an audience of the external issuer's tokens that this back end may exchange"),
    ] = None,
) -> None:
    """Register a trusted back end, which may exchange its users' tokens; its secret is printed this once."""
    if not name.strip() or not name.isprintable() or len(name) > 100:
        msg = "Give the back end a name of 1 to 100 printable characters."
        raise SettingsInvalid(msg)

    async def add() -> tuple[str, str]:
        async with services_here() as here:
            external = here.settings.gateway.issuer is not None
            if external and not audience:
                msg = "Name at least one --audience: that of the tokens which the issuer makes for this back end."
                raise SettingsInvalid(msg)
            if audience and not external:
                msg = "--audience is for tokens of an external issuer, and BYLINE_GATEWAY__ISSUER__ISSUER names none."
                raise SettingsInvalid(msg)
            return await Clients(here).add_backend(name.strip(), audience or ())

    client_id, secret = uvloop.run(add())
    typer.echo("The secret is not shown again:", err=True)
    typer.echo(f"client_id      {client_id}\nclient_secret  {secret}")


@app.command("list")
def list_backends() -> None:
    """Show the trusted back ends: id, name and audiences."""

    async def find() -> list[Client]:
        async with services_here() as here:
            return await Clients(here).backends()

    rows = [
        (one.client_id, one.title, " ".join(one.backend.audiences) if one.backend else "")
        for one in uvloop.run(find())
    ]
    print_columns(rows, otherwise="There is no back end.")


@app.command("remove-backend")
def remove_backend(
    client_id: Annotated[str, typer.Argument(help="as `byline clients list` shows it")],
) -> None:
    """Forget a back end; every token that it got is refused from now on."""

    async def remove() -> bool:
        async with services_here() as here:
            return await Clients(here).remove_backend(client_id)

    if not uvloop.run(remove()):
        msg = f"There is no back end '{client_id}'."
        raise SettingsInvalid(msg)
    typer.echo(f"Back end {client_id} is gone, and so are its tokens.")
