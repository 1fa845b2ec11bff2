"""Run the gateway process. It logs no request lines, since those may hold authorization codes."""

import resource
from collections.abc import Mapping

import uvicorn

from engine.settings import Settings
from gateway.app import open_app
from gateway.http.slow_clients import impatient

_CLOSE_WITHIN_SECONDS = 5
# For connections to the database, Temporal and upstream sign-in services, and files that Python itself opens.
_OTHER_FILES = 500


async def serve(settings: Settings, environment: Mapping[str, str]) -> None:
    """Open the application and serve it until the process stops; failures to open are raised before it listens."""
    limits = settings.gateway.limits
    make_room_for(limits.connections)
    async with open_app(settings, environment) as app:
        config = uvicorn.Config(
            app,
            host=settings.gateway.host,
            port=settings.gateway.port,
            http=impatient(limits.arrival),
            ws="none",
            log_level=settings.log_level.lower(),
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=_CLOSE_WITHIN_SECONDS,
        )
        await uvicorn.Server(config).serve()


def make_room_for(connections: int) -> None:
    """Raise the limit of open files to fit this many connections, up to the hard limit; the default is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft < needed:
        enough = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
