"""The page on which people create, control and take over schedules. The REST API offers more than its form."""

import json
import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import ValidationError

from engine.errors import ArgumentsInvalid, BylineError, TimingInvalid
from engine.identity.model import Principal
from engine.policy.policy import Policy
from engine.schedules.schedules import ScheduleDraft, Schedules
from engine.schedules.timing import OverlapName, Timing
from engine.tools.registry import Registry
from gateway.browser.page_requests import SignedInSession, require_form
from gateway.browser.rendering import PageProblem, redirect_see_other, render_page
from gateway.browser.sessions import BrowserSession, FormSubmission
from gateway.schedule_views import ScheduleViews

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
_SchedulesForm = Annotated[FormSubmission, Depends(require_form(_SCHEDULES_PATH))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePages:
    """Shows a person's schedules and those offered to them, and does what they decide."""

    schedules: Schedules
    schedule_views: ScheduleViews
    policy: Policy
    tool_registry: Registry

    def build_router(self) -> APIRouter:
        """GET and POST /schedules, and POST /schedules/{id}."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route(_SCHEDULES_PATH, self.show_schedules, methods=["GET"])
        page_router.add_api_route(_SCHEDULES_PATH, self.create_schedule, methods=["POST"])
        page_router.add_api_route(f"{_SCHEDULES_PATH}/{{schedule_id}}", self.steer_schedule, methods=["POST"])
        return page_router

    async def show_schedules(self, browser_session: SignedInSession) -> Response:
        """GET /schedules."""
        return await self._render_page(browser_session)

    async def create_schedule(self, submission: _SchedulesForm) -> Response:
        """POST /schedules."""
        principal, form_fields = submission.browser_session.principal, dict(submission.form_fields)
        try:
            tool = self.tool_registry.find_tool(form_fields.get("tool", ""))
            schedule_plan = ScheduleDraft(
                form_fields.get("name", "").strip()[:200] or tool.declaration.title,
                tool,
                _parse_arguments(form_fields),
                _parse_timing(form_fields),
            )
            # A form that is sent twice creates one schedule.
            await self.schedules.create_schedule(
                schedule_plan, principal, idempotency_key=f"page:{form_fields.get('once', '')}"
            )
        except BylineError as error:
            return await self._render_page(
                submission.browser_session, PageProblem.from_error(error), form_fields
            )
        return redirect_see_other(_SCHEDULES_PATH)

    async def steer_schedule(self, submission: _SchedulesForm, schedule_id: str) -> Response:
        """POST /schedules/{schedule_id}."""
        principal = submission.browser_session.principal
        try:
            is_done = await self._apply_decision(schedule_id, principal, submission.form_fields)
        except BylineError as error:
            return await self._render_page(submission.browser_session, PageProblem.from_error(error))
        if not is_done:
            return await self._render_page(submission.browser_session, PageProblem(_STALE_PAGE_TEXT, 409))
        return redirect_see_other(_SCHEDULES_PATH)

    async def _apply_decision(self, schedule_id: str, principal: Principal, form_fields: Any) -> bool:
        """Do what the pressed button says; False where the schedule changed meanwhile or is gone."""
        schedules = self.schedules
        version_text = form_fields.get("version", "")
        schedule_version = int(version_text) if version_text.isdecimal() and len(version_text) < 10 else 0
        match form_fields.get("decision"):
            case "pause":
                await schedules.pause_schedule(schedule_id, principal)
            case "resume":
                tool = self.tool_registry.find_tool(
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
        page_problem: PageProblem | None = None,
        form_fields: dict[str, str] | None = None,
    ) -> Response:
        principal = browser_session.principal
        visible_schedules = await self.schedules.schedule_records.list_schedules(
            principal.id, limit=_MAX_SHOWN_SCHEDULES
        )
        tool_names = await self.policy.filter_allowed_tools(principal, sorted(self.tool_registry.tools))
        return render_page(
            "schedules.html",
            page_title="Schedules",
            browser_session=browser_session,
            page_problem=page_problem,
            principal=principal,
            schedules=list(
                zip(visible_schedules, await self.schedule_views.build_views(visible_schedules), strict=True)
            ),
            tools=[
                (tool_name, self.tool_registry.tools[tool_name].declaration.title) for tool_name in tool_names
            ],
            overlaps={
                overlap_policy: _OVERLAP_TEXTS[overlap_policy] for overlap_policy in get_args(OverlapName)
            },
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
