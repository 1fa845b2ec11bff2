"""The page on which people create and revoke their API tokens. A token is shown once, when it was created."""

from datetime import timedelta
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.callers.api_tokens import NewApiToken
from engine.errors import ApiTokenInvalid, BylineError
from engine.identity.model import Principal
from engine.registry import Registry
from engine.services import Services
from gateway.browser.rendering import on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.errors import http_status
from gateway.sign_in.pages import to_sign_in

_PATH: Final = "/tokens"
_DAYS: Final = (7, 30, 90, 365)
_TOOL_FIELD: Final = "tool:"


def token_pages(services: Services, registry: Registry) -> APIRouter:
    """GET and POST /tokens, and POST /tokens/{id}."""
    router = APIRouter(include_in_schema=False)
    pages = TokenPages(services, registry)
    router.add_api_route(_PATH, pages.show, methods=["GET"])
    router.add_api_route(_PATH, pages.create, methods=["POST"])
    router.add_api_route(f"{_PATH}/{{token_id}}", pages.revoke, methods=["POST"])
    return router


class TokenPages:
    """Shows a person's API tokens, and creates and revokes them."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._registry = registry
        self._sessions = Sessions(services)
        longest = services.settings.gateway.longest_api_token_life
        self._days = [days for days in _DAYS if timedelta(days=days) <= longest] or [max(longest.days, 1)]

    async def show(self, request: Request) -> Response:
        """GET /tokens."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(_PATH)
        return await self._page(session, session.principal)

    async def create(self, request: Request) -> Response:
        """POST /tokens."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        principal, fields = submission.session.principal, submission.fields
        chosen = [name for name in self._registry.tools if f"{_TOOL_FIELD}{name}" in fields]
        try:
            days = fields.get("days", "")
            if not (days.isascii() and days.isdecimal() and int(days[:6]) in self._days):
                raise ApiTokenInvalid("Choose how long the token is to live.")
            made = await self._services.api_tokens.create(
                principal,
                fields.get("name", ""),
                tools=None if fields.get("reach") == "all" else chosen,
                life=timedelta(days=int(days)),
            )
        except BylineError as error:
            return await self._page(
                submission.session, principal, problem=str(error), status=http_status(error)
            )
        return await self._page(submission.session, principal, made=made)

    async def revoke(self, request: Request, token_id: str) -> Response:
        """POST /tokens/{token_id}."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        principal = submission.session.principal
        try:
            await self._services.api_tokens.revoke(token_id, principal)
        except BylineError as error:
            return await self._page(
                submission.session, principal, problem=str(error), status=http_status(error)
            )
        return on_to(_PATH)

    async def _page(
        self,
        session: BrowserSession,
        principal: Principal,
        *,
        made: NewApiToken | None = None,
        problem: str | None = None,
        status: int = 200,
    ) -> Response:
        tools = sorted(self._registry.tools.items())
        allowed = set(await self._services.policy.allowed(principal, [name for name, _ in tools]))
        return page(
            "tokens.html",
            title="API tokens",
            session=session,
            status=status,
            tokens=await self._services.api_tokens.of(principal),
            made=made,
            problem=problem,
            tools=[
                (f"{_TOOL_FIELD}{name}", tool.declaration.title) for name, tool in tools if name in allowed
            ],
            days=self._days,
        )
