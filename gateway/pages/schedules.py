"""The page on which people create, control and take over schedules. The REST API offers more than its form."""

import json
import secrets
from typing import Any, Final, get_args

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from engine.errors import ArgumentsInvalid, BylineError, TimingInvalid
from engine.identity.model import Principal
from engine.registry import Registry
from engine.schedules.schedules import Plan, Schedules
from engine.schedules.timing import Overlap, Timing
from engine.services import Services
from gateway.browser.rendering import on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.errors import http_status
from gateway.schedule_views import ScheduleViews
from gateway.sign_in.pages import to_sign_in

_PATH: Final = "/schedules"
_MOST: Final = 100
_STALE: Final = "It was changed since you opened the page. Look at it again, and then decide."
_OVERLAPS: Final = {
    "skip": "skip the new time",
    "buffer_one": "fire once more afterwards",
    "buffer_all": "fire for each afterwards",
    "cancel_other": "cancel the earlier run",
    "terminate_other": "terminate the earlier run",
    "allow_all": "fire all the same",
}


def schedule_pages(services: Services, registry: Registry, schedules: Schedules) -> APIRouter:
    """GET and POST /schedules."""
    router = APIRouter(include_in_schema=False)
    pages = SchedulePages(services, registry, schedules)
    router.add_api_route(_PATH, pages.show, methods=["GET"])
    router.add_api_route(_PATH, pages.create, methods=["POST"])
    router.add_api_route(f"{_PATH}/{{schedule_id}}", pages.steer, methods=["POST"])
    return router


class SchedulePages:
    """Shows a person's schedules and those offered to them, and does what they decide."""

    def __init__(self, services: Services, registry: Registry, schedules: Schedules) -> None:
        self._services = services
        self._registry = registry
        self._schedules = schedules
        self._views = ScheduleViews(services, schedules)
        self._sessions = Sessions(services)

    async def show(self, request: Request) -> Response:
        """GET /schedules."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(_PATH)
        return await self._page(session, session.principal)

    async def create(self, request: Request) -> Response:
        """POST /schedules."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        principal, fields = submission.session.principal, dict(submission.fields)
        try:
            tool = self._registry.tool(fields.get("tool", ""))
            wanted = Plan(
                fields.get("name", "").strip()[:200] or tool.declaration.title,
                tool,
                _arguments(fields),
                _timing(fields),
            )
            # A form that is sent twice creates one schedule.
            await self._schedules.create(wanted, principal, key=f"page:{fields.get('once', '')}")
        except BylineError as error:
            return await self._page(
                submission.session, principal, problem=str(error), status=http_status(error), fields=fields
            )
        return on_to(_PATH)

    async def steer(self, request: Request, schedule_id: str) -> Response:
        """POST /schedules/{schedule_id}."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        principal = submission.session.principal
        try:
            done = await self._decide(schedule_id, principal, submission.fields)
        except BylineError as error:
            return await self._page(
                submission.session, principal, problem=str(error), status=http_status(error)
            )
        if not done:
            return await self._page(submission.session, principal, problem=_STALE, status=409)
        return on_to(_PATH)

    async def _decide(self, schedule_id: str, by: Principal, fields: Any) -> bool:
        """Do what the pressed button says; False where the schedule changed meanwhile or is gone."""
        schedules = self._schedules
        told = fields.get("version", "")
        version = int(told) if told.isdecimal() and len(told) < 10 else 0
        match fields.get("decision"):
            case "pause":
                await schedules.pause(schedule_id, by)
            case "resume":
                tool = self._registry.tool((await schedules.seen(schedule_id, by)).tool)
                await schedules.resume(schedule_id, by, tool)
            case "trigger":
                await schedules.trigger(schedule_id, by)
            case "delete":
                return await schedules.delete(schedule_id, by, version)
            case "offer":
                await schedules.offer(schedule_id, by, fields.get("to", "").strip() or None)
            case "accept":
                return await schedules.accept(schedule_id, by, version) is not None
            case "decline":
                await schedules.decline(schedule_id, by)
        return True

    async def _page(
        self,
        session: BrowserSession,
        principal: Principal,
        *,
        problem: str | None = None,
        status: int = 200,
        fields: dict[str, str] | None = None,
    ) -> Response:
        found = await self._schedules.records.of(principal.id, limit=_MOST)
        tools = await self._services.policy.allowed(principal, sorted(self._registry.tools))
        return page(
            "schedules.html",
            title="Schedules",
            session=session,
            status=status,
            principal=principal,
            schedules=list(zip(found, await self._views.of(found), strict=True)),
            tools=[(tool, self._registry.tools[tool].declaration.title) for tool in tools],
            overlaps={overlap: _OVERLAPS[overlap] for overlap in get_args(Overlap)},
            problem=problem,
            fields=fields or {},
            once=secrets.token_hex(16),
        )


def _arguments(fields: dict[str, str]) -> dict[str, Any]:
    try:
        given = json.loads(fields.get("arguments", "").strip() or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise ArgumentsInvalid('Write the arguments as a JSON object, such as {"account_id": "001"}.')
    return given


def _timing(fields: dict[str, str]) -> Timing:
    cron, minutes = fields.get("cron", "").strip(), fields.get("minutes", "").strip()
    try:
        return Timing.model_validate(
            {
                "cron": [cron] if cron else [],
                "intervals": [{"every_seconds": int(minutes) * 60}] if minutes else [],
                "time_zone": fields.get("time_zone", "").strip() or "UTC",
                "overlap": fields.get("overlap") or "skip",
            }
        )
    except ValidationError as error:
        told = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in error.errors())
        raise TimingInvalid(f"When? {told}.") from None
    except ValueError:
        raise TimingInvalid("Write the minutes as a number.") from None
