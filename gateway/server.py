"""Run the gateway process. It logs no request lines, since those may hold authorization codes."""

import resource
from collections.abc import Mapping

import uvicorn

from engine.settings import Settings
from gateway.app import open_app
from gateway.http.slow_clients import build_timeout_protocol

_SHUTDOWN_TIMEOUT_SECONDS = 5
# For connections to the database, Temporal and upstream sign-in services, and files that Python itself opens.
_OTHER_FILES = 500


async def serve_gateway(settings: Settings, environment: Mapping[str, str]) -> None:
    """Open the application and serve it until the process stops; failures to open are raised before it listens."""
    limit_settings = settings.gateway.limits
    raise_open_file_limit(limit_settings.connections)
    async with open_app(settings, environment) as application:
        uvicorn_config = uvicorn.Config(
            application,
            host=settings.gateway.host,
            port=settings.gateway.port,
            http=build_timeout_protocol(limit_settings.arrival.total_seconds()),
            ws="none",
            log_level=settings.log_level.lower(),
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            limit_concurrency=limit_settings.connections,
            timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_SECONDS,
        )
        await uvicorn.Server(uvicorn_config).serve()


def raise_open_file_limit(max_connections: int) -> None:
    """Raise the limit of open files to fit this many connections, up to the hard limit; the default is often 1,024."""
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed_files = max_connections + _OTHER_FILES
    if soft_limit < needed_files:
        new_limit = needed_files if hard_limit == resource.RLIM_INFINITY else min(needed_files, hard_limit)
        resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard_limit))
