"""Notifies people, on the channels they chose, that a run waits or ended. Only the database decides who receives it."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import structlog
from sqlalchemy.exc import SQLAlchemyError

from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import Catalogue
from engine.db.database import now
from engine.errors import ArgumentsInvalid, TooSoon
from engine.identity.model import Identity, Principal, TriggerKind
from engine.identity.principals import Principals
from engine.identity.roles import ADMINISTRATOR, Roles
from engine.identity.runs import Run, RunRecords
from engine.notifications import messages
from engine.notifications.channels import Channel, ChannelKind, Channels, Destination, Event, event_of
from engine.notifications.mail import Mail
from engine.notifications.messages import Note, Waiting
from engine.notifications.posts import Posts
from engine.notifications.workflow import Owed
from engine.questions.questions import Question, Questions
from engine.waiting.addresses import connect_path, question_path

_NOTES = uuid.UUID("f0a4c1f6-2f0b-4a57-8d9c-6a7f3f1f7e02")
_TEST_EVERY_SECONDS = 30

log = structlog.get_logger()


class Notifier:
    """Notifies people for the gateway and the worker, and checks what these pass in against what is stored."""

    def __init__(
        self,
        channels: Channels,
        mail: Mail,
        posts: Posts,
        requests: AuthorizationRequests,
        questions: Questions,
        runs: RunRecords,
        principals: Principals,
        roles: Roles,
        catalogue: Catalogue,
        public_url: str,
    ) -> None:
        self._channels = channels
        self._mail = mail
        self._posts = posts
        self._requests = requests
        self._questions = questions
        self._runs = runs
        self._principals = principals
        self._roles = roles
        self._catalogue = catalogue
        self._public_url = public_url

    async def add(
        self, principal: Principal, kind: ChannelKind, address: str, events: Collection[Event]
    ) -> tuple[Channel, Destination]:
        """Add a channel; raises AddressRefused or ArgumentsInvalid."""
        if principal.kind != "person":
            raise ArgumentsInvalid("Nobody reads what a service is told: choose channels as a person.")
        sender = self._mail if kind == "email" else self._posts
        address, label = sender.checked(address.strip())
        return await self._channels.add(principal, kind, address, label, events)

    async def test(self, channel_id: str, principal: Principal) -> None:
        """Send a test note at once; raises TooSoon, ChannelUnknown, or the UpstreamFailed that says what went wrong."""
        channel = await self._channels.owned(channel_id, principal)
        moment = int(now().timestamp()) // _TEST_EVERY_SECONDS
        note_id = str(uuid.uuid4())
        # The claim is shared by all gateways, so that a person cannot avoid the limit at a second one.
        if not await self._channels.owe([f"test:{principal.id}:{moment}"], note_id):
            raise TooSoon(f"You tried a channel just now. Try again in {_TEST_EVERY_SECONDS} seconds.")
        await self._send(messages.test(note_id, now()), channel.id)

    async def wait_begun(
        self, *, awaits: str, waiter: str, asked: Collection[str], identity: Identity
    ) -> list[str]:
        """Return the channels to notify that `waiter_id` awaits an answer of these people, each once for one wait."""
        try:
            event: Event = "waiting"
            if identity.principal_id in asked and identity.kind == "service":
                asked = await self._roles.holders(ADMINISTRATOR)
            elif identity.principal_id in asked:
                # Of all people who may answer, only the caller can be in the chat.
                event = event_of("waiting", identity.trigger)
            listening = await self._channels.listening(asked, event)
            owed = await self._channels.owe([f"{awaits}:{channel}" for channel in listening], waiter)
        except (OSError, SQLAlchemyError) as error:
            # A run must not fail because nobody could be notified of it.
            log.warning("notification_lost", awaits=awaits, error=type(error).__name__)
            return []
        return [note.rpartition(":")[2] for note in owed]

    async def end_listeners(self, principal_id: str, trigger: TriggerKind) -> list[str]:
        """Return the channels to notify when a run that begins now has ended."""
        return await self._channels.listening([principal_id], event_of("ended", trigger))

    async def deliver(self, owed: Owed, title_of: Callable[[str], str]) -> str:
        """Send one note, if it is still true and its person may still see it; return the outcome in words.

        Raises the UpstreamFailed that says whether another try may succeed.
        """
        opened = await self._channels.open(owed.channel)
        run = await self._runs.get(owed.notice.run)
        if opened is None or run is None:
            return "channel removed" if opened is None else "run unknown"
        channel, _ = opened
        at = datetime.fromtimestamp(owed.at, UTC)
        note_id = str(uuid.uuid5(_NOTES, f"{owed.notice.event}:{owed.notice.awaits or run.id}:{channel.id}"))
        title = title_of(run.tool)
        note: Note | None
        if owed.notice.event == "ended":
            allowed: Collection[str] = [run.principal_id]
            outcome = owed.notice.outcome or "completed"
            note = messages.ended(note_id, run.id, run.tool, title, outcome, owed.notice.code, at)
        else:
            allowed, waits = await self._awaited(run, owed.notice.awaits or "")
            note = None if waits is None else messages.waiting(note_id, run.id, run.tool, title, waits, at)
        if note is None:
            return "answered meanwhile"
        if channel.principal_id not in allowed:
            return "not asked"
        await self._send(note, channel.id)
        return "delivered"

    async def _awaited(self, run: Run, awaits: str) -> tuple[Collection[str], Waiting | None]:
        """Return who may give this answer, and what is asked; None where the run no longer waits for it."""
        for request in await self._requests.awaited_by(run.id):
            if request.id == awaits and request.is_open:
                return await self._asked_to_sign_in(request)
        for question in await self._questions.awaited_by(run.id):
            if question.kind != "form":
                continue
            if question.id == awaits and question.role is None:
                waits = self._asks("question", "answer a question", question)
                return [question.principal_id], waits
            if question.id == awaits and question.role is not None:
                waits = self._asks(
                    "approval", f"approve, or refuse, a step for {await self._name(run)}", question
                )
                holders = await self._roles.holders(question.role)
                return [each for each in holders if each != question.principal_id], waits
        return [], None

    async def _asked_to_sign_in(self, request: AuthorizationRequest) -> tuple[Collection[str], Waiting]:
        known = (await self._catalogue.all()).get(request.connection)
        title = request.connection if known is None else known.title
        action = f"choose an account at {title}" if request.asks == "choice" else f"sign in to {title}"
        asked: Collection[str] = [request.principal_id]
        principal = await self._principals.get(request.principal_id)
        if principal is not None and principal.kind == "service":
            asked = await self._roles.holders(ADMINISTRATOR)
            action = f"{action} for the service {principal.name}"
        link = f"{self._public_url}{connect_path(request.id)}"
        return asked, Waiting("connection", action, link, request.expires_at)

    def _asks(self, kind: Literal["question", "approval"], action: str, question: Question) -> Waiting:
        return Waiting(kind, action, f"{self._public_url}{question_path(question.id)}", question.expires_at)

    async def _name(self, run: Run) -> str:
        principal = await self._principals.get(run.principal_id)
        return "somebody" if principal is None else principal.name

    async def _send(self, note: Note, channel_id: str) -> None:
        opened = await self._channels.open(channel_id)
        if opened is None:
            return
        channel, destination = opened
        match channel.kind:
            case "email":
                await self._mail.send(note, destination.address)
            case "slack":
                await self._posts.to_slack(note, destination)
            case "webhook":
                await self._posts.to_webhook(replace(note, id=f"msg_{note.id}"), destination)
