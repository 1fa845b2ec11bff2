"""`byline connections`: shows the systems on which tools act in your name, and manages your grants on them."""

import time
import webbrowser
from typing import Annotated, Any, Final

import typer

from gateway.client.api import Gateway
from gateway.client.failures import CommandFailed
from gateway.commands.attending import WAITS, OpenLinks, WaitForPeople
from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_here, print_json
from gateway.commands.plain import plain

app = typer.Typer(help="Your accounts at other systems, which tools use.", no_args_is_help=True)
secret = typer.Typer(help="The secrets of connections' clients in the vault.", no_args_is_help=True)
app.add_typer(secret, name="secret")

Name = Annotated[str, typer.Argument(help="a connection's name")]

_LOOK_EVERY_SECONDS: Final = 2.0


@app.command("list")
def list_connections(*, as_json: AsJson = False) -> None:
    """List every connection, with what you granted on it."""
    with gateway_here() as gateway:
        found = gateway.items("connections")
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (each["name"], each["title"], each["mode"], *told)
        for each in found
        for told in [_told(each, account) for account in each["accounts"]] or [_told(each, None)]
    ]
    print_columns(rows, otherwise="No connection is declared.")


@app.command()
def add(
    name: Name, *, as_json: AsJson = False, wait: WaitForPeople = None, open_links: OpenLinks = False
) -> None:
    """Connect an account, the first or another, on a page that opens for you alone."""
    waits = not as_json if wait is None else wait
    with gateway_here() as gateway:
        asked = gateway.post("connections", name, "sign-ins")
        typer.echo(f"{plain(asked['title'])} at:\n\n  {plain(asked['url'])}\n", err=True)
        if open_links and asked["url"].startswith(f"{gateway.url}/"):
            webbrowser.open(asked["url"])
        if waits:
            asked = _answered(gateway, asked)
    if as_json:
        print_json(asked)
    match asked["state"]:
        case "open":
            raise typer.Exit(WAITS)
        case "granted" if not as_json:
            typer.echo(f"An account is connected on {plain(name)}. See it with: byline connections list")
        case "denied":
            raise CommandFailed("You declined. Nothing was connected.")
        case "expired":
            raise CommandFailed(
                f"Nobody signed in in time. Start again: byline connections add {plain(name)}"
            )


@app.command()
def use(
    name: Name,
    account: Annotated[
        str | None, typer.Argument(help="the account to use; without it, what you chose is taken back")
    ] = None,
    *,
    tool: Annotated[str | None, typer.Option(help="choose for this tool alone")] = None,
) -> None:
    """Choose which of your accounts tools use on a connection; runs that have begun to use one keep it."""
    of = "every tool that has no account of its own" if tool is None else plain(tool)
    with gateway_here() as gateway:
        if account is None:
            gateway.delete("connections", name, "choice", tool=tool)
        else:
            gateway.put("connections", name, "choice", body={"account": account, "tool": tool})
    if account is None:
        typer.echo(f"Your choice on {plain(name)} for {of} is taken back.")
    else:
        typer.echo(f"{plain(account)} is used on {plain(name)} by {of} from now on.")


@app.command()
def remove(
    name: Name,
    *,
    account: Annotated[str | None, typer.Option(help="which one, where you have several")] = None,
) -> None:
    """Give up your grant: it is forgotten here and revoked there; the next tool that needs it asks again."""
    with gateway_here() as gateway:
        gateway.delete("connections", name, "grant", account=account)
    typer.echo(f"Your grant on {plain(name)} is gone.")


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


def _answered(gateway: Gateway, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the sign-in once it is answered. Ctrl-C ends the command with exit code 130, and the link stays valid."""
    try:
        while asked["state"] == "open":
            time.sleep(_LOOK_EVERY_SECONDS)
            asked = gateway.get("sign-ins", asked["id"])
    except KeyboardInterrupt:
        typer.echo("\nThe link goes on to be good.", err=True)
        raise typer.Exit(130) from None
    return asked


def _told(connection: dict[str, Any], account: dict[str, Any] | None) -> tuple[str, ...]:
    if account is None:
        shared = connection["mode"] == "shared"
        return ("one account for everybody" if shared else "not connected", "", "", "")
    since = "its sign-in has lapsed" if account["lapsed"] else f"since {str(account['since'])[:10]}"
    used = [
        each["tool"] or "every tool without its own"
        for each in connection["chosen"]
        if each["account"] == account["account"]
    ]
    by = f"used by {', '.join(used)}" if used else ""
    return (account["account"] or "connected", since, " ".join(account["scopes"]), by)
