"""`byline login`, `logout` and `whoami`: set and show as whom the other commands act, and at which gateway."""

import webbrowser
from typing import Annotated

import typer

from gateway.client.api import Gateway
from gateway.client.credentials import PersonalSignIn, revoke
from gateway.client.failures import Refused, WrongUse
from gateway.client.settings import ClientSettings, origin
from gateway.client.stored_tokens import StoredTokens
from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_address, gateway_here, print_json
from gateway.commands.plain import plain


def login(
    url: Annotated[
        str | None, typer.Argument(help="the gateway's address; later commands use it too")
    ] = None,
    *,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="open a browser, or only print the link")
    ] = True,
) -> None:
    """Sign in with a browser, so that other commands act in your name."""
    # Only this command needs the OAuth discovery, which takes long to load.
    from gateway.client.sign_in import sign_in  # noqa: PLC0415

    settings = ClientSettings()
    gateway = gateway_address(settings) if url is None else _origin(url)
    stored = StoredTokens(gateway)

    def show(address: str) -> None:
        typer.echo(f"Sign in at:\n\n  {plain(address)}\n", err=True)
        if open_browser:
            webbrowser.open(address)

    sign_in(gateway, stored, client_id=settings.client_id, show=show)
    with Gateway(gateway, PersonalSignIn(stored)) as signed_in:
        me = signed_in.get("me")
    typer.echo(f"You are {plain(me['principal']['name'])} at {gateway}.")
    if settings.token is not None:
        typer.echo("BYLINE_TOKEN is set: commands use that and not this sign-in.", err=True)


def logout() -> None:
    """End the sign-in of this computer, here and at the sign-in service."""
    address = gateway_address(ClientSettings())
    stored = StoredTokens(address)
    with stored.held():
        kept = stored.read()
        stored.write(kept.model_copy(update={"sign_in": None}))
    if kept.sign_in is None:
        raise Refused(f"Nobody is signed in at {address}.")
    ended = revoke(kept.sign_in)
    there = "" if ended else " The sign-in service could not be told; the tokens end by themselves."
    typer.echo(f"You are signed out of {address}.{there}")


def whoami(*, as_json: AsJson = False) -> None:
    """Show as whom commands act, and at which gateway."""
    with gateway_here() as gateway:
        me = gateway.get("me")
    if as_json:
        print_json({"gateway": gateway.url, **me})
        return
    principal, roles = me["principal"], " ".join(me["roles"])
    print_columns(
        [
            ("name", principal["name"]),
            ("kind", principal["kind"]),
            ("subject", f"{principal['subject']} at {principal['issuer']}"),
            ("roles", roles or "none"),
            ("gateway", gateway.url),
        ],
        otherwise="",
    )


def _origin(url: str) -> str:
    try:
        return origin(url)
    except ValueError as error:
        raise WrongUse(str(error)) from error
