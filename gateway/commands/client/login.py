"""`byline login`, `logout` and `whoami`: set and show as whom the other commands act, and at which gateway."""

import webbrowser
from typing import Annotated

import typer

from gateway.client.bearer_auth import SignInAuth, revoke_sign_in
from gateway.client.command_errors import AccessRefused, UsageInvalid
from gateway.client.credentials_file import CredentialsFile
from gateway.client.gateway_client import GatewayClient
from gateway.client.settings import ClientSettings, parse_origin
from gateway.terminal.api_client import JsonOption, open_gateway, print_json, resolve_gateway_url
from gateway.terminal.columns import print_columns
from gateway.terminal.safe_text import escape_text


def log_in(
    url: Annotated[
        str | None, typer.Argument(help="the address of the gateway, which later commands use too")
    ] = None,
    *,
    should_open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="open the link in a browser, or only print it")
    ] = True,
) -> None:
    """Sign in with a browser, so that other commands act in your name."""
    # Only this command needs the OAuth discovery, which takes long to load.
    from gateway.client.sign_in import sign_in_person  # noqa: PLC0415

    client_settings = ClientSettings()
    gateway_url = resolve_gateway_url(client_settings) if url is None else _parse_origin(url)
    credentials_file = CredentialsFile(gateway_url)

    def show_url(sign_in_url: str) -> None:
        typer.echo(f"Sign in at:\n\n  {escape_text(sign_in_url)}\n", err=True)
        if should_open_browser:
            webbrowser.open(sign_in_url)

    sign_in_person(gateway_url, credentials_file, client_id=client_settings.client_id, show_url=show_url)
    with GatewayClient(gateway_url, SignInAuth(credentials_file)) as gateway_client:
        identity_item = gateway_client.get_document("me")
    typer.echo(f"You are {escape_text(identity_item['principal']['name'])} at {gateway_url}.")
    if client_settings.token is not None:
        typer.echo("BYLINE_TOKEN is set: commands use that and not this sign-in.", err=True)


def log_out() -> None:
    """Sign out on this computer, and revoke its tokens at the sign-in service."""
    gateway_url = resolve_gateway_url(ClientSettings())
    credentials_file = CredentialsFile(gateway_url)
    with credentials_file.lock_file():
        stored_credentials = credentials_file.read_credentials()
        credentials_file.write_credentials(stored_credentials.model_copy(update={"sign_in": None}))
    if stored_credentials.sign_in is None:
        raise AccessRefused(f"Nobody is signed in at {gateway_url}.")
    is_revoked = revoke_sign_in(stored_credentials.sign_in)
    revocation_note = (
        "" if is_revoked else " The sign-in service could not be told; the tokens end by themselves."
    )
    typer.echo(f"You are signed out of {gateway_url}.{revocation_note}")


def show_identity(*, should_print_json: JsonOption = False) -> None:
    """Show who commands act as, and which gateway they call."""
    with open_gateway() as gateway_client:
        identity_item = gateway_client.get_document("me")
    if should_print_json:
        print_json({"gateway": gateway_client.gateway_url, **identity_item})
        return
    principal, role_names = identity_item["principal"], " ".join(identity_item["roles"])
    print_columns(
        [
            ("name", principal["name"]),
            ("kind", principal["kind"]),
            ("subject", f"{principal['subject']} at {principal['issuer']}"),
            ("roles", role_names or "none"),
            ("gateway", gateway_client.gateway_url),
        ],
        empty_message="",
    )


def _parse_origin(gateway_url: str) -> str:
    try:
        return parse_origin(gateway_url)
    except ValueError as error:
        raise UsageInvalid(str(error)) from error
