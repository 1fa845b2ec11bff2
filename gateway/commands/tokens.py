"""`byline tokens`: manages API tokens that act as you, for machines. A token is shown once, when it is made."""

from datetime import datetime
from typing import Annotated, Any

import typer

from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_here, print_json
from gateway.commands.plain import plain
from gateway.commands.tools import tool_names

app = typer.Typer(help="API tokens that act as you, for machines.", no_args_is_help=True)


@app.command("list")
def list_tokens(*, as_json: AsJson = False) -> None:
    """List your API tokens, without their secrets."""
    with gateway_here() as gateway:
        found = gateway.items("tokens")
    if as_json:
        print_json({"items": found})
        return
    print_columns(
        [
            (each["id"], each["name"], each["state"], f"until {_day(each['expires_at'])}", _reach(each))
            for each in found
        ],
        otherwise="You have no API token.",
    )


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="what you know it again by")],
    tool: Annotated[
        list[str] | None,
        typer.Option(
            help="a tool that it is good for; may be repeated; otherwise all", autocompletion=tool_names
        ),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="how many days it lives; otherwise 90")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make an API token that acts as you, and print it this once."""
    wanted = {"name": name, "tools": tool or None, "expires_in_days": days}
    with gateway_here() as gateway:
        made = gateway.post("tokens", body={key: value for key, value in wanted.items() if value is not None})
    if as_json:
        print_json(made)
        return
    typer.echo(plain(made["token"]))
    until = _day(made["expires_at"])
    typer.echo(f"It acts as you until {until}. Keep it secret: it is not shown again.", err=True)


@app.command()
def revoke(token: Annotated[str, typer.Argument(help="a token's id")]) -> None:
    """End an API token at once."""
    with gateway_here() as gateway:
        gateway.delete("tokens", token)
    typer.echo(f"Token {plain(token)} is revoked.")


def _day(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d}"


def _reach(token: dict[str, Any]) -> str:
    return "every tool" if token["tools"] is None else " ".join(token["tools"])
