"""The gateway that a command talks to: the one that the environment names, or the one that was signed in to last."""

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
    """The address of the gateway to talk to."""
    return settings.url or chosen_gateway() or DEFAULT_GATEWAY


@contextmanager
def gateway_here() -> Iterator[Gateway]:
    """The gateway, called as whoever is signed in or as the owner of the API token."""
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
    """One JSON document on standard output; its escapes also keep a terminal from obeying what it holds."""
    typer.echo(json.dumps(document, indent=2))
