"""`byline tokens`: manages API tokens that act as you, for machines. A token is shown once, when it is made."""

from datetime import datetime
from typing import Annotated, Any

import typer

from gateway.commands.client.tools import complete_tool_names
from gateway.terminal.api_client import JsonOption, open_gateway, print_json
from gateway.terminal.columns import print_columns
from gateway.terminal.safe_text import escape_text

app = typer.Typer(help="Manage API tokens, with which machines act as you.", no_args_is_help=True)


@app.command("list")
def list_tokens(*, should_print_json: JsonOption = False) -> None:
    """List your API tokens, without their secrets."""
    with open_gateway() as gateway_client:
        token_items = gateway_client.list_items("tokens")
    if should_print_json:
        print_json({"items": token_items})
        return
    print_columns(
        [
            (
                token_item["id"],
                token_item["name"],
                token_item["state"],
                f"until {_format_day(token_item['expires_at'])}",
                _describe_tools(token_item),
            )
            for token_item in token_items
        ],
        empty_message="You have no API token.",
    )


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="a name by which you recognize it")],
    tool: Annotated[
        list[str] | None,
        typer.Option(
            help="a tool that it may call; may be repeated; by default all",
            autocompletion=complete_tool_names,
        ),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="how many days it is valid; by default 90")] = None,
    *,
    should_print_json: JsonOption = False,
) -> None:
    """Create an API token that acts as you; it is printed only once."""
    token_fields = {"name": name, "tools": tool or None, "expires_in_days": days}
    with open_gateway() as gateway_client:
        new_token = gateway_client.post_document(
            "tokens",
            request_body={
                field_name: field_value
                for field_name, field_value in token_fields.items()
                if field_value is not None
            },
        )
    if should_print_json:
        print_json(new_token)
        return
    typer.echo(escape_text(new_token["token"]))
    expiry_day = _format_day(new_token["expires_at"])
    typer.echo(f"It acts as you until {expiry_day}. Keep it secret: it is not shown again.", err=True)


@app.command()
def revoke(token: Annotated[str, typer.Argument(help="a token's id")]) -> None:
    """Revoke an API token at once."""
    with open_gateway() as gateway_client:
        gateway_client.delete_resource("tokens", token)
    typer.echo(f"Token {escape_text(token)} is revoked.")


def _format_day(instant_text: str) -> str:
    return f"{datetime.fromisoformat(instant_text):%Y-%m-%d}"


def _describe_tools(token_item: dict[str, Any]) -> str:
    return "every tool" if token_item["tools"] is None else " ".join(token_item["tools"])
