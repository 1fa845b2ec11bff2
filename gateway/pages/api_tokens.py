"""The page on which people create and revoke their API tokens. A token is shown once, when it was created."""

from datetime import timedelta
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.callers.api_tokens import NewApiToken
from engine.errors import ApiTokenInvalid, BylineError
from engine.identity.model import Principal
from engine.services import Services
from engine.tools.registry import Registry
from gateway.browser.rendering import redirect_see_other, render_page, render_stale_form
from gateway.browser.sessions import BrowserSession, BrowserSessions
from gateway.error_codes import to_http_status
from gateway.sign_in.pages import redirect_to_sign_in

_TOKENS_PATH: Final = "/tokens"
_LIFETIMES_DAYS: Final = (7, 30, 90, 365)
_TOOL_FIELD_PREFIX: Final = "tool:"


def build_token_pages(services: Services, registry: Registry) -> APIRouter:
    """GET and POST /tokens, and POST /tokens/{id}."""
    page_router = APIRouter(include_in_schema=False)
    page_handlers = TokenPages(services, registry)
    page_router.add_api_route(_TOKENS_PATH, page_handlers.show_tokens, methods=["GET"])
    page_router.add_api_route(_TOKENS_PATH, page_handlers.create_token, methods=["POST"])
    page_router.add_api_route(f"{_TOKENS_PATH}/{{token_id}}", page_handlers.revoke_token, methods=["POST"])
    return page_router


class TokenPages:
    """Shows a person's API tokens, and creates and revokes them."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._tool_registry = registry
        self._browser_sessions = BrowserSessions(services)
        longest_life = services.settings.gateway.longest_api_token_life
        self._lifetimes_days = [
            lifetime_days
            for lifetime_days in _LIFETIMES_DAYS
            if timedelta(days=lifetime_days) <= longest_life
        ] or [max(longest_life.days, 1)]

    async def show_tokens(self, request: Request) -> Response:
        """GET /tokens."""
        browser_session = await self._browser_sessions.find_session(request)
        if browser_session is None:
            return redirect_to_sign_in(_TOKENS_PATH)
        return await self._render_page(browser_session, browser_session.principal)

    async def create_token(self, request: Request) -> Response:
        """POST /tokens."""
        submission = await self._browser_sessions.read_submission(request)
        if submission is None:
            return render_stale_form(_TOKENS_PATH)
        principal, form_fields = submission.browser_session.principal, submission.form_fields
        chosen_tools = [
            tool_name
            for tool_name in self._tool_registry.tools
            if f"{_TOOL_FIELD_PREFIX}{tool_name}" in form_fields
        ]
        try:
            days_text = form_fields.get("days", "")
            if not (
                days_text.isascii() and days_text.isdecimal() and int(days_text[:6]) in self._lifetimes_days
            ):
                raise ApiTokenInvalid("Choose how long the token is to live.")
            new_token = await self._services.api_tokens.create_token(
                principal,
                form_fields.get("name", ""),
                tool_names=None if form_fields.get("reach") == "all" else chosen_tools,
                lifetime=timedelta(days=int(days_text)),
            )
        except BylineError as error:
            return await self._render_page(
                submission.browser_session,
                principal,
                problem_text=str(error),
                status_code=to_http_status(error),
            )
        return await self._render_page(submission.browser_session, principal, new_token=new_token)

    async def revoke_token(self, request: Request, token_id: str) -> Response:
        """POST /tokens/{token_id}."""
        submission = await self._browser_sessions.read_submission(request)
        if submission is None:
            return render_stale_form(_TOKENS_PATH)
        principal = submission.browser_session.principal
        try:
            await self._services.api_tokens.revoke_token(token_id, principal)
        except BylineError as error:
            return await self._render_page(
                submission.browser_session,
                principal,
                problem_text=str(error),
                status_code=to_http_status(error),
            )
        return redirect_see_other(_TOKENS_PATH)

    async def _render_page(
        self,
        browser_session: BrowserSession,
        principal: Principal,
        *,
        new_token: NewApiToken | None = None,
        problem_text: str | None = None,
        status_code: int = 200,
    ) -> Response:
        tools_by_name = sorted(self._tool_registry.tools.items())
        allowed_names = set(
            await self._services.policy.filter_allowed_tools(
                principal, [tool_name for tool_name, _ in tools_by_name]
            )
        )
        return render_page(
            "tokens.html",
            page_title="API tokens",
            browser_session=browser_session,
            status_code=status_code,
            tokens=await self._services.api_tokens.list_tokens(principal),
            made=new_token,
            problem=problem_text,
            tools=[
                (f"{_TOOL_FIELD_PREFIX}{tool_name}", tool.declaration.title)
                for tool_name, tool in tools_by_name
                if tool_name in allowed_names
            ],
            days=self._lifetimes_days,
        )
