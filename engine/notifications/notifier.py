"""Notifies people, on the channels they chose, that a run waits or ended. Only the database decides who receives it."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import structlog
from sqlalchemy.exc import SQLAlchemyError

from engine.authorization.request_texts import describe_awaited_action
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.db.database import utc_now
from engine.errors import ArgumentsInvalid, TooSoon
from engine.identity.model import Identity, Principal, TriggerKind
from engine.identity.principals import Principals
from engine.identity.roles import ADMINISTRATOR_ROLE, Roles
from engine.notifications import messages
from engine.notifications.channels import (
    ChannelDestination,
    ChannelKind,
    NotificationChannel,
    NotificationChannels,
    NotificationEvent,
    to_notification_event,
)
from engine.notifications.mail import MailSender
from engine.notifications.messages import ChannelNote, WaitDescription
from engine.notifications.posts import NotePoster
from engine.notifications.workflow import DueNote
from engine.questions.questions import Question, Questions
from engine.runs.records import Run, RunRecords
from engine.waiting.page_paths import PageLinks
from engine.wire import NOTE_NAMESPACE

_TEST_INTERVAL_SECONDS = 30

log = structlog.get_logger()


class RunNotifier:
    """Notifies people for the gateway and the worker, and checks what these pass in against what is stored."""

    def __init__(
        self,
        notification_channels: NotificationChannels,
        mail_sender: MailSender,
        note_poster: NotePoster,
        authorization_requests: AuthorizationRequests,
        questions: Questions,
        run_records: RunRecords,
        principals: Principals,
        roles: Roles,
        catalogue: ConnectionCatalogue,
        page_links: PageLinks,
    ) -> None:
        self._notification_channels = notification_channels
        self._mail_sender = mail_sender
        self._note_poster = note_poster
        self._authorization_requests = authorization_requests
        self._questions = questions
        self._run_records = run_records
        self._principals = principals
        self._roles = roles
        self._catalogue = catalogue
        self._page_links = page_links

    async def add_channel(
        self,
        principal: Principal,
        channel_kind: ChannelKind,
        address: str,
        chosen_events: Collection[NotificationEvent],
    ) -> tuple[NotificationChannel, ChannelDestination]:
        """Add a channel; raises AddressRefused or ArgumentsInvalid."""
        if principal.kind != "person":
            raise ArgumentsInvalid("Nobody reads what a service is told: choose channels as a person.")
        note_sender = self._mail_sender if channel_kind == "email" else self._note_poster
        address, channel_label = note_sender.check_address(address.strip())
        return await self._notification_channels.add_channel(
            principal, channel_kind, address, channel_label, chosen_events
        )

    async def send_test_note(self, channel_id: str, principal: Principal) -> None:
        """Send a test note at once; raises TooSoon, ChannelUnknown, or the UpstreamFailed that says what went wrong."""
        channel = await self._notification_channels.get_owned_channel(channel_id, principal)
        interval_number = int(utc_now().timestamp()) // _TEST_INTERVAL_SECONDS
        note_id = str(uuid.uuid4())
        # The claim is shared by all gateways, so that a person cannot avoid the limit at a second one.
        if not await self._notification_channels.claim_notes(
            [f"test:{principal.id}:{interval_number}"], note_id
        ):
            raise TooSoon(f"You tried a channel just now. Try again in {_TEST_INTERVAL_SECONDS} seconds.")
        await self._send_note(messages.compose_test_note(note_id, utc_now()), channel.id)

    async def claim_wait_listeners(
        self, *, awaited_id: str, waiter_id: str, asked_principal_ids: Collection[str], identity: Identity
    ) -> list[str]:
        """Return the channels of these people that were not yet notified of this wait, and claim them."""
        try:
            notification_event: NotificationEvent = "waiting"
            if identity.principal_id in asked_principal_ids and identity.kind == "service":
                asked_principal_ids = await self._roles.list_holders(ADMINISTRATOR_ROLE)
            elif identity.principal_id in asked_principal_ids:
                # Of all people who may answer, only the caller can be in the chat.
                notification_event = to_notification_event("waiting", identity.trigger)
            listening_channel_ids = await self._notification_channels.find_listening_channels(
                asked_principal_ids, notification_event
            )
            claimed_note_keys = await self._notification_channels.claim_notes(
                [f"{awaited_id}:{channel_id}" for channel_id in listening_channel_ids], waiter_id
            )
        except (OSError, SQLAlchemyError) as error:
            # A run must not fail because nobody could be notified of it.
            log.warning("notification_lost", awaits=awaited_id, error=type(error).__name__)
            return []
        return [note_key.rpartition(":")[2] for note_key in claimed_note_keys]

    async def find_end_listeners(self, principal_id: str, trigger: TriggerKind) -> list[str]:
        """Return the channels to notify when a run that begins now has ended."""
        return await self._notification_channels.find_listening_channels(
            [principal_id], to_notification_event("ended", trigger)
        )

    async def deliver_note(self, due_note: DueNote, find_tool_title: Callable[[str], str]) -> str:
        """Send one note, if it is still true and its person may still see it; return the outcome in words.

        Raises the UpstreamFailed that says whether another try may succeed.
        """
        opened_channel = await self._notification_channels.open_channel(due_note.channel)
        run = await self._run_records.find_run(due_note.notice.run)
        if opened_channel is None or run is None:
            return "channel removed" if opened_channel is None else "run unknown"
        channel, _ = opened_channel
        occurred_at = datetime.fromtimestamp(due_note.at, UTC)
        note_id = str(
            uuid.uuid5(
                NOTE_NAMESPACE, f"{due_note.notice.event}:{due_note.notice.awaits or run.id}:{channel.id}"
            )
        )
        tool_title = find_tool_title(run.tool_name)
        channel_note: ChannelNote | None
        if due_note.notice.event == "ended":
            allowed_principal_ids: Collection[str] = [run.principal_id]
            run_outcome = due_note.notice.outcome or "completed"
            channel_note = messages.compose_ended_note(
                note_id, run.id, run.tool_name, tool_title, run_outcome, due_note.notice.code, occurred_at
            )
        else:
            allowed_principal_ids, wait_description = await self._describe_wait(
                run, due_note.notice.awaits or ""
            )
            channel_note = (
                None
                if wait_description is None
                else messages.compose_waiting_note(
                    note_id, run.id, run.tool_name, tool_title, wait_description, occurred_at
                )
            )
        if channel_note is None:
            return "answered meanwhile"
        if channel.principal_id not in allowed_principal_ids:
            return "not asked"
        await self._send_note(channel_note, channel.id)
        return "delivered"

    async def _describe_wait(
        self, run: Run, awaited_id: str
    ) -> tuple[Collection[str], WaitDescription | None]:
        """Return who may give this answer, and what is asked; None where the run no longer waits for it."""
        for authorization_request in await self._authorization_requests.list_awaited_requests(run.id):
            if authorization_request.id == awaited_id and authorization_request.is_open:
                return await self._describe_sign_in(authorization_request)
        for question in await self._questions.list_awaited_questions(run.id):
            if question.kind != "form":
                continue
            if question.id == awaited_id and question.role is None:
                wait_description = self._describe_question("question", "answer a question", question)
                return [question.principal_id], wait_description
            if question.id == awaited_id and question.role is not None:
                wait_description = self._describe_question(
                    "approval",
                    f"approve, or refuse, a step for {await self._find_principal_name(run)}",
                    question,
                )
                holder_ids = await self._roles.list_holders(question.role)
                return [
                    holder_id for holder_id in holder_ids if holder_id != question.principal_id
                ], wait_description
        return [], None

    async def _describe_sign_in(
        self, authorization_request: AuthorizationRequest
    ) -> tuple[Collection[str], WaitDescription]:
        connection = (await self._catalogue.list_connections()).get(authorization_request.connection_name)
        connection_title = authorization_request.connection_name if connection is None else connection.title
        asked_action = describe_awaited_action(authorization_request, connection_title)
        asked_principal_ids: Collection[str] = [authorization_request.principal_id]
        principal = await self._principals.find_principal(authorization_request.principal_id)
        if principal is not None and principal.kind == "service":
            asked_principal_ids = await self._roles.list_holders(ADMINISTRATOR_ROLE)
            asked_action = f"{asked_action} for the service {principal.name}"
        link_url = self._page_links.build_connect_link(authorization_request.id)
        return asked_principal_ids, WaitDescription(
            "connection", asked_action, link_url, authorization_request.expires_at
        )

    def _describe_question(
        self, wait_kind: Literal["question", "approval"], asked_action: str, question: Question
    ) -> WaitDescription:
        return WaitDescription(
            wait_kind,
            asked_action,
            self._page_links.build_question_link(question.id),
            question.expires_at,
        )

    async def _find_principal_name(self, run: Run) -> str:
        principal = await self._principals.find_principal(run.principal_id)
        return "somebody" if principal is None else principal.name

    async def _send_note(self, channel_note: ChannelNote, channel_id: str) -> None:
        opened_channel = await self._notification_channels.open_channel(channel_id)
        if opened_channel is None:
            return
        channel, destination = opened_channel
        match channel.kind:
            case "email":
                await self._mail_sender.send_note(channel_note, destination.address)
            case "slack":
                await self._note_poster.post_to_slack(channel_note, destination)
            case "webhook":
                await self._note_poster.post_to_webhook(
                    replace(channel_note, id=f"msg_{channel_note.id}"), destination
                )
