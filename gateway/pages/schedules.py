"""The page on which people create, control and take over schedules. The REST API offers more than its form."""

import json
import secrets
from typing import Any, Final, get_args

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from engine.errors import ArgumentsInvalid, BylineError, TimingInvalid
from engine.identity.model import Principal
from engine.schedules.schedules import ScheduleDraft, Schedules
from engine.schedules.timing import OverlapName, Timing
from engine.services import Services
from engine.tools.registry import Registry
from gateway.browser.rendering import redirect_see_other, render_page, render_stale_form
from gateway.browser.sessions import BrowserSession, BrowserSessions
from gateway.error_codes import to_http_status
from gateway.schedule_views import ScheduleViews
from gateway.sign_in.pages import redirect_to_sign_in

_SCHEDULES_PATH: Final = "/schedules"
_MAX_SHOWN_SCHEDULES: Final = 100
_STALE_PAGE_TEXT: Final = "It was changed since you opened the page. Look at it again, and then decide."
_OVERLAP_TEXTS: Final = {
    "skip": "skip the new time",
    "buffer_one": "fire once more afterwards",
    "buffer_all": "fire for each afterwards",
    "cancel_other": "cancel the earlier run",
    "terminate_other": "terminate the earlier run",
    "allow_all": "fire all the same",
}


def build_schedule_pages(services: Services, registry: Registry, schedules: Schedules) -> APIRouter:
    """GET and POST /schedules."""
    page_router = APIRouter(include_in_schema=False)
    page_handlers = SchedulePages(services, registry, schedules)
    page_router.add_api_route(_SCHEDULES_PATH, page_handlers.show_schedules, methods=["GET"])
    page_router.add_api_route(_SCHEDULES_PATH, page_handlers.create_schedule, methods=["POST"])
    page_router.add_api_route(
        f"{_SCHEDULES_PATH}/{{schedule_id}}", page_handlers.steer_schedule, methods=["POST"]
    )
    return page_router


