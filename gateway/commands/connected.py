"""Opens the gateway that a command calls: that of the environment, or else the one of the last sign-in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gateway.client.api import Gateway
from gateway.client.credentials import ApiToken, PersonalSignIn
from gateway.client.settings import DEFAULT_GATEWAY, ClientSettings
from gateway.client.stored_tokens import StoredTokens, chosen_gateway

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document")]


def gateway_address(settings: ClientSettings) -> str:
    """Return the address of the gateway to call."""
    return settings.url or chosen_gateway() or DEFAULT_GATEWAY


@contextmanager
def gateway_here() -> Iterator[Gateway]:
    """Open the gateway's API as the owner of the API token in the settings, or else as the person who is signed in."""
    settings = ClientSettings()
    address = gateway_address(settings)
    auth = (
        PersonalSignIn(StoredTokens(address))
        if settings.token is None
        else ApiToken(settings.token.get_secret_value())
    )
    with Gateway(address, auth) as gateway:
        yield gateway


def print_json(document: Any) -> None:
    """Print one JSON document to standard output. JSON escapes the control characters in it."""
    typer.echo(json.dumps(document, indent=2))
