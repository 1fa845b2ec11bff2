"""Opens the gateway that a command calls: that of the environment, or else the one of the last sign-in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gateway.client.bearer_auth import ApiTokenAuth, SignInAuth
from gateway.client.credentials_file import CredentialsFile, read_selected_gateway
from gateway.client.gateway_client import GatewayClient
from gateway.client.settings import DEFAULT_GATEWAY_URL, ClientSettings

JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON document")]


def resolve_gateway_url(client_settings: ClientSettings) -> str:
    """Return the address of the gateway to call."""
    return client_settings.url or read_selected_gateway() or DEFAULT_GATEWAY_URL


@contextmanager
def open_gateway() -> Iterator[GatewayClient]:
    """Open the gateway's API as the owner of the API token in the settings, or else as the person who is signed in."""
    client_settings = ClientSettings()
    gateway_url = resolve_gateway_url(client_settings)
    http_auth = (
        SignInAuth(CredentialsFile(gateway_url))
        if client_settings.token is None
        else ApiTokenAuth(client_settings.token.get_secret_value())
    )
    with GatewayClient(gateway_url, http_auth) as gateway_client:
        yield gateway_client


def print_json(json_document: Any) -> None:
    """Print one JSON document to standard output. JSON escapes the control characters in it."""
    typer.echo(json.dumps(json_document, indent=2))
