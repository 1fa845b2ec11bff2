"""REST routes for schedules: the caller's own and those offered to them.

No API token makes a schedule, since the schedule would outlive the token.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from engine.errors import ScheduleUnknown
from engine.runs.caller import Caller
from engine.schedules.schedule_records import Schedule
from engine.schedules.schedules import ScheduleDraft, Schedules
from engine.schedules.timing import Period, Timing
from engine.tools.registry import Registry
from engine.vault.vault import Vault
from gateway.api.authentication import ApiCaller, InPersonCaller
from gateway.api.cursors import (
    DEFAULT_PAGE_ITEMS,
    ListCursors,
    Page,
    PageCursor,
    PageLimit,
    to_cursor_position,
)
from gateway.api.etags import IfMatch, build_stale_error, set_etag
from gateway.api.problems import describe_problems
from gateway.api.request_bodies import RequestBody
from gateway.api.tools import IdempotencyKey, namespace_key
from gateway.protected_resource import API_PATH
from gateway.schedule_views import ScheduleShown, ScheduleViews

ScheduleId = Annotated[str, Path(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")]
ScheduleText = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class SchedulePlan(RequestBody):
    """The plan of a schedule: its tool, its arguments and its timing."""

    name: ScheduleText
    tool: str = Field(max_length=64)
    arguments: dict[str, Any] = Field(default={}, description="The arguments of the tool at each firing.")
    timing: Timing


class Reason(RequestBody):
    """The reason for a pause."""

    reason: ScheduleText | None = None


class ScheduleOffer(RequestBody):
    """The person to whom a schedule is offered."""

    to: ScheduleText | None = Field(description="A person's id, subject or name. Null withdraws the offer.")


def build_routes(
    schedules: Schedules, schedule_views: ScheduleViews, registry: Registry, vault: Vault
) -> APIRouter:
    """Build the router of `/schedules` and what is below it."""
    router = APIRouter(tags=["schedules"])
    routes_context = _ScheduleRoutesContext(
        schedules, schedule_views, registry, ListCursors(vault, "schedules")
    )
    _add_editing_routes(router, routes_context)
    _add_control_routes(router, routes_context)
    _add_offer_routes(router, routes_context)
    return router


@dataclass(frozen=True, slots=True)
class _ScheduleRoutesContext:
    """What the schedule routes share: which schedules a caller may reach, and how the API shows them."""

    schedules: Schedules
    schedule_views: ScheduleViews
    registry: Registry
    schedule_cursors: ListCursors

    async def find_reachable_schedule(self, schedule_id: str, caller: Caller) -> Schedule:
        """Return a schedule that the caller may see and that their token covers. Raises ScheduleUnknown."""
        schedule = await self.schedules.find_visible_schedule(schedule_id, caller.principal)
        is_own_or_offered = caller.principal.id in {schedule.principal_id, schedule.offered_to}
        # An administrator reaches the schedules of others only in person, not with a token.
        if not (caller.covers_tool(schedule.tool_name) and (is_own_or_offered or caller.is_in_person)):
            raise ScheduleUnknown(f"You have no schedule '{schedule_id}'.")
        return schedule

    async def answer_with_etag(self, schedule: Schedule, response: Response) -> ScheduleShown:
        """Return the schedule as the API shows it, and set its ETag on the response."""
        set_etag(response, schedule.version)
        (schedule_shown,) = await self.schedule_views.build_views([schedule])
        return schedule_shown

    def build_plan(self, schedule_plan: SchedulePlan, caller: Caller) -> ScheduleDraft:
        """Return the requested plan. Raises NotAllowed where the caller's token does not cover the tool."""
        caller.require_tool(schedule_plan.tool)
        return ScheduleDraft(
            schedule_plan.name,
            self.registry.find_tool(schedule_plan.tool),
            schedule_plan.arguments,
            schedule_plan.timing,
        )


def _add_editing_routes(router: APIRouter, routes_context: _ScheduleRoutesContext) -> None:
    @router.get(
        "/schedules",
        summary="List your schedules and those offered to you, newest first",
        responses=describe_problems(400, 422),
    )
    async def list_schedules(
        caller: ApiCaller, after: PageCursor = None, limit: PageLimit = DEFAULT_PAGE_ITEMS
    ) -> Page[ScheduleShown]:
        page_schedules = await routes_context.schedules.schedule_records.list_schedules(
            caller.principal.id,
            limit=limit + 1,
            page_cursor=routes_context.schedule_cursors.open_time_and_id(after),
            tool_names=caller.tool_names,
        )
        cursor_positions = [
            to_cursor_position((schedule.created_at, schedule.id)) for schedule in page_schedules
        ]
        return routes_context.schedule_cursors.build_page(
            await routes_context.schedule_views.build_views(page_schedules), cursor_positions, limit
        )

    @router.post(
        "/schedules",
        summary="Create a schedule, which acts as you",
        status_code=HTTPStatus.CREATED,
        responses=describe_problems(403, 404, 422),
    )
    async def create_schedule(
        caller: InPersonCaller,
        schedule_plan: SchedulePlan,
        response: Response,
        idempotency_key: IdempotencyKey = None,
    ) -> ScheduleShown:
        schedule = await routes_context.schedules.create_schedule(
            routes_context.build_plan(schedule_plan, caller),
            caller.principal,
            idempotency_key=namespace_key(idempotency_key),
        )
        response.headers["Location"] = f"{API_PATH}/schedules/{schedule.id}"
        return await routes_context.answer_with_etag(schedule, response)

    @router.get("/schedules/{schedule_id}", summary="Get a schedule", responses=describe_problems(404, 422))
    async def get_schedule(caller: ApiCaller, schedule_id: ScheduleId, response: Response) -> ScheduleShown:
        return await routes_context.answer_with_etag(
            await routes_context.find_reachable_schedule(schedule_id, caller), response
        )

    @router.put(
        "/schedules/{schedule_id}",
        summary="Change the plan of one of your schedules",
        responses=describe_problems(403, 404, 412, 422, 428),
    )
    async def change_schedule(
        caller: InPersonCaller,
        schedule_id: ScheduleId,
        schedule_plan: SchedulePlan,
        precondition: IfMatch,
        response: Response,
    ) -> ScheduleShown:
        expected_version = precondition.check_version(
            (await routes_context.find_reachable_schedule(schedule_id, caller)).version
        )
        changed_schedule = await routes_context.schedules.change_schedule(
            schedule_id, routes_context.build_plan(schedule_plan, caller), caller.principal, expected_version
        )
        if changed_schedule is None:
            raise build_stale_error()
        return await routes_context.answer_with_etag(changed_schedule, response)

    @router.delete(
        "/schedules/{schedule_id}",
        summary="Delete a schedule; runs that it started continue",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(404, 412, 422, 428),
    )
    async def delete_schedule(caller: ApiCaller, schedule_id: ScheduleId, precondition: IfMatch) -> None:
        expected_version = precondition.check_version(
            (await routes_context.find_reachable_schedule(schedule_id, caller)).version
        )
        if not await routes_context.schedules.delete_schedule(
            schedule_id, caller.principal, expected_version
        ):
            raise build_stale_error()


