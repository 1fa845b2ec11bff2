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

from engine.audit.trail import AuditEvent, AuditTrail
from engine.db.database import Database, utc_now
from engine.db.tables import NotificationChannelRow, NotificationRow
from engine.errors import ArgumentsInvalid, ChannelUnknown
from engine.identity.model import Principal, TriggerKind
from engine.settings import MAX_WAIT
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import CHANNEL_SEAL

ChannelKind = Literal["email", "slack", "webhook"]
NotificationEvent = Literal["waiting", "ended", "chat_waiting", "chat_ended"]

NOTIFICATION_EVENTS: Final = get_args(NotificationEvent)
MAX_CHANNELS_PER_PERSON: Final = 10

_RETENTION: Final = MAX_WAIT + timedelta(days=30)
_DELETE_BATCH_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class NotificationChannel:
    """A channel on which one person receives notes; `label` shows just enough of the address to recognise it."""

    id: str
    principal_id: str
    kind: ChannelKind
    label: str
    events: tuple[NotificationEvent, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ChannelDestination:
    """An address in clear text, for the moment of sending; `secret` signs what is sent to a webhook."""

    address: str
    secret: str | None = None


def to_notification_event(run_event: Literal["waiting", "ended"], trigger: TriggerKind) -> NotificationEvent:
    """Return the event that a person chooses on a channel.

    A call from a chat has events of its own, since the person is present and can see it in the chat.
    """
    return cast("NotificationEvent", f"chat_{run_event}" if trigger == "mcp" else run_event)


class NotificationChannels:
    """Owner of the tables of notification channels and of claimed notes."""

    def __init__(self, database: Database, vault: Vault, audit_trail: AuditTrail) -> None:
        self._database = database
        self._vault = vault
        self._audit_trail = audit_trail

    async def add_channel(
        self,
        principal: Principal,
        channel_kind: ChannelKind,
        address: str,
        channel_label: str,
        chosen_events: Collection[NotificationEvent],
    ) -> tuple[NotificationChannel, ChannelDestination]:
        """Add a channel; the returned destination has a webhook's secret, which is never shown again."""
        signing_secret = (
            f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
            if channel_kind == "webhook"
            else None
        )
        destination = ChannelDestination(address, signing_secret)
        channel_row = NotificationChannelRow(
            id=str(uuid.uuid4()),
            principal_id=principal.id,
            kind=channel_kind,
            label=channel_label,
            sealed_address=b"",
            events=_validate_events(chosen_events),
            created_at=utc_now(),
        )
        channel_row.sealed_address = await self._vault.seal_secret(
            json.dumps(asdict(destination)).encode(), _build_associated_data(channel_row)
        )
        record_events = await self._audit_trail.make_recorder()
        statement = select(func.count()).where(NotificationChannelRow.principal_id == principal.id)
        async with self._database.open_write_session() as db_session:
            if (await db_session.exec(statement)).one() >= MAX_CHANNELS_PER_PERSON:
                raise ArgumentsInvalid(f"{MAX_CHANNELS_PER_PERSON} channels are the most. Remove one first.")
            db_session.add(channel_row)
            await record_events(
                db_session, AuditEvent(kind="channel.added", principal=principal, object_id=channel_row.id)
            )
        return _to_channel(channel_row), destination

    async def list_channels(self, principal_id: str) -> list[NotificationChannel]:
        """Return every channel of a person, oldest first."""
        statement = (
            select(NotificationChannelRow)
            .where(NotificationChannelRow.principal_id == principal_id)
            .order_by(col(NotificationChannelRow.created_at), col(NotificationChannelRow.id))
        )
        async with self._database.open_read_session() as db_session:
            return [_to_channel(channel_row) for channel_row in (await db_session.exec(statement)).all()]

    async def get_owned_channel(self, channel_id: str, principal: Principal) -> NotificationChannel:
        """Return the channel with this id; raises ChannelUnknown unless it is this person's."""
        async with self._database.open_read_session() as db_session:
            channel_row = await db_session.get(NotificationChannelRow, channel_id)
        if channel_row is None or channel_row.principal_id != principal.id:
            raise _make_unknown_error(channel_id)
        return _to_channel(channel_row)

    async def remove_channel(self, channel_id: str, principal: Principal) -> None:
        """Delete a channel; notes on their way to it are dropped. Raises ChannelUnknown unless it is this person's."""
        record_events = await self._audit_trail.make_recorder()
        async with self._database.open_write_session() as db_session:
            channel_row = await db_session.get(NotificationChannelRow, channel_id)
            if channel_row is None or channel_row.principal_id != principal.id:
                raise _make_unknown_error(channel_id)
            await db_session.delete(channel_row)
            await record_events(
                db_session, AuditEvent(kind="channel.removed", principal=principal, object_id=channel_id)
            )

    async def open_channel(self, channel_id: str) -> tuple[NotificationChannel, ChannelDestination] | None:
        """Return a channel with its address in clear text, or None where it was removed."""
        async with self._database.open_read_session() as db_session:
            channel_row = await db_session.get(NotificationChannelRow, channel_id)
        return (
            None
            if channel_row is None
            else (_to_channel(channel_row), await self._open_destination(channel_row))
        )

    async def find_listening_channels(
        self, principal_ids: Collection[str], notification_event: NotificationEvent
    ) -> list[str]:
        """Return the ids of the channels on which these people want notes of this event."""
        statement = (
            select(NotificationChannelRow.id, NotificationChannelRow.events)
            .where(col(NotificationChannelRow.principal_id).in_(principal_ids))
            .order_by(NotificationChannelRow.id)
        )
        async with self._database.open_read_session() as db_session:
            return [
                channel_id
                for channel_id, chosen_events in (await db_session.exec(statement)).all()
                if notification_event in chosen_events
            ]

    async def claim_notes(self, note_keys: Iterable[str], claimant_id: str) -> list[str]:
        """Claim these notes and return the ones that no other claimant has, so that each is sent once.

        The same claimant may claim a note again.
        """
        return [note_key for note_key in note_keys if await self._is_claimed_by(note_key, claimant_id)]

    async def delete_old_claims(self) -> int:
        """Delete claims that are older than any wait can be; return how many."""
        old_claim_ids = (
            select(NotificationRow.id)
            .where(NotificationRow.created_at < utc_now() - _RETENTION)
            .limit(_DELETE_BATCH_ROWS)
        )
        async with self._database.open_write_session() as db_session:
            delete_result = await db_session.exec(
                delete(NotificationRow).where(col(NotificationRow.id).in_(old_claim_ids))
            )
        return int(delete_result.rowcount)

    @property
    def sealed_column(self) -> SealedColumn:
        """The column in which this table keeps sealed values."""
        return SealedColumn(
            "notification channels", NotificationChannelRow, "sealed_address", _build_associated_data
        )

    async def _is_claimed_by(self, note_key: str, claimant_id: str) -> bool:
        if (first_claimant_id := await self._find_claimant(note_key)) is not None:
            return first_claimant_id == claimant_id
        try:
            async with self._database.open_write_session() as db_session:
                db_session.add(NotificationRow(id=note_key, owed_by=claimant_id, created_at=utc_now()))
        except IntegrityError:
            # Another claimant was first at this very moment.
            return await self._find_claimant(note_key) == claimant_id
        return True

    async def _find_claimant(self, note_key: str) -> str | None:
        async with self._database.open_read_session() as db_session:
            claim_row = await db_session.get(NotificationRow, note_key)
        return None if claim_row is None else claim_row.owed_by

    async def _open_destination(self, channel_row: NotificationChannelRow) -> ChannelDestination:
        return ChannelDestination(
            **json.loads(
                await self._vault.open_secret(channel_row.sealed_address, _build_associated_data(channel_row))
            )
        )


def _validate_events(chosen_events: Collection[str]) -> list[str]:
    unknown_events = sorted(set(chosen_events) - set(NOTIFICATION_EVENTS))
    if unknown_events or not chosen_events:
        raise ArgumentsInvalid(f"Choose one or more of {', '.join(NOTIFICATION_EVENTS)}.")
    return [event for event in NOTIFICATION_EVENTS if event in chosen_events]


def _make_unknown_error(channel_id: str) -> ChannelUnknown:
    return ChannelUnknown(f"You have no channel '{channel_id}'.")


def _build_associated_data(channel_row: NotificationChannelRow) -> str:
    return CHANNEL_SEAL.format(
        channel_id=channel_row.id, principal_id=channel_row.principal_id, kind=channel_row.kind
    )


def _to_channel(channel_row: NotificationChannelRow) -> NotificationChannel:
    channel_kind, chosen_events = (
        cast("ChannelKind", channel_row.kind),
        cast("list[NotificationEvent]", channel_row.events),
    )
    return NotificationChannel(
        channel_row.id,
        channel_row.principal_id,
        channel_kind,
        channel_row.label,
        tuple(chosen_events),
        channel_row.created_at,
    )
