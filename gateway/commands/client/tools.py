"""`byline tools`: lists the tools, and shows the description and arguments of one."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from gateway.client.api_documents import ToolDocument
from gateway.client.command_errors import CommandFailed
from gateway.client.parse_arguments import describe_schema
from gateway.terminal.api_client import JsonOption, open_gateway, print_json
from gateway.terminal.columns import print_columns
from gateway.terminal.safe_text import escape_text


def complete_tool_names(incomplete: str) -> list[str]:
    """Return the names of tools that begin with `incomplete`, for shell completion.

    Returns none if the gateway cannot be reached.
    """
    try:
        with open_gateway() as gateway_client:
            tool_names = [str(tool_item["name"]) for tool_item in gateway_client.list_items("tools")]
    except (CommandFailed, ValidationError):
        return []
    return [tool_name for tool_name in tool_names if tool_name.startswith(incomplete)]


ToolNameArgument = Annotated[str, typer.Argument(help="a tool's name", autocompletion=complete_tool_names)]


class _ToolCommandGroup(TyperGroup):
    """Accepts a tool's name in place of a command's: `byline tools look_up_account`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ToolCommandGroup, invoke_without_command=True)


@app.callback()
def show_tools(command_context: typer.Context, *, should_print_json: JsonOption = False) -> None:
    """List the tools that you may call, or show one of them."""
    if command_context.invoked_subcommand is None:
        list_tools(should_print_json=should_print_json)


@app.command("list")
def list_tools(*, should_print_json: JsonOption = False) -> None:
    """List the tools that you may call; `list` may be omitted."""
    with open_gateway() as gateway_client:
        tool_items = gateway_client.list_items("tools")
    if should_print_json:
        print_json({"items": tool_items})
        return
    tool_documents = [ToolDocument.model_validate(tool_item) for tool_item in tool_items]
    print_columns(
        [(tool_document.name, tool_document.title) for tool_document in tool_documents],
        empty_message="There is no tool that you may call.",
    )


@app.command("show")
def show_tool(name: ToolNameArgument, *, should_print_json: JsonOption = False) -> None:
    """Show a tool's description and arguments; `show` may be omitted."""
    with open_gateway() as gateway_client:
        tool_item = gateway_client.get_document("tools", name)
    if should_print_json:
        print_json(tool_item)
    else:
        _print_tool(ToolDocument.model_validate(tool_item))


@app.command("check")
def check_tool(name: ToolNameArgument, *, should_print_json: JsonOption = False) -> None:
    """Check, without a call, whether a tool would wait for you to sign in, and where; exits with 3 if so."""
    with open_gateway() as gateway_client:
        readiness_item = gateway_client.get_document("tools", name, "readiness")
    if should_print_json:
        print_json(readiness_item)
    else:
        for connection_item in readiness_item["connections"]:
            typer.echo(escape_text(connection_item["detail"]))
        typer.echo(
            f"Connect at {escape_text(readiness_item['url'])}"
            if readiness_item["url"]
            else "A call would wait for no sign-in."
        )
    if readiness_item["would_wait"]:
        raise typer.Exit(3)


def _print_tool(tool_document: ToolDocument) -> None:
    typer.echo(f"{tool_document.name}: {escape_text(tool_document.title)}\n")
    for description_line in tool_document.description.splitlines():
        typer.echo(escape_text(description_line))
    input_schema, required_names = tool_document.input_schema, tool_document.input_schema.get("required", ())
    typer.echo("\nTakes")
    print_columns(
        [
            (
                f"  {argument_name}",
                describe_schema(argument_schema, input_schema),
                _describe_presence(argument_schema, is_required=argument_name in required_names),
                argument_schema.get("description", ""),
            )
            for argument_name, argument_schema in input_schema.get("properties", {}).items()
        ],
        empty_message="  nothing",
    )
    if tool_document.connections:
        typer.echo(
            "\nSigns in to: "
            f"{escape_text(', '.join(used_connection.name for used_connection in tool_document.connections))}"
        )
    argument_words = "".join(f" --arg {argument_name}=…" for argument_name in required_names)
    typer.echo(f"\nCall it with: byline call {tool_document.name}{escape_text(argument_words)}")


def _describe_presence(argument_schema: dict[str, Any], *, is_required: bool) -> str:
    if is_required:
        return "required"
    return (
        f"otherwise {argument_schema['default']}"
        if argument_schema.get("default") is not None
        else "may be left out"
    )
