"""`byline clients`: lets an administrator register MCP clients and back ends. A secret is shown once."""

from typing import Annotated

import typer
import uvloop

from engine.errors import SettingsInvalid
from engine.services import Services
from gateway.authorization_server.client_records import ClientRecords
from gateway.authorization_server.consents import ClientConsents
from gateway.authorization_server.registered_clients import RegisteredClient, RegisteredClients
from gateway.terminal.columns import print_columns
from gateway.terminal.services_context import open_command_services
from gateway.terminal.shell_user import read_shell_user

app = typer.Typer(no_args_is_help=True)

SecretOption = Annotated[
    bool, typer.Option("--secret", help="create a client secret, for a client that runs on a server")
]
AssertionsOption = Annotated[
    bool,
    typer.Option(
        "--assertions", help="accept assertions of your identity provider from it; requires --secret"
    ),
]


@app.command("add")
def add_client(
    name: Annotated[str, typer.Argument(help="the name that people and the audit trail see")],
    redirect_uri: Annotated[
        list[str] | None,
        typer.Option(help="a redirect URI of the client; the port of a loopback address is ignored"),
    ] = None,
    is_confidential: SecretOption = False,  # noqa: FBT002
    may_bring_assertions: AssertionsOption = False,  # noqa: FBT002
) -> None:
    """Register an MCP client, which then does not have to register itself."""
    client_name = _check_name(name)

    async def register_client() -> tuple[str, str | None]:
        async with open_command_services() as services:
            _require_built_in_sign_in(services)
            return await _build_registered_clients(services).add_client(
                read_shell_user(),
                client_name,
                redirect_uri or (),
                is_confidential=is_confidential,
                may_assert=may_bring_assertions,
            )

    client_id, client_secret = uvloop.run(register_client())
    if client_secret is None:
        typer.echo(f"client_id      {client_id}")
    else:
        _print_credentials(client_id, client_secret)


@app.command("add-backend")
def add_backend(
    name: Annotated[str, typer.Argument(help="its name in the audit trail")],
    audience: Annotated[
        list[str] | None,
        typer.Option(help="an audience of the external issuer's tokens that this back end may exchange"),
    ] = None,
) -> None:
    """Register a trusted back end, which may exchange its users' tokens; its secret is printed only once."""
    backend_name = _check_name(name)

    async def register_backend() -> tuple[str, str]:
        async with open_command_services() as services:
            has_external_issuer = services.settings.gateway.issuer is not None
            if has_external_issuer and not audience:
                raise SettingsInvalid(
                    "Name at least one --audience: that of the tokens which the issuer makes for this back end."
                )
            if audience and not has_external_issuer:
                raise SettingsInvalid(
                    "--audience is for tokens of an external issuer, and BYLINE_GATEWAY__ISSUER__ISSUER names none."
                )
            return await _build_registered_clients(services).add_backend(
                read_shell_user(), backend_name, audience or ()
            )

    _print_credentials(*uvloop.run(register_backend()))


@app.command("list")
def list_clients() -> None:
    """List the registered clients and back ends: id, name, kind, and redirect URIs or audiences."""

    async def find_clients() -> list[RegisteredClient]:
        async with open_command_services() as services:
            return await _build_registered_clients(services).list_clients()

    client_rows = [
        (registered_client.client_id, registered_client.client_name, *_describe_client(registered_client))
        for registered_client in uvloop.run(find_clients())
    ]
    print_columns(client_rows, empty_message="No administrator registered a client.")


@app.command("remove")
def remove_client(
    client_id: Annotated[str, typer.Argument(help="the id that `byline clients list` shows")],
) -> None:
    """Remove a client or back end; all of its tokens are refused from now on."""

    async def remove_registration() -> bool:
        async with open_command_services() as services:
            is_removed = await _build_registered_clients(services).remove_client(read_shell_user(), client_id)
            if is_removed:
                await ClientConsents(services.database).end_client_consents(client_id)
            return is_removed

    if not uvloop.run(remove_registration()):
        raise SettingsInvalid(
            f"No administrator registered a client '{client_id}'. `byline clients list` shows those there are."
        )
    typer.echo(f"{client_id} is gone, and so are its tokens.")


def _build_registered_clients(services: Services) -> RegisteredClients:
    return RegisteredClients(ClientRecords(services.database, services.vault), services.trail)


def _check_name(client_name: str) -> str:
    if not client_name.strip() or not client_name.isprintable() or len(client_name) > 100:
        raise SettingsInvalid("Give it a name of 1 to 100 printable characters.")
    return client_name.strip()


def _require_built_in_sign_in(services: Services) -> None:
    issuer = services.settings.gateway.issuer
    if issuer is not None:
        raise SettingsInvalid(f"MCP clients sign people in at {issuer.issuer}: register the client there.")


def _describe_client(registered_client: RegisteredClient) -> tuple[str, str]:
    if registered_client.backend is not None:
        return "back end", " ".join(registered_client.backend.audiences)
    client_kind = "public" if registered_client.token_endpoint_auth_method == "none" else "confidential"
    return client_kind, " ".join(map(str, registered_client.redirect_uris or ("assertions",)))


def _print_credentials(client_id: str, client_secret: str) -> None:
    typer.echo("The secret is not shown again:", err=True)
    typer.echo(f"client_id      {client_id}\nclient_secret  {client_secret}")
