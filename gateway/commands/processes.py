"""The commands that start Byline's processes with settings of their environment: the whole stack, or one part."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from engine.settings import Settings
from gateway.embedded.surroundings import COMPOSE_FILE, DATA
from gateway.sign_in.demo_people import DEMO_PEOPLE

if TYPE_CHECKING:
    from gateway.embedded.stack import Stack

_T = TypeVar("_T")
_SIGN_INS = "byline.sign-ins"


def dev(
    data: Annotated[Path, typer.Option(help="Where the stack keeps its databases, secrets and logs.")] = DATA,
    file: Annotated[Path, typer.Option(help="The Compose file that says what the stack is.")] = COMPOSE_FILE,
) -> None:
    """Start the whole stack on this machine and stay until Ctrl-C."""
    with contextlib.suppress(asyncio.CancelledError):
        _run(_dev(data, file))


def gateway() -> None:
    """Serve MCP, the sign-in pages and the console."""
    from gateway.server import serve

    _run(serve(_configured(), os.environ))


def worker() -> None:
    """Run workflows and actions."""
    from engine.worker import run_worker

    _run(run_worker(_configured(), os.environ))


def migrate() -> None:
    """Bring the application database to this release's schema."""
    from engine.db.migrate import upgrade

    upgrade(Settings().database.url)


def ready(
    url: Annotated[str, typer.Argument(help="http://host:port/path or temporal://host:port/namespace/queue")],
) -> None:
    """Exit with 0 if a part of the stack is ready and with 1 if not."""
    from gateway.embedded.readiness import is_ready

    raise typer.Exit(0 if _run(is_ready(url)) else 1)


def version() -> None:
    """Print the release."""
    typer.echo(installed_version("byline"))


def _run(main: Coroutine[Any, Any, _T]) -> _T:
    import uvloop

    return uvloop.run(main)


def _configured() -> Settings:
    from engine.telemetry import configure_logging

    settings = Settings()
    configure_logging(settings.log_level)
    return settings


async def _dev(data: Path, file: Path) -> None:
    from gateway.embedded.stack import Stack

    this = asyncio.current_task()
    assert this is not None  # noqa: S101 - a coroutine always runs in a task
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    async with Stack(data, environment=os.environ, file=file, say=typer.echo) as stack:
        await stack.up()
        typer.echo(_welcome(stack))
        await asyncio.Event().wait()


def _welcome(stack: "Stack") -> str:
    people = ", ".join(f"{person.username} / {person.password}" for person in DEMO_PEOPLE)
    upstreams = "".join(
        f"  at {name:<11}{service.labels[_SIGN_INS]}\n"
        for name, service in stack.services.items()
        if _SIGN_INS in service.labels
    )
    return f"""
Byline is ready. Ctrl-C stops everything.

  MCP           {stack.mcp_url}
  console       {stack.gateway_url}
  Temporal UI   {stack.temporal_ui_url}

Sign-ins, as name / password:
  at byline     {people}
{upstreams}
Add it to a chat client:
  claude mcp add --transport http byline {stack.mcp_url}
"""
