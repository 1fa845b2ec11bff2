"""The page on which people choose where they are notified, and of what. It shows no address in full."""

from dataclasses import dataclass
from typing import Annotated, Final, cast

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from engine.errors import BylineError
from engine.notifications.channels import (
    NOTIFICATION_EVENTS,
    ChannelKind,
    NotificationChannels,
    NotificationEvent,
)
from engine.notifications.notifier import RunNotifier
from gateway.browser.page_requests import SignedInSession, require_form
from gateway.browser.rendering import PageProblem, redirect_see_other, render_page
from gateway.browser.sessions import BrowserSession, FormSubmission

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
_NotificationsForm = Annotated[FormSubmission, Depends(require_form(_NOTIFICATIONS_PATH))]


@dataclass(frozen=True, slots=True)
class NotificationPages:
    """Shows a person's channels, and adds, tests and removes them."""

    notification_channels: NotificationChannels
    notifier: RunNotifier

    def build_router(self) -> APIRouter:
        """GET and POST /notifications, and POST /notifications/{id}."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route(_NOTIFICATIONS_PATH, self.show_channels, methods=["GET"])
        page_router.add_api_route(_NOTIFICATIONS_PATH, self.add_channel, methods=["POST"])
        page_router.add_api_route(
            f"{_NOTIFICATIONS_PATH}/{{channel_id}}", self.change_channel, methods=["POST"]
        )
        return page_router

    async def show_channels(self, browser_session: SignedInSession) -> Response:
        """GET /notifications."""
        return await self._render_page(browser_session)

    async def add_channel(self, submission: _NotificationsForm) -> Response:
        """POST /notifications."""
        browser_session, principal, form_fields = (
            submission.browser_session,
            submission.browser_session.principal,
            submission.form_fields,
        )
        channel_kind = form_fields.get("kind", "")
        if channel_kind not in _CHANNEL_KIND_TITLES:
            page_problem = PageProblem("Choose how you want to be told.", 422)
            return await self._render_page(browser_session, page_problem=page_problem)
        try:
            channel, destination = await self.notifier.add_channel(
                principal,
                cast("ChannelKind", channel_kind),
                form_fields.get("address", ""),
                [event_name for event_name in NOTIFICATION_EVENTS if event_name in form_fields],
            )
        except BylineError as error:
            return await self._render_page(browser_session, page_problem=PageProblem.from_error(error))
        if destination.secret is None:
            return redirect_see_other(_NOTIFICATIONS_PATH)
        return await self._render_page(
            browser_session, confirmation=f"{channel.label} was added.", channel_secret=destination.secret
        )

    async def change_channel(self, submission: _NotificationsForm, channel_id: str) -> Response:
        """POST /notifications/{channel_id}."""
        browser_session, principal = submission.browser_session, submission.browser_session.principal
        try:
            if submission.form_fields.get("decision") == "remove":
                await self.notification_channels.remove_channel(channel_id, principal)
                return redirect_see_other(_NOTIFICATIONS_PATH)
            await self.notifier.send_test_note(channel_id, principal)
        except BylineError as error:
            return await self._render_page(browser_session, page_problem=PageProblem.from_error(error))
        return await self._render_page(
            browser_session, confirmation="A note was sent. Look whether it arrived."
        )

    async def _render_page(
        self,
        browser_session: BrowserSession,
        *,
        confirmation: str | None = None,
        channel_secret: str | None = None,
        page_problem: PageProblem | None = None,
    ) -> Response:
        return render_page(
            "notifications.html",
            page_title="Where you are told",
            browser_session=browser_session,
            page_problem=page_problem,
            channels=await self.notification_channels.list_channels(browser_session.principal.id),
            kinds=_CHANNEL_KIND_TITLES,
            events=_EVENT_TITLES,
            told=confirmation,
            secret=channel_secret,
        )