class SchedulePages:
    """Shows a person's schedules and those offered to them, and does what they decide."""

    def __init__(self, services: Services, registry: Registry, schedules: Schedules) -> None:
        self._services = services
        self._tool_registry = registry
        self._schedules = schedules
        self._schedule_views = ScheduleViews(services, schedules)
        self._browser_sessions = BrowserSessions(services)

    async def show_schedules(self, request: Request) -> Response:
        """GET /schedules."""
        browser_session = await self._browser_sessions.find_session(request)
        if browser_session is None:
            return redirect_to_sign_in(_SCHEDULES_PATH)
        return await self._render_page(browser_session, browser_session.principal)

    async def create_schedule(self, request: Request) -> Response:
        """POST /schedules."""
        submission = await self._browser_sessions.read_submission(request)
        if submission is None:
            return render_stale_form(_SCHEDULES_PATH)
        principal, form_fields = submission.browser_session.principal, dict(submission.form_fields)
        try:
            tool = self._tool_registry.find_tool(form_fields.get("tool", ""))
            schedule_plan = ScheduleDraft(
                form_fields.get("name", "").strip()[:200] or tool.declaration.title,
                tool,
                _parse_arguments(form_fields),
                _parse_timing(form_fields),
            )
            # A form that is sent twice creates one schedule.
            await self._schedules.create_schedule(
                schedule_plan, principal, idempotency_key=f"page:{form_fields.get('once', '')}"
            )
        except BylineError as error:
            return await self._render_page(
                submission.browser_session,
                principal,
                problem_text=str(error),
                status_code=to_http_status(error),
                form_fields=form_fields,
            )
        return redirect_see_other(_SCHEDULES_PATH)

    async def steer_schedule(self, request: Request, schedule_id: str) -> Response:
        """POST /schedules/{schedule_id}."""
        submission = await self._browser_sessions.read_submission(request)
        if submission is None:
            return render_stale_form(_SCHEDULES_PATH)
        principal = submission.browser_session.principal
        try:
            is_done = await self._apply_decision(schedule_id, principal, submission.form_fields)
        except BylineError as error:
            return await self._render_page(
                submission.browser_session,
                principal,
                problem_text=str(error),
                status_code=to_http_status(error),
            )
        if not is_done:
            return await self._render_page(
                submission.browser_session, principal, problem_text=_STALE_PAGE_TEXT, status_code=409
            )
        return redirect_see_other(_SCHEDULES_PATH)

    async def _apply_decision(self, schedule_id: str, principal: Principal, form_fields: Any) -> bool:
        """Do what the pressed button says; False where the schedule changed meanwhile or is gone."""
        schedules = self._schedules
        version_text = form_fields.get("version", "")
        schedule_version = int(version_text) if version_text.isdecimal() and len(version_text) < 10 else 0
        match form_fields.get("decision"):
            case "pause":
                await schedules.pause_schedule(schedule_id, principal)
            case "resume":
                tool = self._tool_registry.find_tool(
                    (await schedules.find_visible_schedule(schedule_id, principal)).tool_name
                )
                await schedules.resume_schedule(schedule_id, principal, tool)
            case "trigger":
                await schedules.trigger_schedule(schedule_id, principal)
            case "delete":
                return await schedules.delete_schedule(schedule_id, principal, schedule_version)
            case "offer":
                await schedules.offer_schedule(
                    schedule_id, principal, form_fields.get("to", "").strip() or None
                )
            case "accept":
                return await schedules.accept_schedule(schedule_id, principal, schedule_version) is not None
            case "decline":
                await schedules.decline_schedule(schedule_id, principal)
        return True

    async def _render_page(
        self,
        browser_session: BrowserSession,
        principal: Principal,
        *,
        problem_text: str | None = None,
        status_code: int = 200,
        form_fields: dict[str, str] | None = None,
    ) -> Response:
        visible_schedules = await self._schedules.schedule_records.list_schedules(
            principal.id, limit=_MAX_SHOWN_SCHEDULES
        )
        tool_names = await self._services.policy.filter_allowed_tools(
            principal, sorted(self._tool_registry.tools)
        )
        return render_page(
            "schedules.html",
            page_title="Schedules",
            browser_session=browser_session,
            status_code=status_code,
            principal=principal,
            schedules=list(
                zip(visible_schedules, await self._schedule_views.build_views(visible_schedules), strict=True)
            ),
            tools=[
                (tool_name, self._tool_registry.tools[tool_name].declaration.title)
                for tool_name in tool_names
            ],
            overlaps={
                overlap_policy: _OVERLAP_TEXTS[overlap_policy] for overlap_policy in get_args(OverlapName)
            },
            problem=problem_text,
            fields=form_fields or {},
            once=secrets.token_hex(16),
        )


def _parse_arguments(form_fields: dict[str, str]) -> dict[str, Any]:
    try:
        tool_arguments = json.loads(form_fields.get("arguments", "").strip() or "{}")
    except (ValueError, RecursionError):
        tool_arguments = None
    if not isinstance(tool_arguments, dict):
        raise ArgumentsInvalid('Write the arguments as a JSON object, such as {"account_id": "001"}.')
    return tool_arguments


def _parse_timing(form_fields: dict[str, str]) -> Timing:
    cron_text, minutes_text = form_fields.get("cron", "").strip(), form_fields.get("minutes", "").strip()
    try:
        return Timing.model_validate(
            {
                "cron": [cron_text] if cron_text else [],
                "intervals": [{"every_seconds": int(minutes_text) * 60}] if minutes_text else [],
                "time_zone": form_fields.get("time_zone", "").strip() or "UTC",
                "overlap": form_fields.get("overlap") or "skip",
            }
        )
    except ValidationError as error:
        problem_text = "; ".join(
            str(field_error["msg"]).removeprefix("Value error, ") for field_error in error.errors()
        )
        raise TimingInvalid(f"When? {problem_text}.") from None
    except ValueError:
        raise TimingInvalid("Write the minutes as a number.") from None
