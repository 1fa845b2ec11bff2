"""The gateway process: serves the application until told to stop; it logs no request line, which may hold a code."""

from collections.abc import Mapping

import uvicorn

from engine.settings import Settings
from gateway.app import open_app
from gateway.slow_clients import impatient

_CLOSE_WITHIN_SECONDS = 5


async def serve(settings: Settings, environment: Mapping[str, str]) -> None:
    """Open the application, then listen; what cannot be opened is raised before anything listens."""
    limits = settings.gateway.limits
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
