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
from gateway.client.failures import CommandFailed
from gateway.commands import call, connections, new, processes, runs, schedules, signing_in, tokens, tools
from gateway.commands.plain import plain

_WORK = "Work with tools"
_RUN = "Run and administer"
_SETTINGS = frozenset({"Settings", "ClientSettings"})


class _Later(TyperGroup):
    """A group of commands whose module is imported on first use.

    These commands load all of Byline, which takes long, so other commands do not import them.
    """

    @override
    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        group = typer.main.get_group(import_module(f"gateway.commands.{self.name}").app)
        group.name, group.help = self.name, self.help
        return group.make_context(info_name, args, parent, **extra)


def commands() -> typer.Typer:
    """Build the Typer application with all commands."""
    app = typer.Typer(
        name="byline",
        help="Durable composite MCP tools in which every action carries a name.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    _work_with_tools(app)
    _run_and_administer(app)
    return app


def main() -> None:
    """Run a command. An expected failure is printed in one line, and wrong settings exit with 2."""
    try:
        commands()()
    except ValidationError as error:
        if error.title not in _SETTINGS:
            typer.echo(
                "The gateway answered in words that this release does not know. Are both up to date?",
                err=True,
            )
            sys.exit(1)
        for problem in error.errors():
            what = "there is no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
            typer.echo(f"{_variable(problem['loc'])}: {what}" if problem["loc"] else what, err=True)
        sys.exit(2)
    except SettingsError as error:
        typer.echo(
            f"{_unread(error, os.environ)}: write JSON, since this setting is a list or a group", err=True
        )
        sys.exit(2)
    except CommandFailed as error:
        # The message may contain text of a server.
        typer.echo(plain(error), err=True)
        sys.exit(error.exit_code)
    except BylineError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)


def _work_with_tools(app: typer.Typer) -> None:
    """Add the commands that talk to a gateway."""
    app.command("login", rich_help_panel=_WORK)(signing_in.login)
    app.command("logout", rich_help_panel=_WORK)(signing_in.logout)
    app.command("whoami", rich_help_panel=_WORK)(signing_in.whoami)
    app.command("call", rich_help_panel=_WORK)(call.call)
    app.add_typer(tools.app, name="tools", rich_help_panel=_WORK)
    app.add_typer(runs.app, name="runs", rich_help_panel=_WORK)
    app.add_typer(schedules.app, name="schedules", rich_help_panel=_WORK)
    app.add_typer(connections.app, name="connections", rich_help_panel=_WORK)
    app.add_typer(tokens.app, name="tokens", rich_help_panel=_WORK)


def _run_and_administer(app: typer.Typer) -> None:
    """Add the commands that run or administer Byline. A group's name is that of its module."""
    single: tuple[Callable[..., object], ...] = (
        processes.dev,
        processes.gateway,
        processes.worker,
        processes.migrate,
        processes.ready,
        processes.version,
        new.new,
    )
    groups = {
        "audit": "Ask the trail, or prove it.",
        "keys": "The keys that sign identities, tokens and the trail.",
        "vault": "The master keys that seal every secret.",
        "people": "The people of the built-in sign-in, and everybody who has acted.",
        "services": "Machines that call in their own name.",
        "clients": "MCP clients and back ends that an administrator registers.",
        "grants": "What people granted, and its removal.",
    }
    for command in single:
        app.command(rich_help_panel=_RUN)(command)
    for name, about in groups.items():
        app.add_typer(typer.Typer(cls=_Later), name=name, help=about, rich_help_panel=_RUN)


def _unread(error: SettingsError, environment: Mapping[str, str]) -> str:
    """Return the variable that holds no JSON.

    The error names the field only in its message, and only its cause has the text.
    """
    field = re.search(r'field "(\w+)"', str(error))
    if field is None:
        return str(error)
    group = _variable((field[1],))
    text = getattr(error.__cause__, "doc", None)
    named = (name for name, value in environment.items() if name.startswith(f"{group}__") and value == text)
    return next(named, group)


def _variable(location: tuple[int | str, ...]) -> str:
    return (
        "__".join(["BYLINE_" + str(location[0]).upper(), *(str(part).upper() for part in location[1:])])
        if location
        else "BYLINE"
    )


if __name__ == "__main__":
    main()