def _add_control_routes(router: APIRouter, routes_context: _ScheduleRoutesContext) -> None:
    @router.post(
        "/schedules/{schedule_id}/pause",
        summary="Pause a schedule",
        responses=describe_problems(404, 422),
    )
    async def pause_schedule(
        caller: ApiCaller, schedule_id: ScheduleId, response: Response, why: Reason | None = None
    ) -> ScheduleShown:
        await routes_context.find_reachable_schedule(schedule_id, caller)
        pause_reason = None if why is None else why.reason
        return await routes_context.answer_with_etag(
            await routes_context.schedules.pause_schedule(schedule_id, caller.principal, pause_reason),
            response,
        )

    @router.post(
        "/schedules/{schedule_id}/resume",
        summary="Resume a schedule",
        responses=describe_problems(403, 404, 422),
    )
    async def resume_schedule(
        caller: InPersonCaller, schedule_id: ScheduleId, response: Response
    ) -> ScheduleShown:
        tool = routes_context.registry.find_tool(
            (await routes_context.find_reachable_schedule(schedule_id, caller)).tool_name
        )
        return await routes_context.answer_with_etag(
            await routes_context.schedules.resume_schedule(schedule_id, caller.principal, tool), response
        )

    @router.post(
        "/schedules/{schedule_id}/trigger",
        summary="Fire a schedule now, as far as its overlap policy allows",
        status_code=HTTPStatus.ACCEPTED,
        responses=describe_problems(403, 404, 409, 422),
    )
    async def trigger_schedule(
        caller: ApiCaller, schedule_id: ScheduleId, response: Response
    ) -> ScheduleShown:
        schedule = await routes_context.find_reachable_schedule(schedule_id, caller)
        await routes_context.schedules.trigger_schedule(schedule_id, caller.principal)
        return await routes_context.answer_with_etag(schedule, response)

    @router.post(
        "/schedules/{schedule_id}/backfill",
        summary="Fire a schedule for each of its times in a past period",
        status_code=HTTPStatus.ACCEPTED,
        responses=describe_problems(403, 404, 409, 422),
    )
    async def backfill_schedule(
        caller: ApiCaller, schedule_id: ScheduleId, period: Period, response: Response
    ) -> ScheduleShown:
        schedule = await routes_context.find_reachable_schedule(schedule_id, caller)
        await routes_context.schedules.backfill_schedule(schedule_id, caller.principal, period)
        return await routes_context.answer_with_etag(schedule, response)


def _add_offer_routes(router: APIRouter, routes_context: _ScheduleRoutesContext) -> None:
    @router.post(
        "/schedules/{schedule_id}/offer",
        summary="Offer a schedule to somebody, who owns it once they accept",
        responses=describe_problems(403, 404, 422),
    )
    async def offer_schedule(
        caller: InPersonCaller, schedule_id: ScheduleId, schedule_offer: ScheduleOffer, response: Response
    ) -> ScheduleShown:
        await routes_context.find_reachable_schedule(schedule_id, caller)
        return await routes_context.answer_with_etag(
            await routes_context.schedules.offer_schedule(schedule_id, caller.principal, schedule_offer.to),
            response,
        )

    @router.post(
        "/schedules/{schedule_id}/accept",
        summary="Accept a schedule that was offered to you, in the version that you read",
        responses=describe_problems(403, 404, 412, 422, 428),
    )
    async def accept_schedule(
        caller: InPersonCaller, schedule_id: ScheduleId, precondition: IfMatch, response: Response
    ) -> ScheduleShown:
        expected_version = precondition.check_version(
            (await routes_context.find_reachable_schedule(schedule_id, caller)).version
        )
        accepted_schedule = await routes_context.schedules.accept_schedule(
            schedule_id, caller.principal, expected_version
        )
        if accepted_schedule is None:
            raise build_stale_error()
        return await routes_context.answer_with_etag(accepted_schedule, response)

    @router.post(
        "/schedules/{schedule_id}/decline",
        summary="Decline a schedule that was offered to you",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(404, 422),
    )
    async def decline_schedule(caller: ApiCaller, schedule_id: ScheduleId) -> None:
        await routes_context.find_reachable_schedule(schedule_id, caller)
        await routes_context.schedules.decline_schedule(schedule_id, caller.principal)
