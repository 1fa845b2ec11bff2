"""`byline connections`: shows the systems on which tools act in your name, and manages your grants on them."""

import time
import webbrowser
from typing import Annotated, Any, Final

import typer

from gateway.client.command_errors import CommandFailed
from gateway.client.gateway_client import GatewayClient
from gateway.terminal.api_client import JsonOption, open_gateway, print_json
from gateway.terminal.columns import print_columns
from gateway.terminal.follow_run import WAITING_EXIT_CODE, OpenLinksOption, WaitOption
from gateway.terminal.safe_text import escape_text

app = typer.Typer(help="Manage your accounts at other systems, which tools use.", no_args_is_help=True)
secret_app = typer.Typer(help="Manage the client secrets of connections in the vault.", no_args_is_help=True)
app.add_typer(secret_app, name="secret")

ConnectionNameArgument = Annotated[str, typer.Argument(help="a connection's name")]

_POLL_INTERVAL_SECONDS: Final = 2.0


@app.command("list")
def list_connections(*, should_print_json: JsonOption = False) -> None:
    """List every connection, with the accounts that you connected."""
    with open_gateway() as gateway_client:
        connection_items = gateway_client.list_items("connections")
    if should_print_json:
        print_json({"items": connection_items})
        return
    account_rows = [
        (connection_item["name"], connection_item["title"], connection_item["mode"], *account_columns)
        for connection_item in connection_items
        for account_columns in [
            _describe_account(connection_item, account_item) for account_item in connection_item["accounts"]
        ]
        or [_describe_account(connection_item, None)]
    ]
    print_columns(account_rows, empty_message="No connection is declared.")


@app.command()
def add(
    name: ConnectionNameArgument,
    *,
    should_print_json: JsonOption = False,
    wait_preference: WaitOption = None,
    should_open_links: OpenLinksOption = False,
) -> None:
    """Connect an account, the first or another, on a page that opens only for you."""
    should_wait = not should_print_json if wait_preference is None else wait_preference
    with open_gateway() as gateway_client:
        sign_in_document = gateway_client.post_document("connections", name, "sign-ins")
        typer.echo(
            f"{escape_text(sign_in_document['title'])} at:\n\n  {escape_text(sign_in_document['url'])}\n",
            err=True,
        )
        if should_open_links and sign_in_document["url"].startswith(f"{gateway_client.gateway_url}/"):
            webbrowser.open(sign_in_document["url"])
        if should_wait:
            sign_in_document = _wait_for_sign_in(gateway_client, sign_in_document)
    if should_print_json:
        print_json(sign_in_document)
    match sign_in_document["state"]:
        case "open":
            raise typer.Exit(WAITING_EXIT_CODE)
        case "granted" if not should_print_json:
            typer.echo(
                f"An account is connected on {escape_text(name)}. See it with: byline connections list"
            )
        case "denied":
            raise CommandFailed("You declined. Nothing was connected.")
        case "expired":
            raise CommandFailed(
                f"Nobody signed in in time. Start again: byline connections add {escape_text(name)}"
            )


@app.command()
def use(
    name: ConnectionNameArgument,
    account: Annotated[
        str | None, typer.Argument(help="the account to use; if omitted, your choice is removed")
    ] = None,
    *,
    tool: Annotated[str | None, typer.Option(help="choose for this tool only")] = None,
) -> None:
    """Choose which of your accounts tools use on a connection; runs that already use one keep it."""
    tool_description = "every tool that has no account of its own" if tool is None else escape_text(tool)
    with open_gateway() as gateway_client:
        if account is None:
            gateway_client.delete_resource("connections", name, "choice", tool=tool)
        else:
            gateway_client.put_document(
                "connections", name, "choice", request_body={"account": account, "tool": tool}
            )
    if account is None:
        typer.echo(f"Your choice on {escape_text(name)} for {tool_description} is taken back.")
    else:
        typer.echo(
            f"{escape_text(account)} is used on {escape_text(name)} by {tool_description} from now on."
        )


@app.command()
def remove(
    name: ConnectionNameArgument,
    *,
    account: Annotated[str | None, typer.Option(help="the account, if you have several")] = None,
) -> None:
    """Delete your grant and revoke it upstream; the next tool that needs it asks for a sign-in again."""
    with open_gateway() as gateway_client:
        gateway_client.delete_resource("connections", name, "grant", account=account)
    typer.echo(f"Your grant on {escape_text(name)} is gone.")


@app.command("test")
def test_connection(name: ConnectionNameArgument) -> None:
    """Check a connection's sign-in with its provider and report what is wrong (administrators, where Byline runs)."""
    from gateway.commands.admin.connection_check import check_connection

    if not check_connection(name):
        raise typer.Exit(1)


@secret_app.command("set")
def set_secret(name: ConnectionNameArgument) -> None:
    """Store a connection's client secret, read from standard input (administrators, where Byline runs)."""
    from gateway.commands.admin.connection_secrets import store_client_secret

    store_client_secret(name)


@secret_app.command("remove")
def remove_secret(name: ConnectionNameArgument) -> None:
    """Remove a connection's client secret from the vault (administrators, where Byline runs)."""
    from gateway.commands.admin.connection_secrets import remove_client_secret

    remove_client_secret(name)


def _wait_for_sign_in(gateway_client: GatewayClient, sign_in_document: dict[str, Any]) -> dict[str, Any]:
    """Return the sign-in once it is answered. Ctrl-C ends the command with exit code 130, and the link stays valid."""
    try:
        while sign_in_document["state"] == "open":
            time.sleep(_POLL_INTERVAL_SECONDS)
            sign_in_document = gateway_client.get_document("sign-ins", sign_in_document["id"])
    except KeyboardInterrupt:
        typer.echo("\nThe link goes on to be good.", err=True)
        raise typer.Exit(130) from None
    return sign_in_document


def _describe_account(
    connection_item: dict[str, Any], account_item: dict[str, Any] | None
) -> tuple[str, ...]:
    if account_item is None:
        is_shared = connection_item["mode"] == "shared"
        return ("one account for everybody" if is_shared else "not connected", "", "", "")
    since_text = (
        "its sign-in has lapsed" if account_item["lapsed"] else f"since {str(account_item['since'])[:10]}"
    )
    using_tools = [
        account_choice["tool"] or "every tool without its own"
        for account_choice in connection_item["chosen"]
        if account_choice["account"] == account_item["account"]
    ]
    usage_text = f"used by {', '.join(using_tools)}" if using_tools else ""
    return (account_item["account"] or "connected", since_text, " ".join(account_item["scopes"]), usage_text)
