"""`byline services`: manages services, which call in their own name, and their API tokens. A token is shown once."""

from datetime import timedelta
from typing import Annotated

import typer
import uvloop

from engine.administration.services import add_service
from engine.callers.api_tokens import ApiToken, NewApiToken
from engine.identity.model import Principal
from gateway.terminal.columns import print_columns
from gateway.terminal.services_context import open_command_services
from gateway.terminal.shell_user import read_shell_user

app = typer.Typer(no_args_is_help=True)

ServiceNameArgument = Annotated[str, typer.Argument(help="a service's name or id")]


@app.command("add")
def create_service(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens")],
) -> None:
    """Add a service; before it can act it needs a token and, for tools that use connections, grants."""

    async def store_service() -> Principal:
        async with open_command_services() as services:
            return await add_service(services, read_shell_user(), name)

    service_principal = uvloop.run(store_service())
    typer.echo(
        f"The service {service_principal.name} is known as {service_principal.id}. Next: "
        f"byline services add-token {service_principal.name} LABEL"
    )


@app.command("list")
def list_services() -> None:
    """List the services: id, name, and whether they may act."""

    async def find_services() -> list[Principal]:
        async with open_command_services() as services:
            return await services.service_principals.list_services()

    service_rows = [
        (
            service_principal.id,
            service_principal.name,
            "active" if service_principal.is_active else "not active",
        )
        for service_principal in uvloop.run(find_services())
    ]
    print_columns(service_rows, empty_message="There is no service.")


@app.command("add-token")
def add_service_token(
    name: ServiceNameArgument,
    label: Annotated[str, typer.Argument(help="a label by which you recognize the token")],
    tool: Annotated[
        list[str] | None, typer.Option(help="a tool that it may call; may be repeated; by default all")
    ] = None,
    days: Annotated[int | None, typer.Option(help="how many days it is valid; by default 90")] = None,
) -> None:
    """Create an API token that acts as a service; it is printed only once."""

    async def create_token() -> NewApiToken:
        async with open_command_services() as services:
            service_principal = await services.service_principals.get_service(name)
            lifetime = None if days is None else timedelta(days=days)
            return await services.api_tokens.create_token(
                service_principal,
                label,
                tool_names=tool or None,
                lifetime=lifetime,
                administrator=read_shell_user(),
            )

    new_token = uvloop.run(create_token())
    typer.echo(f"Good until {new_token.api_token.expires_at:%Y-%m-%d}, and not shown again:", err=True)
    typer.echo(new_token.token_text)


@app.command("tokens")
def list_service_tokens(name: ServiceNameArgument) -> None:
    """List the API tokens of a service, newest first, without their secrets."""

    async def find_tokens() -> list[ApiToken]:
        async with open_command_services() as services:
            return await services.api_tokens.list_tokens(await services.service_principals.get_service(name))

    token_rows = [
        (
            api_token.id,
            api_token.name,
            api_token.token_state,
            f"until {api_token.expires_at:%Y-%m-%d}",
            "never used"
            if api_token.last_used_at is None
            else f"used {api_token.last_used_at:%Y-%m-%d %H:%M} UTC",
            "every tool" if api_token.tool_names is None else " ".join(sorted(api_token.tool_names)),
        )
        for api_token in uvloop.run(find_tokens())
    ]
    print_columns(token_rows, empty_message=f"{name} has no API token.")


@app.command("revoke-token")
def revoke_service_token(
    name: ServiceNameArgument,
    token_id: Annotated[str, typer.Argument(help="the id that `byline services tokens` shows")],
) -> None:
    """Revoke an API token of a service at once."""

    async def revoke_token() -> None:
        async with open_command_services() as services:
            await services.api_tokens.revoke_token(
                token_id,
                await services.service_principals.get_service(name),
                administrator=read_shell_user(),
            )

    uvloop.run(revoke_token())
    typer.echo(f"Token {token_id} is refused from now on.")
