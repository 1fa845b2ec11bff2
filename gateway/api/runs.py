"""REST routes for runs: callers list, read, cancel and retry their own, and administrators terminate anybody's."""

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from pydantic import AwareDatetime, BeforeValidator, Field

from engine.identity.model import TriggerKind
from engine.services import Services
from gateway.api.bodies import Body
from gateway.api.callers import Calling
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page, position
from gateway.api.problems import problems
from gateway.api.tools import STARTED, IdempotencyKey, Prefer, Starting, namespaced
from gateway.runs.control import RunControl
from gateway.runs.runs import Caller, Runs
from gateway.runs.states import GOES_ON, RunState, RunStates, RunStatus, RunSummary

_ASKED_AT_ONCE: Final = 50
_MOST_ASKED: Final = 400
_LONGEST_REASON: Final = 500


def _as_instant(text: object) -> datetime:
    # Pydantic reads a bare number as seconds since the epoch, which the OpenAPI document does not say.
    try:
        moment = datetime.fromisoformat(str(text))
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("write an instant as RFC 3339 does, with its zone: 2026-01-31T12:00:00Z")


RunId = Annotated[str, Path(min_length=1, max_length=300, pattern=r"^[\x21-\x7e]+$")]
Instant = Annotated[AwareDatetime, BeforeValidator(_as_instant)]


class Cancellation(Body):
    """Why a run is cancelled."""

    reason: str | None = Field(default=None, max_length=_LONGEST_REASON)


class Termination(Body):
    """Why a run is terminated."""

    reason: str = Field(min_length=1, max_length=_LONGEST_REASON)


def routes(services: Services, runs: Runs, states: RunStates, control: RunControl) -> APIRouter:
    """Build the router of `/runs` and what is below it, except for the events."""
    router = APIRouter(tags=["runs"])
    listing = _Listing(services, states)
    starting = Starting(runs, states)

    @router.get("/runs", summary="List your runs, newest first", responses=problems(400, 422))
    async def list_runs(
        caller: Calling,
        tool: Annotated[str | None, Query(max_length=200, pattern=r"^[\x21-\x7e]*$")] = None,
        trigger: TriggerKind | None = None,
        status: RunStatus | None = None,
        since: Annotated[Instant | None, Query(description="Started at this instant or later.")] = None,
        until: Annotated[Instant | None, Query(description="Started before this instant.")] = None,
        after: After = None,
        limit: Limit = USUAL_LIMIT,
    ) -> Page[RunSummary]:
        wanted = _Wanted(tool, trigger, status, since, until)
        return await listing.page(caller, wanted, after, limit)

    @router.get("/runs/{run_id}", summary="Get one of your runs", responses=problems(404, 422))
    async def get_run(caller: Calling, run_id: RunId) -> RunState:
        run = await runs.owned(run_id, caller)
        state = await states.of(run, caller.principal)
        if state.status not in GOES_ON:
            runs.answered(run.id)
        return state

    @router.post(
        "/runs/{run_id}/cancel",
        summary="Ask one of your runs to end",
        status_code=HTTPStatus.ACCEPTED,
        responses=problems(404, 409, 410, 422),
    )
    async def cancel_run(caller: Calling, run_id: RunId, why: Cancellation | None = None) -> RunState:
        run = await runs.owned(run_id, caller)
        await control.cancel(run, caller, None if why is None else why.reason)
        return await states.of(run, caller.principal)

    @router.post(
        "/runs/{run_id}/terminate",
        summary="End anybody's run at once (administrators)",
        responses=problems(403, 404, 409, 410, 422),
    )
    async def terminate_run(caller: Calling, run_id: RunId, why: Termination) -> RunState:
        run = await control.terminate(run_id, caller, why.reason)
        return await states.of(run, caller.principal)

    @router.post(
        "/runs/{run_id}/retry",
        summary="Start a run that ended once more, as a new run with the same arguments",
        responses={**STARTED, **problems(403, 404, 409, 410, 422)},
    )
    async def retry_run(
        caller: Calling,
        run_id: RunId,
        response: Response,
        idempotency_key: IdempotencyKey = None,
        prefer: Prefer = None,
    ) -> RunState:
        run = await runs.owned(run_id, caller)
        serving = await control.retry(run, caller, namespaced(idempotency_key, f"retry:{run.id}:"))
        return await starting.answer(serving, caller, prefer, response)

    return router


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The filters of a list of runs."""

    tool: str | None
    trigger: TriggerKind | None
    status: RunStatus | None
    since: datetime | None
    until: datetime | None

    def tools(self, caller: Caller) -> frozenset[str] | None:
        """Return the tools whose runs are listed, or None for all."""
        if self.tool is None:
            return caller.tools
        chosen = frozenset({self.tool})
        return chosen if caller.tools is None else chosen & caller.tools


class _Listing:
    """Builds pages of runs, the newest first."""

    def __init__(self, services: Services, states: RunStates) -> None:
        self._runs = services.runs
        self._states = states
        self._cursors = Cursors(services.vault, "runs")

    async def page(self, caller: Caller, wanted: _Wanted, after: str | None, limit: int) -> Page[RunSummary]:
        """Return a page of runs. With a status filter, it may hold fewer than `limit` and still not be the last."""
        place = self._cursors.place(after)
        # Only Temporal knows the status, so runs are described until the page is full, up to a limit.
        size = limit if wanted.status is None else max(limit, _ASKED_AT_ONCE)
        found: list[RunSummary] = []
        asked = 0
        while True:
            batch = await self._runs.of(
                caller.principal.id,
                tools=wanted.tools(caller),
                trigger=wanted.trigger,
                since=wanted.since,
                until=wanted.until,
                before=place,
                limit=size + 1,
            )
            summaries = await self._states.summaries(batch[:size])
            more = len(batch) > size
            for number, summary in enumerate(summaries, 1):
                place = summary.started_at, summary.id
                if wanted.status in {None, summary.status}:
                    found.append(summary)
                if len(found) == limit:
                    more = more or number < len(summaries)
                    break
            asked += len(summaries)
            if not more or place is None or len(found) == limit or asked >= _MOST_ASKED:
                cursor = self._cursors.seal(position(place)) if more and place is not None else None
                return Page[RunSummary](items=found, next_cursor=cursor)
