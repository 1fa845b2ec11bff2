"""The page on which people create and revoke their API tokens. A token is shown once, when it was created."""

from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from engine.callers.api_tokens import ApiTokens, NewApiToken
from engine.errors import ApiTokenInvalid, BylineError
from engine.policy.policy import Policy
from engine.tools.registry import Registry
from gateway.browser.page_requests import SignedInSession, require_form
from gateway.browser.rendering import PageProblem, redirect_see_other, render_page
from gateway.browser.sessions import BrowserSession, FormSubmission

_TOKENS_PATH: Final = "/tokens"
_LIFETIMES_DAYS: Final = (7, 30, 90, 365)
_TOOL_FIELD_PREFIX: Final = "tool:"
_TokensForm = Annotated[FormSubmission, Depends(require_form(_TOKENS_PATH))]


class TokenPages:
    """Shows a person's API tokens, and creates and revokes them. None lives longer than `longest_life`."""

    def __init__(
        self, api_tokens: ApiTokens, policy: Policy, registry: Registry, *, longest_life: timedelta
    ) -> None:
        self._api_tokens = api_tokens
        self._policy = policy
        self._tool_registry = registry
        self._lifetimes_days = [
            lifetime_days
            for lifetime_days in _LIFETIMES_DAYS
            if timedelta(days=lifetime_days) <= longest_life
        ] or [max(longest_life.days, 1)]

    def build_router(self) -> APIRouter:
        """GET and POST /tokens, and POST /tokens/{id}."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route(_TOKENS_PATH, self.show_tokens, methods=["GET"])
        page_router.add_api_route(_TOKENS_PATH, self.create_token, methods=["POST"])
        page_router.add_api_route(f"{_TOKENS_PATH}/{{token_id}}", self.revoke_token, methods=["POST"])
        return page_router

    async def show_tokens(self, browser_session: SignedInSession) -> Response:
        """GET /tokens."""
        return await self._render_page(browser_session)

    async def create_token(self, submission: _TokensForm) -> Response:
        """POST /tokens."""
        form_fields = submission.form_fields
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
            new_token = await self._api_tokens.create_token(
                submission.browser_session.principal,
                form_fields.get("name", ""),
                tool_names=None if form_fields.get("reach") == "all" else chosen_tools,
                lifetime=timedelta(days=int(days_text)),
            )
        except BylineError as error:
            return await self._render_page(
                submission.browser_session, page_problem=PageProblem.from_error(error)
            )
        return await self._render_page(submission.browser_session, new_token=new_token)

    async def revoke_token(self, submission: _TokensForm, token_id: str) -> Response:
        """POST /tokens/{token_id}."""
        try:
            await self._api_tokens.revoke_token(token_id, submission.browser_session.principal)
        except BylineError as error:
            return await self._render_page(
                submission.browser_session, page_problem=PageProblem.from_error(error)
            )
        return redirect_see_other(_TOKENS_PATH)

    async def _render_page(
        self,
        browser_session: BrowserSession,
        *,
        new_token: NewApiToken | None = None,
        page_problem: PageProblem | None = None,
    ) -> Response:
        principal = browser_session.principal
        tools_by_name = sorted(self._tool_registry.tools.items())
        allowed_names = set(
            await self._policy.filter_allowed_tools(principal, [tool_name for tool_name, _ in tools_by_name])
        )
        return render_page(
            "tokens.html",
            page_title="API tokens",
            browser_session=browser_session,
            page_problem=page_problem,
            tokens=await self._api_tokens.list_tokens(principal),
            made=new_token,
            tools=[
                (f"{_TOOL_FIELD_PREFIX}{tool_name}", tool.declaration.title)
                for tool_name, tool in tools_by_name
                if tool_name in allowed_names
            ],
            days=self._lifetimes_days,
        )
