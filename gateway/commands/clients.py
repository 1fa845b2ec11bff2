"""`byline clients`: lets an administrator register MCP clients and back ends. A secret is shown once."""

from typing import Annotated

import typer
import uvloop

from engine.errors import SettingsInvalid
from engine.services import Services
from gateway.authorization_server.consents import Consents
from gateway.authorization_server.registered_clients import RegisteredClient, RegisteredClients
from gateway.commands.columns import print_columns
from gateway.commands.opened import services_here

app = typer.Typer(no_args_is_help=True)

WithSecret = Annotated[bool, typer.Option("--secret", help="give it a secret, for a program on a server")]
WithAssertions = Annotated[
    bool,
    typer.Option(
        "--assertions", help="let it bring assertions of your identity provider; goes with --secret"
    ),
]


@app.command("add")
def add_client(
    name: Annotated[str, typer.Argument(help="what people and the trail read")],
    redirect_uri: Annotated[
        list[str] | None,
        typer.Option(help="where its people are sent back to; on a loopback address, at any port"),
    ] = None,
    secret: WithSecret = False,  # noqa: FBT002
    assertions: WithAssertions = False,  # noqa: FBT002
) -> None:
    """Register an MCP client, so that it needs no registration of its own."""
    chosen = _name(name)

    async def add() -> tuple[str, str | None]:
        async with services_here() as here:
            _require_built_in(here)
            return await RegisteredClients(here).add(
                chosen, redirect_uri or (), confidential=secret, asserts=assertions
            )

    client_id, made = uvloop.run(add())
    if made is None:
        typer.echo(f"client_id      {client_id}")
    else:
        _show(client_id, made)


@app.command("add-backend")
def add_backend(
    name: Annotated[str, typer.Argument(help="what the trail calls it")],
    audience: Annotated[
        list[str] | None,
        typer.Option(help="an audience of the external issuer's tokens that this back end may exchange"),
    ] = None,
) -> None:
    """Register a trusted back end, which may exchange its users' tokens; its secret is printed this once."""
    chosen = _name(name)

    async def add() -> tuple[str, str]:
        async with services_here() as here:
            external = here.settings.gateway.issuer is not None
            if external and not audience:
                raise SettingsInvalid(
                    "Name at least one --audience: that of the tokens which the issuer makes for this back end."
                )
            if audience and not external:
                raise SettingsInvalid(
                    "--audience is for tokens of an external issuer, and BYLINE_GATEWAY__ISSUER__ISSUER names none."
                )
            return await RegisteredClients(here).add_backend(chosen, audience or ())

    _show(*uvloop.run(add()))


@app.command("list")
def list_clients() -> None:
    """Show what administrators registered: id, name, kind, and where it sends people or whose tokens it brings."""

    async def find() -> list[RegisteredClient]:
        async with services_here() as here:
            return await RegisteredClients(here).all()

    rows = [(one.client_id, one.client_name, *_described(one)) for one in uvloop.run(find())]
    print_columns(rows, otherwise="No administrator registered a client.")


@app.command("remove")
def remove_client(
    client_id: Annotated[str, typer.Argument(help="as `byline clients list` shows it")],
) -> None:
    """Forget a client or back end; every token that it got is refused from now on."""

    async def remove() -> bool:
        async with services_here() as here:
            removed = await RegisteredClients(here).remove(client_id)
            if removed:
                await Consents(here.database).end_of_client(client_id)
            return removed

    if not uvloop.run(remove()):
        raise SettingsInvalid(
            f"No administrator registered a client '{client_id}'. `byline clients list` shows those there are."
        )
    typer.echo(f"{client_id} is gone, and so are its tokens.")


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 100:
        raise SettingsInvalid("Give it a name of 1 to 100 printable characters.")
    return text.strip()


def _require_built_in(here: Services) -> None:
    issuer = here.settings.gateway.issuer
    if issuer is not None:
        raise SettingsInvalid(f"MCP clients sign people in at {issuer.issuer}: register the client there.")


def _described(client: RegisteredClient) -> tuple[str, str]:
    if client.backend is not None:
        return "back end", " ".join(client.backend.audiences)
    kind = "public" if client.token_endpoint_auth_method == "none" else "confidential"
    return kind, " ".join(map(str, client.redirect_uris or ("assertions",)))


def _show(client_id: str, secret: str) -> None:
    typer.echo("The secret is not shown again:", err=True)
    typer.echo(f"client_id      {client_id}\nclient_secret  {secret}")
