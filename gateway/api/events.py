"""REST route that streams one run as server-sent events: its lines of the trail, its progress, and how it ended."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from engine.audit.trail import AuditTrail, TrailLine
from engine.db.watch import Watch
from engine.errors import TemporalUnreachable
from engine.runs.caller import Caller
from engine.runs.records import Run
from engine.runs.runs import Runs
from engine.runs.state import Progress, RunState, RunStates
from gateway.api.authentication import ApiCaller, CallerTokenRecheck, TokenRecheck
from gateway.api.problems import RequestRefused, describe_problems
from gateway.api.runs import RunId

_POLL_INTERVAL_SECONDS: Final = 0.25
_TEMPORAL_INTERVAL_SECONDS: Final = 2.0
_MAX_BATCH_LINES: Final = 200

MAX_STREAMS_PER_PRINCIPAL: Final = 20
"""How many streams of one principal a gateway keeps open at once."""

LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^[0-9]{1,18}$",
        description="The `id` of the last event that you received. The stream continues after it.",
    ),
]


class RunEvent(BaseModel):
    """A line of the audit trail. Its `seq` is the event's `id`, and its `kind` is the event's type."""

    seq: int
    time: datetime
    kind: str
    event: dict[str, Any]


def build_routes(trail: AuditTrail, runs: Runs) -> APIRouter:
    """Build the router of `/runs/{run_id}/events`."""
    router = APIRouter(tags=["runs"])
    trail_growth = _TrailGrowth(trail)
    stream_counts = Counter[str]()

    # A dependency releases what a follower holds when its request ends, in whatever way it ends.
    async def open_event_stream(
        run_id: RunId, caller: ApiCaller, recheck_token: CallerTokenRecheck
    ) -> AsyncIterator[_RunEventStream]:
        run, principal_id = await runs.permissions.require_own_run(run_id, caller), caller.principal.id
        if stream_counts[principal_id] >= MAX_STREAMS_PER_PRINCIPAL:
            detail = f"{MAX_STREAMS_PER_PRINCIPAL} streams at once are the most. Close one first."
            raise RequestRefused(HTTPStatus.TOO_MANY_REQUESTS, "too_many_streams", detail)
        stream_counts[principal_id] += 1
        run_end_task = asyncio.create_task(_wait_until_ended(runs, run.id))
        try:
            with trail_growth.watch_growth() as growth_event:
                yield _RunEventStream(
                    run, caller, recheck_token, trail, runs.states, run_end_task, growth_event
                )
        finally:
            run_end_task.cancel()
            stream_counts[principal_id] -= 1
            # Adding an empty counter drops every principal whose count is zero.
            stream_counts.__iadd__(Counter())

    @router.get(
        "/runs/{run_id}/events",
        summary="Follow one of your runs as server-sent events",
        response_class=EventSourceResponse,
        responses=describe_problems(404, 422, 429),
    )
    async def follow_run(
        event_stream: Annotated[_RunEventStream, Depends(open_event_stream)],
        last_event_id: LastEventId = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """The events are lines of the audit trail, `progress`, and at last `ended` with the state of the run.

        A stream also ends, without an `ended` event, once the caller's token is no longer valid.
        """
        async for server_sent_event in event_stream.stream_events(after_seq=int(last_event_id or 0)):
            yield server_sent_event

    return router


class _TrailGrowth:
    """Notices, by one query for all streams, that the audit trail grew."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._last_seen_seq = 0
        self._watch = Watch[asyncio.Event](self._announce_growth, interval_seconds=_POLL_INTERVAL_SECONDS)

    @contextmanager
    def watch_growth(self) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever there are new lines."""
        with self._watch.include(asyncio.Event()) as growth_event:
            yield growth_event

    async def _announce_growth(self) -> None:
        last_seq = await self._trail.read_newest_seq()
        if last_seq != self._last_seen_seq:
            self._last_seen_seq = last_seq
            for growth_event in self._watch.watchers:
                growth_event.set()


class _RunEventStream:
    """Streams one run to one caller."""

    def __init__(
        self,
        run: Run,
        caller: Caller,
        recheck_token: TokenRecheck,
        trail: AuditTrail,
        run_states: RunStates,
        run_end_task: "asyncio.Task[None]",
        growth_event: asyncio.Event,
    ) -> None:
        self._run = run
        self._caller = caller
        self._recheck_token = recheck_token
        self._trail = trail
        self._run_states = run_states
        self._run_end_task = run_end_task
        self._growth_event = growth_event

    async def stream_events(self, after_seq: int) -> AsyncIterator[ServerSentEvent]:
        """Yield everything after the line with this number, until the run ended or the token is not valid any more."""
        sent_progress: Progress | None = None
        while await self._recheck_token():
            self._growth_event.clear()
            # Checked first, so that the lines read below include all that the run wrote before it ended.
            has_ended = self._run_end_task.done()
            while trail_lines := await self._trail.list_lines_after(
                self._run.id, after_seq, _MAX_BATCH_LINES
            ):
                for trail_line in trail_lines:
                    yield _to_sse(trail_line)
                after_seq = trail_lines[-1].seq
            progress = await self._read_progress()
            if progress is not None and progress != sent_progress:
                sent_progress = progress
                yield ServerSentEvent(event="progress", data=progress)
            if has_ended:
                yield ServerSentEvent(event="ended", data=await self._read_state())
                return
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        growth_task = asyncio.create_task(self._growth_event.wait())
        try:
            await asyncio.wait(
                {growth_task, self._run_end_task},
                timeout=_TEMPORAL_INTERVAL_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            growth_task.cancel()

    async def _read_progress(self) -> Progress | None:
        try:
            return await self._run_states.read_progress(self._run.id)
        except TemporalUnreachable:
            return None

    async def _read_state(self) -> RunState:
        while True:
            with contextlib.suppress(TemporalUnreachable):
                return await self._run_states.read_state(self._run, self._caller.principal)
            await asyncio.sleep(_TEMPORAL_INTERVAL_SECONDS)


async def _wait_until_ended(runs: Runs, run_id: str) -> None:
    """Wait until the run ends, trying again while Temporal does not answer."""
    while True:
        with contextlib.suppress(TemporalUnreachable):
            await runs.outcomes.wait_for_result(run_id)
            return
        await asyncio.sleep(_TEMPORAL_INTERVAL_SECONDS)


def _to_sse(trail_line: TrailLine) -> ServerSentEvent:
    run_event = RunEvent(
        seq=trail_line.seq, time=trail_line.time, kind=trail_line.kind, event=trail_line.event
    )
    return ServerSentEvent(event=trail_line.kind, id=str(trail_line.seq), data=run_event)
