"""REST route that streams one run as server-sent events: its lines of the trail, its progress, and how it ended."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from engine.audit.trail import Line, Trail
from engine.errors import TemporalUnreachable
from engine.identity.runs import Run
from engine.services import Services
from gateway.api.callers import Calling, Recheck, StillGood
from gateway.api.problems import Refused, problems
from gateway.api.runs import RunId
from gateway.runs.runs import Caller, Runs
from gateway.runs.states import Progress, RunState, RunStates

_LOOK_EVERY_SECONDS: Final = 0.25
_ASK_EVERY_SECONDS: Final = 2.0
_LINES_AT_ONCE: Final = 200

MOST_STREAMS: Final = 20
"""How many streams of one principal a gateway keeps open at once."""

LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^[0-9]{1,18}$",
        description="The `id` of the last event that was seen: the stream goes on after it.",
    ),
]


class RunEvent(BaseModel):
    """A line of the audit trail. Its `seq` is the event's `id`, and its `kind` is the event's type."""

    seq: int
    time: datetime
    kind: str
    event: dict[str, Any]


def routes(services: Services, runs: Runs, states: RunStates) -> APIRouter:
    """Build the router of `/runs/{run_id}/events`."""
    router = APIRouter(tags=["runs"])
    growth = _Growth(services.trail)
    streams = Counter[str]()

    # A dependency releases what a follower holds when its request ends, in whatever way it ends.
    async def follow(run_id: RunId, caller: Calling, still_good: StillGood) -> AsyncIterator[_Follower]:
        run, who = await runs.owned(run_id, caller), caller.principal.id
        if streams[who] >= MOST_STREAMS:
            detail = f"{MOST_STREAMS} streams at once are the most. Close one first."
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too_many_streams", detail)
        streams[who] += 1
        ended = asyncio.create_task(_end(runs, run.id))
        try:
            async with growth.watched() as grown:
                yield _Follower(run, caller, still_good, services.trail, states, ended, grown)
        finally:
            ended.cancel()
            streams[who] -= 1
            # Adding an empty counter drops every principal whose count is zero.
            streams.__iadd__(Counter())

    @router.get(
        "/runs/{run_id}/events",
        summary="Follow one of your runs as server-sent events",
        response_class=EventSourceResponse,
        responses=problems(404, 422, 429),
    )
    async def follow_run(
        follower: Annotated[_Follower, Depends(follow)], last_event_id: LastEventId = None
    ) -> AsyncIterator[ServerSentEvent]:
        """Lines of the audit trail by their kind, `progress`, and at last `ended` with the state of the run.

        A stream also ends, without an `ended` event, once the caller's token is no longer valid.
        """
        async for event in follower.events(after=int(last_event_id or 0)):
            yield event

    return router


class _Growth:
    """Notices, by one query for all streams, that the audit trail grew."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._watching: set[asyncio.Event] = set()
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set whenever there are new lines."""
        grown = asyncio.Event()
        self._watching.add(grown)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield grown
        finally:
            self._watching.discard(grown)

    async def _look(self) -> None:
        seen = 0
        while self._watching:
            with contextlib.suppress(OSError, SQLAlchemyError):
                last = await self._trail.last()
                if last != seen:
                    seen = last
                    for grown in self._watching:
                        grown.set()
            await asyncio.sleep(_LOOK_EVERY_SECONDS)


class _Follower:
    """Streams one run to one caller."""

    def __init__(
        self,
        run: Run,
        caller: Caller,
        still_good: Recheck,
        trail: Trail,
        states: RunStates,
        ended: "asyncio.Task[None]",
        grown: asyncio.Event,
    ) -> None:
        self._run = run
        self._caller = caller
        self._still_good = still_good
        self._trail = trail
        self._states = states
        self._ended = ended
        self._grown = grown

    async def events(self, after: int) -> AsyncIterator[ServerSentEvent]:
        """Yield everything after the line with this number, until the run ended or the token is not valid any more."""
        told: Progress | None = None
        while await self._still_good():
            self._grown.clear()
            # Checked first, so that the lines read below include all that the run wrote before it ended.
            is_over = self._ended.done()
            while lines := await self._trail.following(self._run.id, after, _LINES_AT_ONCE):
                for line in lines:
                    yield _told(line)
                after = lines[-1].seq
            progress = await self._progress()
            if progress is not None and progress != told:
                told = progress
                yield ServerSentEvent(event="progress", data=progress)
            if is_over:
                yield ServerSentEvent(event="ended", data=await self._state())
                return
            await self._something()

    async def _something(self) -> None:
        grown = asyncio.create_task(self._grown.wait())
        try:
            await asyncio.wait(
                {grown, self._ended}, timeout=_ASK_EVERY_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            grown.cancel()

    async def _progress(self) -> Progress | None:
        try:
            return await self._states.progress(self._run.id)
        except TemporalUnreachable:
            return None

    async def _state(self) -> RunState:
        while True:
            with contextlib.suppress(TemporalUnreachable):
                return await self._states.of(self._run, self._caller.principal)
            await asyncio.sleep(_ASK_EVERY_SECONDS)


async def _end(runs: Runs, run_id: str) -> None:
    """Wait until the run ends, trying again while Temporal does not answer."""
    while True:
        with contextlib.suppress(TemporalUnreachable):
            await runs.result(run_id)
            return
        await asyncio.sleep(_ASK_EVERY_SECONDS)


def _told(line: Line) -> ServerSentEvent:
    event = RunEvent(seq=line.seq, time=line.time, kind=line.kind, event=line.event)
    return ServerSentEvent(event=line.kind, id=str(line.seq), data=event)
