"""`byline tools`: lists the tools, and shows what one of them takes."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from gateway.client.answers import Tool
from gateway.client.arguments import kind_of
from gateway.client.failures import CommandFailed
from gateway.commands.columns import print_columns
from gateway.commands.connected import AsJson, gateway_here, print_json
from gateway.commands.plain import plain


def tool_names(incomplete: str) -> list[str]:
    """Return the names of tools that begin with `incomplete`, for shell completion.

    Returns none if the gateway cannot be reached.
    """
    try:
        with gateway_here() as gateway:
            names = [str(tool["name"]) for tool in gateway.items("tools")]
    except (CommandFailed, ValidationError):
        return []
    return [name for name in names if name.startswith(incomplete)]


ToolName = Annotated[str, typer.Argument(help="a tool's name", autocompletion=tool_names)]


class _ToolGroup(TyperGroup):
    """Accepts a tool's name in place of a command's: `byline tools look_up_account`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_ToolGroup, invoke_without_command=True)


@app.callback()
def tools(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the tools that you may call, or show what one of them takes."""
    if context.invoked_subcommand is None:
        list_tools(as_json=as_json)


@app.command("list")
def list_tools(*, as_json: AsJson = False) -> None:
    """List the tools that you may call; `list` may be left out."""
    with gateway_here() as gateway:
        found = gateway.items("tools")
    if as_json:
        print_json({"items": found})
        return
    known = [Tool.model_validate(item) for item in found]
    print_columns(
        [(tool.name, tool.title) for tool in known], otherwise="There is no tool that you may call."
    )


@app.command("show")
def show_tool(name: ToolName, *, as_json: AsJson = False) -> None:
    """Show what a tool takes; `show` may be left out."""
    with gateway_here() as gateway:
        found = gateway.get("tools", name)
    if as_json:
        print_json(found)
    else:
        _show(Tool.model_validate(found))


@app.command("check")
def check_tool(name: ToolName, *, as_json: AsJson = False) -> None:
    """Say whether a call of a tool would wait for you to sign in, and where; exits with 3 if so, and starts nothing."""
    with gateway_here() as gateway:
        found = gateway.get("tools", name, "readiness")
    if as_json:
        print_json(found)
    else:
        for each in found["connections"]:
            typer.echo(plain(each["detail"]))
        typer.echo(
            f"Connect at {plain(found['url'])}" if found["url"] else "A call would wait for no sign-in."
        )
    if found["would_wait"]:
        raise typer.Exit(3)


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
