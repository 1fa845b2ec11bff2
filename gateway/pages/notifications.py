"""The page on which people choose where they are notified, and of what. It shows no address in full."""

from typing import Final, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.errors import BylineError
from engine.notifications.channels import EVENTS, ChannelKind, Event
from engine.services import Services
from gateway.browser.rendering import on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.errors import http_status
from gateway.sign_in.pages import to_sign_in

_PATH: Final = "/notifications"
_KINDS: Final = {
    "email": "Email",
    "slack": "Slack or a chat that takes its webhooks",
    "webhook": "My own webhook",
}
_EVENTS: Final[dict[Event, str]] = {
    "waiting": "A run waits for me",
    "ended": "A run ended",
    "chat_waiting": "A run that I began in a chat waits for me",
    "chat_ended": "A run that I began in a chat ended",
}


def notification_pages(services: Services) -> APIRouter:
    """GET and POST /notifications."""
    router = APIRouter(include_in_schema=False)
    pages = NotificationPages(services)
    router.add_api_route(_PATH, pages.show, methods=["GET"])
    router.add_api_route(_PATH, pages.add, methods=["POST"])
    router.add_api_route(f"{_PATH}/{{channel_id}}", pages.change, methods=["POST"])
    return router


class NotificationPages:
    """Shows a person's channels, and adds, tests and removes them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sessions = Sessions(services)

    async def show(self, request: Request) -> Response:
        """GET /notifications."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(_PATH)
        return await self._page(session)

    async def add(self, request: Request) -> Response:
        """POST /notifications."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        session, principal, fields = submission.session, submission.session.principal, submission.fields
        kind = fields.get("kind", "")
        if kind not in _KINDS:
            return await self._page(session, problem="Choose how you want to be told.", status=422)
        try:
            channel, destination = await self._services.notifier.add(
                principal,
                cast("ChannelKind", kind),
                fields.get("address", ""),
                [event for event in EVENTS if event in fields],
            )
        except BylineError as error:
            return await self._page(session, problem=str(error), status=http_status(error))
        if destination.secret is None:
            return on_to(_PATH)
        return await self._page(session, told=f"{channel.label} was added.", secret=destination.secret)

    async def change(self, request: Request, channel_id: str) -> Response:
        """POST /notifications/{channel_id}."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        session, principal = submission.session, submission.session.principal
        try:
            if submission.fields.get("decision") == "remove":
                await self._services.channels.remove(channel_id, principal)
                return on_to(_PATH)
            await self._services.notifier.test(channel_id, principal)
        except BylineError as error:
            return await self._page(session, problem=str(error), status=http_status(error))
        return await self._page(session, told="A note was sent. Look whether it arrived.")

    async def _page(
        self,
        session: BrowserSession,
        *,
        told: str | None = None,
        problem: str | None = None,
        secret: str | None = None,
        status: int = 200,
    ) -> Response:
        return page(
            "notifications.html",
            title="Where you are told",
            session=session,
            status=status,
            channels=await self._services.channels.of(session.principal.id),
            kinds=_KINDS,
            events=_EVENTS,
            told=told,
            problem=problem,
            secret=secret,
        )
