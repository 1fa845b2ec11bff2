"""`byline connections`: which systems tools act on in your name, and what you granted on each."""

from typing import Annotated

import typer

from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_here, print_json
from gateway.commands.plain import plain

app = typer.Typer(help="Your accounts at other systems, which tools use.", no_args_is_help=True)
secret = typer.Typer(help="The secrets of connections' clients in the vault.", no_args_is_help=True)
app.add_typer(secret, name="secret")

Name = Annotated[str, typer.Argument(help="a connection's name")]


@app.command("list")
def list_connections(*, as_json: AsJson = False) -> None:
    """List every connection, with what you granted on it."""
    with gateway_here() as gateway:
        found = gateway.items("connections")
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (each["name"], each["title"], each["mode"], *_told(each["mode"], each["grant"])) for each in found
    ]
    print_columns(rows, otherwise="No connection is declared.")


@app.command()
def disconnect(connection: Name) -> None:
    """Give up your grant: it is forgotten here and revoked there; the next tool that needs it asks again."""
    with gateway_here() as gateway:
        gateway.delete("connections", connection, "grant")
    typer.echo(f"Your grant on {plain(connection)} is gone.")


@app.command("test")
def test_connection(name: Name) -> None:
    """Try a connection's sign-in against its provider and say what is wrong (administrators, where Byline runs)."""
    from gateway.commands.connection_trial import try_connection

    if not try_connection(name):
        raise typer.Exit(1)


@secret.command("set")
def set_secret(name: Name) -> None:
    """Seal the secret of a connection's client, read from standard input (administrators, where Byline runs)."""
    from gateway.commands.connection_secrets import put_secret

    put_secret(name)


@secret.command("remove")
def remove_secret(name: Name) -> None:
    """Take the secret of a connection's client out of the vault (administrators, where Byline runs)."""
    from gateway.commands.connection_secrets import remove_secret

    remove_secret(name)


def _told(mode: str, grant: dict[str, object] | None) -> tuple[object, ...]:
    if grant is None:
        return ("one account for everybody" if mode == "shared" else "not connected", "", "")
    scopes = grant["scopes"]
    words = " ".join(map(str, scopes)) if isinstance(scopes, list) else ""
    return (grant["account"] or "connected", f"since {str(grant['since'])[:10]}", words)
