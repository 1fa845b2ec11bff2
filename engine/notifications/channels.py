"""Notification channels: where people receive notes, and of which events. Addresses are sealed, and nothing is sent."""

import base64
import json
import secrets
import uuid
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, cast, get_args

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, func, select

from engine.audit.trail import AuditEvent, Trail
from engine.db.database import Database, now
from engine.db.tables import NotificationChannelRow, NotificationRow
from engine.errors import ArgumentsInvalid, ChannelUnknown
from engine.identity.model import Principal, TriggerKind
from engine.settings import LONGEST_WAIT
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

ChannelKind = Literal["email", "slack", "webhook"]
Event = Literal["waiting", "ended", "chat_waiting", "chat_ended"]

EVENTS: Final = get_args(Event)
MOST_CHANNELS: Final = 10

_REMEMBERED: Final = LONGEST_WAIT + timedelta(days=30)
_AT_ONCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel on which one person receives notes; `label` shows just enough of the address to recognise it."""

    id: str
    principal_id: str
    kind: ChannelKind
    label: str
    events: tuple[Event, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Destination:
    """An address in clear text, for the moment of sending; `secret` signs what is sent to a webhook."""

    address: str
    secret: str | None = None


def event_of(what: Literal["waiting", "ended"], trigger: TriggerKind) -> Event:
    """Return the event that a person chooses on a channel.

    A call from a chat has events of its own, since the person is present and can see it in the chat.
    """
    return cast("Event", f"chat_{what}" if trigger == "mcp" else what)


class Channels:
    """Owner of the tables of notification channels and of claimed notes."""

    def __init__(self, database: Database, vault: Vault, trail: Trail) -> None:
        self._database = database
        self._vault = vault
        self._trail = trail

    async def add(
        self, principal: Principal, kind: ChannelKind, address: str, label: str, events: Collection[Event]
    ) -> tuple[Channel, Destination]:
        """Add a channel; the returned destination has a webhook's secret, which is never shown again."""
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}" if kind == "webhook" else None
        destination = Destination(address, secret)
        row = NotificationChannelRow(
            id=str(uuid.uuid4()),
            principal_id=principal.id,
            kind=kind,
            label=label,
            sealed_address=b"",
            events=_chosen(events),
            created_at=now(),
        )
        row.sealed_address = await self._vault.seal(json.dumps(asdict(destination)).encode(), _bound_to(row))
        record = await self._trail.recorder()
        count = select(func.count()).where(NotificationChannelRow.principal_id == principal.id)
        async with self._database.writing() as session:
            if (await session.exec(count)).one() >= MOST_CHANNELS:
                raise ArgumentsInvalid(f"{MOST_CHANNELS} channels are the most. Remove one first.")
            session.add(row)
            await record(session, AuditEvent(kind="channel.added", principal=principal, object_id=row.id))
        return _channel(row), destination

    async def of(self, principal_id: str) -> list[Channel]:
        """Return every channel of a person, oldest first."""
        query = (
            select(NotificationChannelRow)
            .where(NotificationChannelRow.principal_id == principal_id)
            .order_by(col(NotificationChannelRow.created_at), col(NotificationChannelRow.id))
        )
        async with self._database.reading() as session:
            return [_channel(row) for row in (await session.exec(query)).all()]

    async def owned(self, channel_id: str, principal: Principal) -> Channel:
        """Return the channel with this id; raises ChannelUnknown unless it is this person's."""
        async with self._database.reading() as session:
            row = await session.get(NotificationChannelRow, channel_id)
        if row is None or row.principal_id != principal.id:
            raise _unknown(channel_id)
        return _channel(row)

    async def remove(self, channel_id: str, principal: Principal) -> None:
        """Delete a channel; notes on their way to it are dropped. Raises ChannelUnknown unless it is this person's."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            row = await session.get(NotificationChannelRow, channel_id)
            if row is None or row.principal_id != principal.id:
                raise _unknown(channel_id)
            await session.delete(row)
            await record(
                session, AuditEvent(kind="channel.removed", principal=principal, object_id=channel_id)
            )

    async def open(self, channel_id: str) -> tuple[Channel, Destination] | None:
        """Return a channel with its address in clear text, or None where it was removed."""
        async with self._database.reading() as session:
            row = await session.get(NotificationChannelRow, channel_id)
        return None if row is None else (_channel(row), await self._destination(row))

    async def listening(self, principal_ids: Collection[str], event: Event) -> list[str]:
        """Return the ids of the channels on which these people want notes of this event."""
        query = (
            select(NotificationChannelRow.id, NotificationChannelRow.events)
            .where(col(NotificationChannelRow.principal_id).in_(principal_ids))
            .order_by(NotificationChannelRow.id)
        )
        async with self._database.reading() as session:
            return [channel for channel, events in (await session.exec(query)).all() if event in events]

    async def owe(self, notes: Iterable[str], owed_by: str) -> list[str]:
        """Claim these notes and return the ones that no other claimant has, so that each is sent once.

        The same claimant may claim a note again.
        """
        return [note for note in notes if await self._is_owed_by(note, owed_by)]

    async def forget(self) -> int:
        """Delete claims that are older than any wait can be; return how many."""
        over = (
            select(NotificationRow.id).where(NotificationRow.created_at < now() - _REMEMBERED).limit(_AT_ONCE)
        )
        async with self._database.writing() as session:
            gone = await session.exec(delete(NotificationRow).where(col(NotificationRow.id).in_(over)))
        return int(gone.rowcount)

    @property
    def sealed(self) -> SealedColumn:
        """The column in which this table keeps sealed values."""
        return SealedColumn("notification channels", NotificationChannelRow, "sealed_address", _bound_to)

    async def _is_owed_by(self, note: str, owed_by: str) -> bool:
        if (known := await self._owed_by(note)) is not None:
            return known == owed_by
        try:
            async with self._database.writing() as session:
                session.add(NotificationRow(id=note, owed_by=owed_by, created_at=now()))
        except IntegrityError:
            # Another claimant was first at this very moment.
            return await self._owed_by(note) == owed_by
        return True

    async def _owed_by(self, note: str) -> str | None:
        async with self._database.reading() as session:
            row = await session.get(NotificationRow, note)
        return None if row is None else row.owed_by

    async def _destination(self, row: NotificationChannelRow) -> Destination:
        return Destination(**json.loads(await self._vault.open(row.sealed_address, _bound_to(row))))


def _chosen(events: Collection[str]) -> list[str]:
    unknown = sorted(set(events) - set(EVENTS))
    if unknown or not events:
        raise ArgumentsInvalid(f"Choose one or more of {', '.join(EVENTS)}.")
    return [event for event in EVENTS if event in events]


def _unknown(channel_id: str) -> ChannelUnknown:
    return ChannelUnknown(f"You have no channel '{channel_id}'.")


def _bound_to(row: NotificationChannelRow) -> str:
    return f"notification_channel:{row.id}:{row.principal_id}:{row.kind}"


def _channel(row: NotificationChannelRow) -> Channel:
    kind, events = cast("ChannelKind", row.kind), cast("list[Event]", row.events)
    return Channel(row.id, row.principal_id, kind, row.label, tuple(events), row.created_at)
