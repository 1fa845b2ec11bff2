"""The page on which people choose where they are notified, and of what. It shows no address in full."""

from typing import Final, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.errors import BylineError
from engine.notifications.channels import NOTIFICATION_EVENTS, ChannelKind, NotificationEvent
from engine.services import Services
from gateway.browser.rendering import redirect_see_other, render_page, render_stale_form
from gateway.browser.sessions import BrowserSession, BrowserSessions
from gateway.error_codes import to_http_status
from gateway.sign_in.pages import redirect_to_sign_in

_NOTIFICATIONS_PATH: Final = "/notifications"
_CHANNEL_KIND_TITLES: Final = {
    "email": "Email",
    "slack": "Slack or a chat that takes its webhooks",
    "webhook": "My own webhook",
}
_EVENT_TITLES: Final[dict[NotificationEvent, str]] = {
    "waiting": "A run waits for me",
    "ended": "A run ended",
    "chat_waiting": "A run that I began in a chat waits for me",
    "chat_ended": "A run that I began in a chat ended",
}


def build_notification_pages(services: Services) -> APIRouter:
    """GET and POST /notifications."""
    page_router = APIRouter(include_in_schema=False)
    page_handlers = NotificationPages(services)
    page_router.add_api_route(_NOTIFICATIONS_PATH, page_handlers.show_channels, methods=["GET"])
    page_router.add_api_route(_NOTIFICATIONS_PATH, page_handlers.add_channel, methods=["POST"])
    page_router.add_api_route(
        f"{_NOTIFICATIONS_PATH}/{{channel_id}}", page_handlers.change_channel, methods=["POST"]
    )
    return page_router


class NotificationPages:
    """Shows a person's channels, and adds, tests and removes them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._browser_sessions = BrowserSessions(services)

    async def show_channels(self, request: Request) -> Response:
        """GET /notifications."""
        browser_session = await self._browser_sessions.find_session(request)
        if browser_session is None:
            return redirect_to_sign_in(_NOTIFICATIONS_PATH)
        return await self._render_page(browser_session)

    async def add_channel(self, request: Request) -> Response:
        """POST /notifications."""
        submission = await self._browser_sessions.read_submission(request)
        if submission is None:
            return render_stale_form(_NOTIFICATIONS_PATH)
        browser_session, principal, form_fields = (
            submission.browser_session,
            submission.browser_session.principal,
            submission.form_fields,
        )
        channel_kind = form_fields.get("kind", "")
        if channel_kind not in _CHANNEL_KIND_TITLES:
            return await self._render_page(
                browser_session, problem_text="Choose how you want to be told.", status_code=422
            )
        try:
            channel, destination = await self._services.notifier.add_channel(
                principal,
                cast("ChannelKind", channel_kind),
                form_fields.get("address", ""),
                [event_name for event_name in NOTIFICATION_EVENTS if event_name in form_fields],
            )
        except BylineError as error:
            return await self._render_page(
                browser_session, problem_text=str(error), status_code=to_http_status(error)
            )
        if destination.secret is None:
            return redirect_see_other(_NOTIFICATIONS_PATH)
        return await self._render_page(
            browser_session, confirmation=f"{channel.label} was added.", channel_secret=destination.secret
        )

    async def change_channel(self, request: Request, channel_id: str) -> Response:
        """POST /notifications/{channel_id}."""
        submission = await self._browser_sessions.read_submission(request)
        if submission is None:
            return render_stale_form(_NOTIFICATIONS_PATH)
        browser_session, principal = submission.browser_session, submission.browser_session.principal
        try:
            if submission.form_fields.get("decision") == "remove":
                await self._services.notification_channels.remove_channel(channel_id, principal)
                return redirect_see_other(_NOTIFICATIONS_PATH)
            await self._services.notifier.send_test_note(channel_id, principal)
        except BylineError as error:
            return await self._render_page(
                browser_session, problem_text=str(error), status_code=to_http_status(error)
            )
        return await self._render_page(
            browser_session, confirmation="A note was sent. Look whether it arrived."
        )

    async def _render_page(
        self,
        browser_session: BrowserSession,
        *,
        confirmation: str | None = None,
        problem_text: str | None = None,
        channel_secret: str | None = None,
        status_code: int = 200,
    ) -> Response:
        return render_page(
            "notifications.html",
            page_title="Where you are told",
            browser_session=browser_session,
            status_code=status_code,
            channels=await self._services.notification_channels.list_channels(browser_session.principal.id),
            kinds=_CHANNEL_KIND_TITLES,
            events=_EVENT_TITLES,
            told=confirmation,
            problem=problem_text,
            secret=channel_secret,
        )
