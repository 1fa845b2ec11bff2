"""`byline tools`: which tools there are, and what one of them takes."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from gateway.client.answers import Tool
from gateway.client.arguments import kind_of
from gateway.client.failures import CommandFailed
from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_here, print_json
from gateway.commands.plain import plain


def tool_names(incomplete: str) -> list[str]:
    """The names of tools that begin so, for the shell to complete; none where the gateway cannot be asked."""
    try:
        with gateway_here() as gateway:
            names = [str(tool["name"]) for tool in gateway.items("tools")]
    except (CommandFailed, ValidationError):
        return []
    return [name for name in names if name.startswith(incomplete)]


ToolName = Annotated[str, typer.Argument(help="a tool's name", autocompletion=tool_names)]


def tools(
    name: Annotated[
        str | None, typer.Argument(help="show this tool whole", autocompletion=tool_names)
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the tools that you may call, or show what one of them takes."""
    with gateway_here() as gateway:
        found: Any = {"items": gateway.items("tools")} if name is None else gateway.get("tools", name)
    if as_json:
        print_json(found)
    elif name is None:
        known = [Tool.model_validate(item) for item in found["items"]]
        print_columns(
            [(tool.name, tool.title) for tool in known], otherwise="There is no tool that you may call."
        )
    else:
        _show(Tool.model_validate(found))


def _show(tool: Tool) -> None:
    typer.echo(f"{tool.name}: {plain(tool.title)}\n")
    for line in tool.description.splitlines():
        typer.echo(plain(line))
    schema, required = tool.input_schema, tool.input_schema.get("required", ())
    typer.echo("\nTakes")
    print_columns(
        [
            (
                f"  {name}",
                kind_of(each, schema),
                _presence(each, needed=name in required),
                each.get("description", ""),
            )
            for name, each in schema.get("properties", {}).items()
        ],
        otherwise="  nothing",
    )
    if tool.connections:
        typer.echo(f"\nSigns in to: {plain(', '.join(use.name for use in tool.connections))}")
    words = "".join(f" --arg {name}=…" for name in required)
    typer.echo(f"\nCall it with: byline call {tool.name}{plain(words)}")


def _presence(schema: dict[str, Any], *, needed: bool) -> str:
    if needed:
        return "required"
    return f"otherwise {schema['default']}" if schema.get("default") is not None else "may be left out"
