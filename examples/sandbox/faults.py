"""Records the requests to a system, and makes requests fail on demand. It changes no data."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from examples.sandbox.storage import Database, Document
from examples.sandbox.system import System, sandbox_of

Kind = Literal["api", "token", "revoke", "userinfo"]


class Fault(BaseModel):
    """A fault of the next requests: a status instead of the response, a delay, or both.

    With `work_is_done`, the request takes effect and only its response is lost.
    """

    model_config = ConfigDict(extra="forbid")

    on: Kind = "api"
    count: int = Field(1, ge=1)
    status: int | None = Field(None, ge=400, le=599)
    headers: dict[str, str] = {}
    hang_seconds: float = Field(0, ge=0)
    work_is_done: bool = False


class FaultInjector:
    """The queue of faults, and the record of the requests that were received."""

    def __init__(self, system: System, database: Database) -> None:
        self._system = system
        self._database = database
        self._kinds: dict[str, Kind] = {
            system.oauth.tokens: "token",
            system.oauth.revoke: "revoke",
            system.oauth.userinfo: "userinfo",
        }
        self.faults: list[Fault] = []

    async def around(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Record a request when it arrives and when it is answered, and apply the next fault to it."""
        kind = self._kind(request.url.path)
        if kind is None:
            return await call_next(request)
        number = self._record_arrival(request, kind)
        response = await self._answer(request, kind, call_next)
        self._database.run(
            "UPDATE requests SET account = ?, grant_type = ?, status = ? WHERE id = ?",
            getattr(request.state, "account", None),
            getattr(request.state, "grant_type", None),
            response.status_code,
            number,
        )
        return response

    async def _answer(
        self, request: Request, kind: Kind, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        fault = self._next(kind)
        if fault is None:
            return await call_next(request)
        response = await call_next(request) if fault.work_is_done else None
        await asyncio.sleep(fault.hang_seconds)
        if fault.status is None:
            return response or await call_next(request)
        body = self._system.error(fault.status, "A fault that the sandbox was told to have")
        return JSONResponse(body, fault.status, fault.headers)

    def _kind(self, path: str) -> Kind | None:
        return "api" if path.startswith(self._system.api) else self._kinds.get(path)

    def _next(self, kind: Kind) -> Fault | None:
        for fault in self.faults:
            if fault.on == kind:
                fault.count -= 1
                if fault.count == 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _record_arrival(self, request: Request, kind: Kind) -> int:
        return self._database.insert(
            "INSERT INTO requests (time, kind, method, path, query, idempotency_key) VALUES (?,?,?,?,?,?)",
            datetime.now(UTC).isoformat(),
            kind,
            request.method,
            request.url.path,
            request.url.query,
            request.headers.get("idempotency-key"),
        )


router = APIRouter(prefix="/_sandbox")


def find_fault_injector(request: Request) -> FaultInjector:
    """Return the faults of the system that received a request."""
    troubles: FaultInjector = request.app.state.troubles
    return troubles


@router.get("/requests")
async def requests(request: Request, kind: Kind = "api") -> Document:
    """List the requests, oldest first. A request without a status has not been answered."""
    rows = sandbox_of(request).database.all("SELECT * FROM requests WHERE kind = ? ORDER BY id", kind)
    return {"requests": [dict(row) for row in rows]}


@router.post("/faults", status_code=201)
async def add_fault(fault: Fault, troubles: Annotated[FaultInjector, Depends(find_fault_injector)]) -> Fault:
    """Add a fault to the queue."""
    troubles.faults.append(fault)
    return fault


@router.delete("/faults", status_code=204)
async def clear_faults(troubles: Annotated[FaultInjector, Depends(find_fault_injector)]) -> None:
    """Remove all faults."""
    troubles.faults.clear()
