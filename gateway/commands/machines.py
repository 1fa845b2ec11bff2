"""`byline services` and `byline clients`: machines that an administrator makes known, and secrets, each shown once."""

from datetime import timedelta
from typing import Annotated

import typer
import uvloop

from engine.callers.api_tokens import ApiToken, NewApiToken
from engine.errors import SettingsInvalid
from engine.identity.model import Principal
from gateway.authorization_server.clients import Client, Clients
from gateway.commands.columns import print_columns
from gateway.commands.services import services_here

services = typer.Typer(help="Machines that call in their own name.", no_args_is_help=True)
clients = typer.Typer(help="Back ends that call in their users' names.", no_args_is_help=True)

Service = Annotated[str, typer.Argument(help="a service's name or id")]


@services.command("add")
def add_service(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens")],
) -> None:
    """Make a service known; it can do nothing until it has a token and, where tools need them, grants."""

    async def add() -> Principal:
        async with services_here() as here:
            return await here.service_principals.add(name)

    service = uvloop.run(add())
    typer.echo(
        f"The service {service.name} is known as {service.id}. Next: byline services add-token {service.name} LABEL"
    )


@services.command("list")
def list_services() -> None:
    """Show the services: id, name, and whether they may act."""

    async def find() -> list[Principal]:
        async with services_here() as here:
            return await here.service_principals.all()

    rows = [(one.id, one.name, "active" if one.active else "not active") for one in uvloop.run(find())]
    print_columns(rows, otherwise="There is no service.")


@services.command("add-token")
def add_service_token(
    name: Service,
    label: Annotated[str, typer.Argument(help="what you know the token again by")],
    tool: Annotated[
        list[str] | None, typer.Option(help="a tool it is good for; all, where none is named")
    ] = None,
    days: Annotated[int | None, typer.Option(help="how long it lives; 90 where nothing is said")] = None,
) -> None:
    """Make an API token that acts as a service; it is printed this once."""

    async def add() -> NewApiToken:
        async with services_here() as here:
            service = await here.service_principals.get(name)
            life = None if days is None else timedelta(days=days)
            return await here.api_tokens.create(service, label, tools=tool or None, life=life)

    made = uvloop.run(add())
    typer.echo(f"Good until {made.token.expires_at:%Y-%m-%d}, and not shown again:", err=True)
    typer.echo(made.secret)


@services.command("tokens")
def list_service_tokens(name: Service) -> None:
    """Show the API tokens of a service, newest first, without their secrets."""

    async def find() -> list[ApiToken]:
        async with services_here() as here:
            return await here.api_tokens.of(await here.service_principals.get(name))

    rows = [
        (
            token.id,
            token.name,
            token.state,
            f"until {token.expires_at:%Y-%m-%d}",
            "never used" if token.last_used_at is None else f"used {token.last_used_at:%Y-%m-%d %H:%M} UTC",
            "every tool" if token.tools is None else " ".join(sorted(token.tools)),
        )
        for token in uvloop.run(find())
    ]
    print_columns(rows, otherwise=f"{name} has no API token.")


@services.command("revoke-token")
def revoke_service_token(
    name: Service, token_id: Annotated[str, typer.Argument(help="as `byline services tokens` shows it")]
) -> None:
    """Refuse an API token of a service from now on."""

    async def revoke() -> None:
        async with services_here() as here:
            await here.api_tokens.revoke(token_id, await here.service_principals.get(name))

    uvloop.run(revoke())
    typer.echo(f"Token {token_id} is refused from now on.")


@clients.command("add-backend")
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


@clients.command("list")
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


@clients.command("remove-backend")
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
