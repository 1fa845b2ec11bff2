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
from gateway.dev.data_directory import COMPOSE_PATH, DEFAULT_DATA_PATH
from gateway.sign_in.demo_people import DEMO_PEOPLE

if TYPE_CHECKING:
    from gateway.dev.stack import EmbeddedStack

_T = TypeVar("_T")
_SIGN_INS_LABEL = "byline.sign-ins"


def dev(
    data: Annotated[
        Path, typer.Option(help="the folder for the stack's databases, secrets and logs")
    ] = DEFAULT_DATA_PATH,
    file: Annotated[Path, typer.Option(help="the Compose file that describes the stack")] = COMPOSE_PATH,
) -> None:
    """Run the whole stack on this machine until Ctrl-C."""
    with contextlib.suppress(asyncio.CancelledError):
        _run_coroutine(_run_stack(data, file))


def gateway() -> None:
    """Run the gateway, which serves MCP, the REST API and the pages."""
    from gateway.server import serve_gateway

    _run_coroutine(serve_gateway(_load_settings(), os.environ))


def worker() -> None:
    """Run a worker, which executes workflows and actions."""
    from engine.worker import run_worker

    _run_coroutine(run_worker(_load_settings(), os.environ))


def migrate() -> None:
    """Upgrade the application database to this release's schema."""
    from engine.db.migrate import upgrade_schema

    upgrade_schema(Settings().database.url)


def ready(
    url: Annotated[str, typer.Argument(help="http://host:port/path or temporal://host:port/namespace/queue")],
) -> None:
    """Exit with 0 if a part of the stack is ready, and with 1 if not."""
    from gateway.dev.readiness import is_ready

    raise typer.Exit(0 if _run_coroutine(is_ready(url)) else 1)


def version() -> None:
    """Print the version."""
    typer.echo(installed_version("byline"))


def _run_coroutine(coroutine: Coroutine[Any, Any, _T]) -> _T:
    import uvloop

    return uvloop.run(coroutine)


def _load_settings() -> Settings:
    from engine.telemetry import configure_logging

    settings = Settings()
    configure_logging(settings.log_level)
    return settings


async def _run_stack(data_path: Path, compose_path: Path) -> None:
    from gateway.dev.stack import EmbeddedStack

    current_task = asyncio.current_task()
    assert current_task is not None  # noqa: S101 - a coroutine always runs in a task
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, current_task.cancel)
    async with EmbeddedStack(
        data_path, environment=os.environ, compose_path=compose_path, report_progress=typer.echo
    ) as embedded_stack:
        await embedded_stack.start_all_services()
        typer.echo(_format_welcome(embedded_stack))
        await asyncio.Event().wait()


def _format_welcome(embedded_stack: "EmbeddedStack") -> str:
    people_text = ", ".join(f"{demo_person.username} / {demo_person.password}" for demo_person in DEMO_PEOPLE)
    upstreams_text = "".join(
        f"  at {service_name:<11}{compose_service.labels[_SIGN_INS_LABEL]}\n"
        for service_name, compose_service in embedded_stack.services.items()
        if _SIGN_INS_LABEL in compose_service.labels
    )
    return f"""
Byline is ready. Ctrl-C stops everything.

  MCP           {embedded_stack.mcp_url}
  console       {embedded_stack.gateway_url}
  Temporal UI   {embedded_stack.temporal_ui_url}

Sign-ins, as name / password:
  at byline     {people_text}
{upstreams_text}
Add it to a chat client:
  claude mcp add --transport http byline {embedded_stack.mcp_url}
"""
