"""The command line `byline`: assembles the commands and reports how they ended. The work is in their modules."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from typer.core import TyperGroup
from typing_extensions import override

from engine.errors import BylineError
from gateway.client.command_errors import CommandFailed
from gateway.commands.admin import processes
from gateway.commands.client import call, connections, login, runs, schedules, tokens, tools
from gateway.dev import new
from gateway.terminal.safe_text import escape_text

_TOOL_COMMANDS_PANEL = "Work with tools"
_ADMIN_COMMANDS_PANEL = "Run and administer"
_SETTINGS_CLASS_NAMES = frozenset({"Settings", "ClientSettings"})


class _LazyGroup(TyperGroup):
    """A group of commands whose module is imported on first use.

    These commands load all of Byline, which takes long, so other commands do not import them.
    """

    @override
    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        loaded_group = typer.main.get_group(import_module(f"gateway.commands.admin.{self.name}").app)
        loaded_group.name, loaded_group.help = self.name, self.help
        return loaded_group.make_context(info_name, args, parent, **extra)


def build_commands() -> typer.Typer:
    """Build the Typer application with all commands."""
    root_app = typer.Typer(
        name="byline",
        help="Durable composite MCP tools in which every action carries a name.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    _add_tool_commands(root_app)
    _add_admin_commands(root_app)
    return root_app


def main() -> None:
    """Run a command. An expected failure is printed in one line, and wrong settings exit with 2."""
    try:
        build_commands()()
    except ValidationError as error:
        if error.title not in _SETTINGS_CLASS_NAMES:
            typer.echo(
                "The gateway answered in words that this release does not know. Are both up to date?",
                err=True,
            )
            sys.exit(1)
        for problem in error.errors():
            problem_text = (
                "there is no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
            )
            typer.echo(
                f"{_to_variable_name(problem['loc'])}: {problem_text}" if problem["loc"] else problem_text,
                err=True,
            )
        sys.exit(2)
    except SettingsError as error:
        typer.echo(
            f"{_find_invalid_variable(error, os.environ)}: write JSON, since this setting is a list or a group",
            err=True,
        )
        sys.exit(2)
    except CommandFailed as error:
        # The message may contain text of a server.
        typer.echo(escape_text(error), err=True)
        sys.exit(error.exit_code)
    except BylineError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)


def _add_tool_commands(root_app: typer.Typer) -> None:
    """Add the commands that talk to a gateway."""
    root_app.command("login", rich_help_panel=_TOOL_COMMANDS_PANEL)(login.log_in)
    root_app.command("logout", rich_help_panel=_TOOL_COMMANDS_PANEL)(login.log_out)
    root_app.command("whoami", rich_help_panel=_TOOL_COMMANDS_PANEL)(login.show_identity)
    root_app.command("call", rich_help_panel=_TOOL_COMMANDS_PANEL)(call.call_tool)
    root_app.add_typer(tools.app, name="tools", rich_help_panel=_TOOL_COMMANDS_PANEL)
    root_app.add_typer(runs.app, name="runs", rich_help_panel=_TOOL_COMMANDS_PANEL)
    root_app.add_typer(schedules.app, name="schedules", rich_help_panel=_TOOL_COMMANDS_PANEL)
    root_app.add_typer(connections.app, name="connections", rich_help_panel=_TOOL_COMMANDS_PANEL)
    root_app.add_typer(tokens.app, name="tokens", rich_help_panel=_TOOL_COMMANDS_PANEL)


def _add_admin_commands(root_app: typer.Typer) -> None:
    """Add the commands that run or administer Byline. A group's name is that of its module."""
    single_commands: tuple[Callable[..., object], ...] = (
        processes.dev,
        processes.gateway,
        processes.worker,
        processes.migrate,
        processes.ready,
        processes.version,
        new.new,
    )
    group_helps = {
        "audit": "Show lines of the audit trail, or verify it.",
        "keys": "Manage the keys that sign identities, tokens and the audit trail.",
        "vault": "Manage the keys that seal every secret.",
        "people": "Manage who may act, and the people of the built-in sign-in.",
        "services": "Manage services: machines that call tools in their own name.",
        "clients": "Register and remove MCP clients and trusted back ends.",
        "grants": "List and remove what people granted.",
    }
    for command in single_commands:
        root_app.command(rich_help_panel=_ADMIN_COMMANDS_PANEL)(command)
    for group_name, group_help in group_helps.items():
        root_app.add_typer(
            typer.Typer(cls=_LazyGroup),
            name=group_name,
            help=group_help,
            rich_help_panel=_ADMIN_COMMANDS_PANEL,
        )


def _find_invalid_variable(settings_error: SettingsError, environment: Mapping[str, str]) -> str:
    """Return the variable that holds no JSON.

    The error names the field only in its message, and only its cause has the text.
    """
    field_match = re.search(r'field "(\w+)"', str(settings_error))
    if field_match is None:
        return str(settings_error)
    group_variable = _to_variable_name((field_match[1],))
    invalid_text = getattr(settings_error.__cause__, "doc", None)
    matching_names = (
        variable_name
        for variable_name, variable_value in environment.items()
        if variable_name.startswith(f"{group_variable}__") and variable_value == invalid_text
    )
    return next(matching_names, group_variable)


def _to_variable_name(error_location: tuple[int | str, ...]) -> str:
    return (
        "__".join(
            [
                "BYLINE_" + str(error_location[0]).upper(),
                *(str(location_part).upper() for location_part in error_location[1:]),
            ]
        )
        if error_location
        else "BYLINE"
    )


if __name__ == "__main__":
    main()
