"""The inbound endpoints that people declare, each with its tool, principal and secret. It verifies no delivery."""

import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

from sqlmodel import and_, col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, AuditEventKind, AuditTrail
from engine.db.database import Database, utc_now
from engine.db.tables import PrincipalRow, WebhookRow
from engine.errors import NotAllowed, WebhookInvalid, WebhookUnknown
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.identity.roles import Roles
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.webhooks.mapping import DeliveryMapping
from engine.webhooks.signatures import SignatureScheme, generate_secret, is_secret_from_sender, require_secret
from engine.wire import WEBHOOK_SEAL

DEFAULT_TOLERANCE_SECONDS: Final = 300
MAX_WEBHOOKS_PER_PRINCIPAL: Final = 100
"""How many webhooks may act as one principal."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """An endpoint that calls one tool as one principal."""

    id: str
    principal_id: str
    name: str
    tool_name: str
    scheme: SignatureScheme
    mapping: DeliveryMapping
    tolerance_seconds: int
    is_active: bool
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class WebhookWithSecret:
    """A webhook, and the secret that was made for it, which is shown this once. None where the sender makes secrets."""

    webhook: Webhook
    webhook_secret: str | None


@dataclass(frozen=True, slots=True)
class WebhookUpdate:
    """The fields of a webhook to change; None leaves a field as it is."""

    name: str | None = None
    mapping: DeliveryMapping | None = None
    tolerance_seconds: int | None = None
    is_active: bool | None = None


class Webhooks:
    """Owner of the table of webhooks. People declare webhooks for themselves, and administrators for services."""

    def __init__(
        self, database: Database, vault: Vault, principals: Principals, roles: Roles, audit_trail: AuditTrail
    ) -> None:
        self._database = database
        self._vault = vault
        self._principals = principals
        self._roles = roles
        self._audit_trail = audit_trail

    async def resolve_principal(self, declarer: Principal, principal_id: str | None) -> Principal:
        """Return whom a webhook of `declarer` acts as: themself, or a service; raises NotAllowed or WebhookInvalid."""
        if principal_id in {None, declarer.id}:
            return declarer
        if not await self._roles.is_administrator(declarer):
            raise NotAllowed(
                "A webhook of yours acts as you. Only an administrator can have one act as a service."
            )
        service_principal = await self._principals.find_principal(principal_id or "")
        if service_principal is None or service_principal.kind != "service":
            raise WebhookInvalid(
                "A webhook acts as whoever makes it, or as a service: no service has this id."
            )
        return service_principal

    async def create_webhook(
        self,
        declarer: Principal,
        principal: Principal,
        *,
        webhook_name: str,
        tool_name: str,
        scheme: SignatureScheme,
        delivery_mapping: DeliveryMapping,
        tolerance_seconds: int = DEFAULT_TOLERANCE_SECONDS,
        sender_secret: str | None = None,
    ) -> WebhookWithSecret:
        """Create a webhook that acts as a principal from `resolve_principal`, with a new secret unless one is given.

        Where the sender makes secrets and none is given yet, no delivery is accepted until `rotate_secret` stores it.
        """
        if sender_secret is not None:
            require_secret(scheme, sender_secret)
        if await self._count_webhooks(principal) >= MAX_WEBHOOKS_PER_PRINCIPAL:
            raise WebhookInvalid(
                f"{MAX_WEBHOOKS_PER_PRINCIPAL} webhooks of one principal are the most. Delete one first."
            )
        webhook_row = WebhookRow(
            id=secrets.token_urlsafe(16),
            principal_id=principal.id,
            name=webhook_name,
            tool=tool_name,
            scheme=scheme,
            sealed_secret=b"",
            mapping=_to_stored_mapping(delivery_mapping),
            tolerance_seconds=tolerance_seconds,
            created_at=utc_now(),
            updated_at=utc_now(),
        )
        generated_secret = generate_secret(scheme) if sender_secret is None else None
        await self._seal_secrets(webhook_row, [(sender_secret or generated_secret or "", None)])
        record_events = await self._audit_trail.make_recorder()
        async with self._database.open_write_session() as db_session:
            db_session.add(webhook_row)
            await record_events(
                db_session,
                _make_audit_event(
                    "webhook.created", declarer, webhook_row.id, f"Calls {tool_name} as {principal.name}."
                ),
            )
        return WebhookWithSecret(
            _to_webhook(webhook_row), None if is_secret_from_sender(scheme) else generated_secret
        )

    async def get_webhook_with_secrets(self, webhook_id: str) -> tuple[Webhook, list[str]]:
        """Return the webhook with this id and its secrets in force, to verify a delivery with.

        Raises WebhookUnknown, or VaultSealBroken where the row was altered.
        """
        webhook_row = await self._get_row(webhook_id)
        active_secrets = [
            webhook_secret
            for webhook_secret, valid_until in await self._open_secrets(webhook_row)
            if valid_until is None or valid_until > utc_now()
        ]
        return _to_webhook(webhook_row), active_secrets

    async def get_webhook(self, declarer: Principal, webhook_id: str) -> Webhook:
        """Return the webhook; raises WebhookUnknown unless it acts as `declarer`, or as a service they administer."""
        webhook = _to_webhook(await self._get_row(webhook_id))
        if webhook.principal_id != declarer.id:
            acting_principal = await self._principals.find_principal(webhook.principal_id)
            is_service = acting_principal is not None and acting_principal.kind == "service"
            if not is_service or not await self._roles.is_administrator(declarer):
                raise _make_unknown_error()
        return webhook

    async def list_webhooks(
        self, declarer: Principal, *, limit: int, after_place: tuple[datetime, str] | None = None
    ) -> list[Webhook]:
        """Return the newest webhooks that `get_webhook` would return, after a place in that order."""
        ownership_conditions = [col(WebhookRow.principal_id) == declarer.id]
        if await self._roles.is_administrator(declarer):
            service_ids = select(PrincipalRow.id).where(PrincipalRow.kind == "service")
            ownership_conditions.append(col(WebhookRow.principal_id).in_(service_ids))
        statement = (
            select(WebhookRow)
            .where(or_(*ownership_conditions))
            .order_by(col(WebhookRow.created_at).desc(), col(WebhookRow.id).desc())
            .limit(limit)
        )
        if after_place is not None:
            created_at, last_webhook_id = after_place
            earlier_condition = col(WebhookRow.created_at) < created_at
            statement = statement.where(
                or_(
                    earlier_condition,
                    and_(WebhookRow.created_at == created_at, col(WebhookRow.id) < last_webhook_id),
                )
            )
        async with self._database.open_read_session() as db_session:
            return [_to_webhook(webhook_row) for webhook_row in (await db_session.exec(statement)).all()]

    async def change_webhook(
        self, declarer: Principal, webhook: Webhook, webhook_update: WebhookUpdate
    ) -> Webhook | None:
        """Change this version of a webhook; return None where it is no longer the current version."""
        record_events = await self._audit_trail.make_recorder()
        async with self._database.open_write_session() as db_session:
            webhook_row = await _lock_current_row(db_session, webhook)
            if webhook_row is None:
                return None
            webhook_row.name = webhook_row.name if webhook_update.name is None else webhook_update.name
            webhook_row.mapping = (
                webhook_row.mapping
                if webhook_update.mapping is None
                else _to_stored_mapping(webhook_update.mapping)
            )
            if webhook_update.tolerance_seconds is not None:
                webhook_row.tolerance_seconds = webhook_update.tolerance_seconds
            if webhook_update.is_active is not None:
                webhook_row.active = webhook_update.is_active
            _advance_version(webhook_row)
            db_session.add(webhook_row)
            await record_events(
                db_session, _make_audit_event("webhook.changed", declarer, webhook_row.id, None)
            )
        return _to_webhook(webhook_row)

    async def rotate_secret(
        self, declarer: Principal, webhook: Webhook, overlap: timedelta, sender_secret: str | None = None
    ) -> WebhookWithSecret | None:
        """Take a new secret, and accept the one before for `overlap`; return None where this version is not current.

        Raises WebhookInvalid for a secret that the scheme does not have, or where the sender has to make it.
        """
        if sender_secret is None and is_secret_from_sender(webhook.scheme):
            raise WebhookInvalid(
                f"The secrets of {webhook.scheme} are made there: give the one that it shows."
            )
        if sender_secret is not None:
            require_secret(webhook.scheme, sender_secret)
        generated_secret = generate_secret(webhook.scheme) if sender_secret is None else None
        record_events = await self._audit_trail.make_recorder()
        async with self._database.open_write_session() as db_session:
            webhook_row = await _lock_current_row(db_session, webhook)
            if webhook_row is None:
                return None
            (previous_secret, _), *_ = await self._open_secrets(webhook_row)
            await self._seal_secrets(
                webhook_row,
                [(sender_secret or generated_secret or "", None), (previous_secret, utc_now() + overlap)],
            )
            _advance_version(webhook_row)
            db_session.add(webhook_row)
            await record_events(
                db_session,
                _make_audit_event("webhook.changed", declarer, webhook_row.id, "It has a new secret."),
            )
        return WebhookWithSecret(_to_webhook(webhook_row), generated_secret)

    async def delete_webhook(self, declarer: Principal, webhook: Webhook) -> bool:
        """Delete this version of a webhook and its secret; return False where it is no longer the current version."""
        record_events = await self._audit_trail.make_recorder()
        async with self._database.open_write_session() as db_session:
            webhook_row = await _lock_current_row(db_session, webhook)
            if webhook_row is None:
                return False
            await db_session.delete(webhook_row)
            await record_events(db_session, _make_audit_event("webhook.deleted", declarer, webhook.id, None))
        return True

    @property
    def sealed_column(self) -> SealedColumn:
        """The column in which this table keeps sealed values."""
        return SealedColumn("webhooks", WebhookRow, "sealed_secret", _build_associated_data)

    async def _count_webhooks(self, principal: Principal) -> int:
        statement = (
            select(func.count()).select_from(WebhookRow).where(WebhookRow.principal_id == principal.id)
        )
        async with self._database.open_read_session() as db_session:
            return (await db_session.exec(statement)).one()

    async def _get_row(self, webhook_id: str) -> WebhookRow:
        # An address may hold characters that no database stores as text.
        if not webhook_id.isprintable():
            raise _make_unknown_error()
        async with self._database.open_read_session() as db_session:
            webhook_row = await db_session.get(WebhookRow, webhook_id)
        if webhook_row is None:
            raise _make_unknown_error()
        return webhook_row

    async def _seal_secrets(
        self, webhook_row: WebhookRow, active_secrets: list[tuple[str, datetime | None]]
    ) -> None:
        secret_pairs = [
            [webhook_secret, None if valid_until is None else valid_until.isoformat()]
            for webhook_secret, valid_until in active_secrets
        ]
        webhook_row.sealed_secret = await self._vault.seal_secret(
            json.dumps(secret_pairs).encode(), _build_associated_data(webhook_row)
        )

    async def _open_secrets(self, webhook_row: WebhookRow) -> list[tuple[str, datetime | None]]:
        secret_pairs = json.loads(
            await self._vault.open_secret(webhook_row.sealed_secret, _build_associated_data(webhook_row))
        )
        return [
            (webhook_secret, None if valid_until is None else datetime.fromisoformat(valid_until))
            for webhook_secret, valid_until in secret_pairs
        ]


async def _lock_current_row(db_session: AsyncSession, webhook: Webhook) -> WebhookRow | None:
    webhook_row = await db_session.get(WebhookRow, webhook.id, with_for_update=True)
    return None if webhook_row is None or webhook_row.version != webhook.version else webhook_row


def _advance_version(webhook_row: WebhookRow) -> None:
    webhook_row.version += 1
    webhook_row.updated_at = utc_now()


def _make_audit_event(
    event_kind: AuditEventKind, declarer: Principal, webhook_id: str, message: str | None
) -> AuditEvent:
    return AuditEvent(kind=event_kind, principal=declarer, object_id=webhook_id, message=message)


def _make_unknown_error() -> WebhookUnknown:
    msg = "There is no webhook with this id."
    return WebhookUnknown(msg)


def _build_associated_data(webhook_row: WebhookRow) -> str:
    # The principal and the tool are part of it: a row with another of these opens no secret, so it accepts no delivery.
    return WEBHOOK_SEAL.format(
        webhook_id=webhook_row.id,
        principal_id=webhook_row.principal_id,
        tool=webhook_row.tool,
        scheme=webhook_row.scheme,
    )


def _to_stored_mapping(delivery_mapping: DeliveryMapping) -> dict[str, Any]:
    return delivery_mapping.model_dump(mode="json")


def _to_webhook(webhook_row: WebhookRow) -> Webhook:
    return Webhook(
        id=webhook_row.id,
        principal_id=webhook_row.principal_id,
        name=webhook_row.name,
        tool_name=webhook_row.tool,
        scheme=cast("SignatureScheme", webhook_row.scheme),
        mapping=DeliveryMapping.model_validate(webhook_row.mapping),
        tolerance_seconds=webhook_row.tolerance_seconds,
        is_active=webhook_row.active,
        version=webhook_row.version,
        created_at=webhook_row.created_at,
        updated_at=webhook_row.updated_at,
    )
