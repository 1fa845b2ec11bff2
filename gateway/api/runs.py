"""REST routes for runs: callers list, read, cancel and retry their own, and administrators terminate anybody's."""

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from pydantic import AwareDatetime, BeforeValidator, Field

from engine.identity.model import TriggerKind
from engine.runs.caller import Caller
from engine.runs.records import RunRecords
from engine.runs.runs import Runs
from engine.runs.state import ONGOING_STATUSES, RunState, RunStates, RunStatus, RunSummary
from engine.vault.vault import Vault
from gateway.api.authentication import ApiCaller
from gateway.api.cursors import (
    DEFAULT_PAGE_ITEMS,
    ListCursors,
    Page,
    PageCursor,
    PageLimit,
    to_cursor_position,
)
from gateway.api.problems import describe_problems
from gateway.api.request_bodies import RequestBody
from gateway.api.tools import STARTED_RESPONSES, IdempotencyKey, Prefer, RunResponder, namespace_key

_MIN_BATCH_RUNS: Final = 50
_MAX_DESCRIBED_RUNS: Final = 400
_MAX_REASON_CHARS: Final = 500


def _parse_instant(instant_text: object) -> datetime:
    # Pydantic reads a bare number as seconds since the epoch, which the OpenAPI document does not say.
    try:
        instant = datetime.fromisoformat(str(instant_text))
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError("write an instant as RFC 3339 does, with its zone: 2026-01-31T12:00:00Z")


RunId = Annotated[str, Path(min_length=1, max_length=300, pattern=r"^[\x21-\x7e]+$")]
Instant = Annotated[AwareDatetime, BeforeValidator(_parse_instant)]


class Cancellation(RequestBody):
    """The reason for a cancellation."""

    reason: str | None = Field(default=None, max_length=_MAX_REASON_CHARS)


class Termination(RequestBody):
    """The reason for a termination."""

    reason: str = Field(min_length=1, max_length=_MAX_REASON_CHARS)


def build_routes(run_records: RunRecords, vault: Vault, runs: Runs) -> APIRouter:
    """Build the router of `/runs` and what is below it, except for the events."""
    router = APIRouter(tags=["runs"])
    run_listing = _RunListing(run_records, runs.states, ListCursors(vault, "runs"))
    run_responder = RunResponder(runs)

    @router.get("/runs", summary="List your runs, newest first", responses=describe_problems(400, 422))
    async def list_runs(
        caller: ApiCaller,
        tool: Annotated[str | None, Query(max_length=200, pattern=r"^[\x21-\x7e]*$")] = None,
        trigger: TriggerKind | None = None,
        status: RunStatus | None = None,
        since: Annotated[
            Instant | None, Query(description="Only runs that started at this time or later.")
        ] = None,
        until: Annotated[
            Instant | None, Query(description="Only runs that started before this time.")
        ] = None,
        after: PageCursor = None,
        limit: PageLimit = DEFAULT_PAGE_ITEMS,
    ) -> Page[RunSummary]:
        run_filters = _RunFilters(tool, trigger, status, since, until)
        return await run_listing.build_page(caller, run_filters, after, limit)

    @router.get("/runs/{run_id}", summary="Get one of your runs", responses=describe_problems(404, 422))
    async def get_run(caller: ApiCaller, run_id: RunId) -> RunState:
        run = await runs.permissions.require_own_run(run_id, caller)
        run_state = await runs.states.read_state(run, caller.principal)
        if run_state.status not in ONGOING_STATUSES:
            runs.delivered_outcomes.mark_delivered(run.id)
        return run_state

    @router.post(
        "/runs/{run_id}/cancel",
        summary="Cancel one of your runs",
        status_code=HTTPStatus.ACCEPTED,
        responses=describe_problems(404, 409, 410, 422),
    )
    async def cancel_run(caller: ApiCaller, run_id: RunId, why: Cancellation | None = None) -> RunState:
        run = await runs.permissions.require_own_run(run_id, caller)
        await runs.control.cancel_run(run, caller, None if why is None else why.reason)
        return await runs.states.read_state(run, caller.principal)

    @router.post(
        "/runs/{run_id}/terminate",
        summary="Terminate any person's run at once (administrators)",
        responses=describe_problems(403, 404, 409, 410, 422),
    )
    async def terminate_run(caller: ApiCaller, run_id: RunId, why: Termination) -> RunState:
        run = await runs.control.terminate_run(run_id, caller, why.reason)
        return await runs.states.read_state(run, caller.principal)

    @router.post(
        "/runs/{run_id}/retry",
        summary="Start an ended run again, as a new run with the same arguments",
        responses={**STARTED_RESPONSES, **describe_problems(403, 404, 409, 410, 422)},
    )
    async def retry_run(
        caller: ApiCaller,
        run_id: RunId,
        response: Response,
        idempotency_key: IdempotencyKey = None,
        prefer: Prefer = None,
    ) -> RunState:
        run = await runs.permissions.require_own_run(run_id, caller)
        started_run = await runs.control.retry_run(
            run, caller, namespace_key(idempotency_key, f"retry:{run.id}:")
        )
        return await run_responder.answer_started_run(started_run, caller, prefer, response)

    return router


@dataclass(frozen=True, slots=True)
class _RunFilters:
    """The filters of a list of runs."""

    tool_name: str | None
    trigger: TriggerKind | None
    run_status: RunStatus | None
    started_since: datetime | None
    started_before: datetime | None

    def select_tools(self, caller: Caller) -> frozenset[str] | None:
        """Return the tools whose runs are listed, or None for all."""
        if self.tool_name is None:
            return caller.tool_names
        filtered_tools = frozenset({self.tool_name})
        return filtered_tools if caller.tool_names is None else filtered_tools & caller.tool_names


@dataclass(frozen=True, slots=True)
class _RunListing:
    """Builds pages of runs, the newest first."""

    run_records: RunRecords
    run_states: RunStates
    run_cursors: ListCursors

    async def build_page(
        self, caller: Caller, run_filters: _RunFilters, page_cursor: str | None, limit: int
    ) -> Page[RunSummary]:
        """Return a page of runs. With a status filter, it may hold fewer than `limit` and still not be the last."""
        last_place = self.run_cursors.open_time_and_id(page_cursor)
        # Only Temporal knows the status, so runs are described until the page is full, up to a limit.
        batch_size = limit if run_filters.run_status is None else max(limit, _MIN_BATCH_RUNS)
        page_items: list[RunSummary] = []
        described_count = 0
        while True:
            run_batch = await self.run_records.list_runs(
                caller.principal.id,
                tool_names=run_filters.select_tools(caller),
                trigger=run_filters.trigger,
                started_since=run_filters.started_since,
                started_until=run_filters.started_before,
                page_cursor=last_place,
                max_rows=batch_size + 1,
            )
            run_summaries = await self.run_states.summarize_runs(run_batch[:batch_size])
            has_more = len(run_batch) > batch_size
            for summary_number, run_summary in enumerate(run_summaries, 1):
                last_place = run_summary.started_at, run_summary.id
                if run_filters.run_status in {None, run_summary.status}:
                    page_items.append(run_summary)
                if len(page_items) == limit:
                    has_more = has_more or summary_number < len(run_summaries)
                    break
            described_count += len(run_summaries)
            if (
                not has_more
                or last_place is None
                or len(page_items) == limit
                or described_count >= _MAX_DESCRIBED_RUNS
            ):
                next_cursor = (
                    self.run_cursors.seal_position(to_cursor_position(last_place))
                    if has_more and last_place is not None
                    else None
                )
                return Page[RunSummary](items=page_items, next_cursor=next_cursor)
