"""REST routes for schedules: the caller's own and those offered to them.

No API token makes a schedule, since the schedule would outlive the token.
"""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from engine.errors import ScheduleUnknown
from engine.registry import Registry
from engine.schedules.records import Schedule
from engine.schedules.schedules import Plan, Schedules
from engine.schedules.timing import Period, Timing
from engine.services import Services
from gateway.api.bodies import Body
from gateway.api.callers import Calling, CallingInPerson
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page, position
from gateway.api.etags import IfMatch, stale, tag
from gateway.api.problems import problems
from gateway.api.tools import IdempotencyKey, namespaced
from gateway.protected_resource import API_PATH
from gateway.runs.runs import Caller
from gateway.schedule_views import ScheduleShown, ScheduleViews

ScheduleId = Annotated[str, Path(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")]
Words = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class SchedulePlan(Body):
    """What a schedule is to do."""

    name: Words
    tool: str = Field(max_length=64)
    arguments: dict[str, Any] = Field(default={}, description="What the tool is called with at each firing.")
    timing: Timing


class Reason(Body):
    """Why a schedule is paused."""

    reason: Words | None = None


class Offer(Body):
    """To whom a schedule is offered."""

    to: Words | None = Field(description="Somebody's id, subject or name; null takes an offer back.")


def routes(services: Services, registry: Registry, schedules: Schedules) -> APIRouter:
    """Build the router of `/schedules` and what is below it."""
    router = APIRouter(tags=["schedules"])
    desk = _Desk(services, registry, schedules)
    _keep(router, desk)
    _steer(router, desk)
    _hand_over(router, desk)
    return router


class _Desk:
    """What the schedule routes share: which schedules a caller may reach, and how the API shows them."""

    def __init__(self, services: Services, registry: Registry, schedules: Schedules) -> None:
        self.registry = registry
        self.schedules = schedules
        self.views = ScheduleViews(services, schedules)
        self.cursors = Cursors(services.vault, "schedules")

    async def reached(self, schedule_id: str, caller: Caller) -> Schedule:
        """Return a schedule that the caller may see and that their token covers. Raises ScheduleUnknown."""
        schedule = await self.schedules.seen(schedule_id, caller.principal)
        is_theirs = caller.principal.id in {schedule.principal_id, schedule.offered_to}
        # An administrator reaches the schedules of others only in person, not with a token.
        if not (caller.reaches(schedule.tool) and (is_theirs or caller.in_person)):
            raise ScheduleUnknown(f"You have no schedule '{schedule_id}'.")
        return schedule

    async def answer(self, schedule: Schedule, response: Response) -> ScheduleShown:
        """Return the schedule as the API shows it, and set its ETag on the response."""
        tag(response, schedule.version)
        (shown,) = await self.views.of([schedule])
        return shown

    def plan(self, wanted: SchedulePlan, caller: Caller) -> Plan:
        """Return the requested plan. Raises NotAllowed where the caller's token does not cover the tool."""
        caller.require_reach(wanted.tool)
        return Plan(wanted.name, self.registry.tool(wanted.tool), wanted.arguments, wanted.timing)


def _keep(router: APIRouter, desk: _Desk) -> None:
    @router.get(
        "/schedules",
        summary="List your schedules and those offered to you, newest first",
        responses=problems(400, 422),
    )
    async def list_schedules(
        caller: Calling, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[ScheduleShown]:
        found = await desk.schedules.records.of(
            caller.principal.id, limit=limit + 1, after=desk.cursors.place(after), tools=caller.tools
        )
        positions = [position((each.created_at, each.id)) for each in found]
        return desk.cursors.page(await desk.views.of(found), positions, limit)

    @router.post(
        "/schedules",
        summary="Make a schedule, which acts as you",
        status_code=HTTPStatus.CREATED,
        responses=problems(403, 404, 422),
    )
    async def create_schedule(
        caller: CallingInPerson,
        wanted: SchedulePlan,
        response: Response,
        idempotency_key: IdempotencyKey = None,
    ) -> ScheduleShown:
        schedule = await desk.schedules.create(
            desk.plan(wanted, caller), caller.principal, key=namespaced(idempotency_key)
        )
        response.headers["Location"] = f"{API_PATH}/schedules/{schedule.id}"
        return await desk.answer(schedule, response)

    @router.get("/schedules/{schedule_id}", summary="Get a schedule", responses=problems(404, 422))
    async def get_schedule(caller: Calling, schedule_id: ScheduleId, response: Response) -> ScheduleShown:
        return await desk.answer(await desk.reached(schedule_id, caller), response)

    @router.put(
        "/schedules/{schedule_id}",
        summary="Change what a schedule of yours does, and when",
        responses=problems(403, 404, 412, 422, 428),
    )
    async def change_schedule(
        caller: CallingInPerson,
        schedule_id: ScheduleId,
        wanted: SchedulePlan,
        precondition: IfMatch,
        response: Response,
    ) -> ScheduleShown:
        version = precondition.check((await desk.reached(schedule_id, caller)).version)
        changed = await desk.schedules.change(
            schedule_id, desk.plan(wanted, caller), caller.principal, version
        )
        if changed is None:
            raise stale()
        return await desk.answer(changed, response)

    @router.delete(
        "/schedules/{schedule_id}",
        summary="Delete a schedule; runs that it began go on",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(404, 412, 422, 428),
    )
    async def delete_schedule(caller: Calling, schedule_id: ScheduleId, precondition: IfMatch) -> None:
        version = precondition.check((await desk.reached(schedule_id, caller)).version)
        if not await desk.schedules.delete(schedule_id, caller.principal, version):
            raise stale()


def _steer(router: APIRouter, desk: _Desk) -> None:
    @router.post(
        "/schedules/{schedule_id}/pause", summary="Fire no more for now", responses=problems(404, 422)
    )
    async def pause_schedule(
        caller: Calling, schedule_id: ScheduleId, response: Response, why: Reason | None = None
    ) -> ScheduleShown:
        await desk.reached(schedule_id, caller)
        because = None if why is None else why.reason
        return await desk.answer(await desk.schedules.pause(schedule_id, caller.principal, because), response)

    @router.post(
        "/schedules/{schedule_id}/resume",
        summary="Go by the clock again",
        responses=problems(403, 404, 422),
    )
    async def resume_schedule(
        caller: CallingInPerson, schedule_id: ScheduleId, response: Response
    ) -> ScheduleShown:
        tool = desk.registry.tool((await desk.reached(schedule_id, caller)).tool)
        return await desk.answer(await desk.schedules.resume(schedule_id, caller.principal, tool), response)

    @router.post(
        "/schedules/{schedule_id}/trigger",
        summary="Fire now, as the overlap policy allows",
        status_code=HTTPStatus.ACCEPTED,
        responses=problems(403, 404, 409, 422),
    )
    async def trigger_schedule(caller: Calling, schedule_id: ScheduleId, response: Response) -> ScheduleShown:
        schedule = await desk.reached(schedule_id, caller)
        await desk.schedules.trigger(schedule_id, caller.principal)
        return await desk.answer(schedule, response)

    @router.post(
        "/schedules/{schedule_id}/backfill",
        summary="Make up for the firings of a time that is past",
        status_code=HTTPStatus.ACCEPTED,
        responses=problems(403, 404, 409, 422),
    )
    async def backfill_schedule(
        caller: Calling, schedule_id: ScheduleId, period: Period, response: Response
    ) -> ScheduleShown:
        schedule = await desk.reached(schedule_id, caller)
        await desk.schedules.backfill(schedule_id, caller.principal, period)
        return await desk.answer(schedule, response)


def _hand_over(router: APIRouter, desk: _Desk) -> None:
    @router.post(
        "/schedules/{schedule_id}/offer",
        summary="Offer a schedule to somebody, whose it is once they accept",
        responses=problems(403, 404, 422),
    )
    async def offer_schedule(
        caller: CallingInPerson, schedule_id: ScheduleId, offer: Offer, response: Response
    ) -> ScheduleShown:
        await desk.reached(schedule_id, caller)
        return await desk.answer(
            await desk.schedules.offer(schedule_id, caller.principal, offer.to), response
        )

    @router.post(
        "/schedules/{schedule_id}/accept",
        summary="Take over a schedule that was offered to you, as you read it",
        responses=problems(403, 404, 412, 422, 428),
    )
    async def accept_schedule(
        caller: CallingInPerson, schedule_id: ScheduleId, precondition: IfMatch, response: Response
    ) -> ScheduleShown:
        version = precondition.check((await desk.reached(schedule_id, caller)).version)
        accepted = await desk.schedules.accept(schedule_id, caller.principal, version)
        if accepted is None:
            raise stale()
        return await desk.answer(accepted, response)

    @router.post(
        "/schedules/{schedule_id}/decline",
        summary="Leave a schedule that was offered to you to its owner",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(404, 422),
    )
    async def decline_schedule(caller: Calling, schedule_id: ScheduleId) -> None:
        await desk.reached(schedule_id, caller)
        await desk.schedules.decline(schedule_id, caller.principal)
