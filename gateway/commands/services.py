"""`byline services`: manages services, which call in their own name, and their API tokens. A token is shown once."""

from datetime import timedelta
from typing import Annotated

import typer
import uvloop

from engine.callers.api_tokens import ApiToken, NewApiToken
from engine.identity.model import Principal
from gateway.commands.columns import print_columns
from gateway.commands.opened import services_here

app = typer.Typer(no_args_is_help=True)

Service = Annotated[str, typer.Argument(help="a service's name or id")]


@app.command("add")
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


@app.command("list")
def list_services() -> None:
    """Show the services: id, name, and whether they may act."""

    async def find() -> list[Principal]:
        async with services_here() as here:
            return await here.service_principals.all()

    rows = [(one.id, one.name, "active" if one.active else "not active") for one in uvloop.run(find())]
    print_columns(rows, otherwise="There is no service.")


@app.command("add-token")
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


@app.command("tokens")
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


@app.command("revoke-token")
def revoke_service_token(
    name: Service, token_id: Annotated[str, typer.Argument(help="as `byline services tokens` shows it")]
) -> None:
    """Refuse an API token of a service from now on."""

    async def revoke() -> None:
        async with services_here() as here:
            await here.api_tokens.revoke(token_id, await here.service_principals.get(name))

    uvloop.run(revoke())
    typer.echo(f"Token {token_id} is refused from now on.")
