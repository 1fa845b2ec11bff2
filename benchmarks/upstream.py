"""The upstream of the benchmarks. It records when each write arrives, and consents to every request.

python -m benchmarks.upstream
"""

import asyncio
import secrets
import socket
import time
from collections import defaultdict

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class Arrivals:
    """Records when each name was written, by the machine's monotonic clock."""

    def __init__(self) -> None:
        self._times: defaultdict[str, list[float]] = defaultdict(list)
        self._arrival = asyncio.Condition()

    async def note(self, request: Request) -> Response:
        """POST /things/{name}."""
        self._times[request.path_params["name"]].append(time.monotonic())
        async with self._arrival:
            self._arrival.notify_all()
        return Response(status_code=204)

    async def tell(self, request: Request) -> Response:
        """GET /arrivals/{name}?count=n: when the writes arrived, once there are n."""
        name, count = request.path_params["name"], int(request.query_params["count"])
        async with self._arrival:
            await self._arrival.wait_for(lambda: len(self._times[name]) >= count)
        return JSONResponse(self._times[name])


async def token(_request: Request) -> Response:
    """POST /token (RFC 6749 section 5.1)."""
    return JSONResponse(
        {
            "access_token": secrets.token_urlsafe(24),
            "token_type": "Bearer",
            "expires_in": 86_400,
            "scope": "write",
        }
    )


async def userinfo(_request: Request) -> Response:
    """GET /userinfo."""
    return JSONResponse({"sub": "bench"})


async def main() -> None:
    """Serve on a free port, and tell it."""
    arrivals = Arrivals()
    app = Starlette(
        routes=[
            Route("/things/{name}", arrivals.note, methods=["POST"]),
            Route("/arrivals/{name}", arrivals.tell),
            Route("/token", token, methods=["POST"]),
            Route("/userinfo", userinfo),
        ]
    )
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        print("ready", listening.getsockname()[1], flush=True)
        await uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        ).serve([listening])


if __name__ == "__main__":
    uvloop.run(main())
