"""The command line, `byline`: puts the commands together and tells how they ended; what they do is in their modules."""

import re
import sys
from collections.abc import Callable, Sequence

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from engine.errors import BylineError
from gateway.client.failures import CommandFailed
from gateway.commands import call, connections, runs, schedules, signing_in, tokens, tools
from gateway.commands.plain import plain

_WORK = "Work with tools"
_RUN = "Run and administer"
_SETTINGS = frozenset({"Settings", "ClientSettings"})


def commands(words: Sequence[str] = ()) -> typer.Typer:
    """All commands, or at least the one that is meant where the words after `byline` begin with its name."""
    app = typer.Typer(
        name="byline",
        help="Durable composite MCP tools in which every action carries a name.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    meant = _work_with_tools(app)
    if not words or words[0] not in meant:
        _run_and_administer(app)
    return app


def main() -> None:
    """Run a command; an expected failure is told in one line, and wrong settings exit with 2."""
    try:
        commands(sys.argv[1:])()
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
        # The error knows its field in words only.
        field = re.search(r'field "(\w+)"', str(error))
        where = _variable((field[1],)) if field else str(error)
        typer.echo(f"{where}: write JSON, since this setting is a list or a group", err=True)
        sys.exit(2)
    except CommandFailed as error:
        # Some of it may be a server's own words.
        typer.echo(plain(error), err=True)
        sys.exit(error.exit_code)
    except BylineError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)


def _work_with_tools(app: typer.Typer) -> frozenset[str]:
    """Add the commands that talk to a gateway, and return their names."""
    single: dict[str, Callable[..., object]] = {
        "login": signing_in.login,
        "logout": signing_in.logout,
        "whoami": signing_in.whoami,
        "call": call.call,
    }
    groups = {
        "tools": tools.app,
        "runs": runs.app,
        "schedules": schedules.app,
        "connections": connections.app,
        "tokens": tokens.app,
    }
    for name, command in single.items():
        app.command(name, rich_help_panel=_WORK)(command)
    for name, group in groups.items():
        app.add_typer(group, name=name, rich_help_panel=_WORK)
    return frozenset({*single, *groups})


def _run_and_administer(app: typer.Typer) -> None:
    """Add the commands that are Byline itself, which takes long to load: nobody waits for it who only calls a tool."""
    from gateway.commands import administration, audit, clients, new, people, processes, services

    single: tuple[Callable[..., object], ...] = (
        processes.dev,
        processes.gateway,
        processes.worker,
        processes.migrate,
        processes.ready,
        processes.version,
        new.new,
    )
    for command in single:
        app.command(rich_help_panel=_RUN)(command)
    app.add_typer(audit.app, name="audit", rich_help_panel=_RUN)
    app.add_typer(administration.keys, name="keys", rich_help_panel=_RUN)
    app.add_typer(administration.vault, name="vault", rich_help_panel=_RUN)
    app.add_typer(people.app, name="people", rich_help_panel=_RUN)
    app.add_typer(services.app, name="services", rich_help_panel=_RUN)
    app.add_typer(clients.app, name="clients", rich_help_panel=_RUN)
    app.add_typer(administration.grants, name="grants", rich_help_panel=_RUN)


def _variable(location: tuple[int | str, ...]) -> str:
    return (
        "__".join(["BYLINE_" + str(location[0]).upper(), *(str(part).upper() for part in location[1:])])
        if location
        else "BYLINE"
    )


if __name__ == "__main__":
    main()
