"""The inbound endpoints that people declare, each with its tool, principal and secret. It verifies no delivery."""

import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

from sqlmodel import and_, col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, Kind, Trail
from engine.db.database import Database, now
from engine.db.tables import PrincipalRow, WebhookRow
from engine.errors import NotAllowed, WebhookInvalid, WebhookUnknown
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.identity.roles import Roles
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.webhooks.mapping import DeliveryMapping
from engine.webhooks.signatures import Scheme, new_secret, require_secret, sender_makes_secret

TOLERANCE_SECONDS: Final = 300
MOST_WEBHOOKS: Final = 100
"""How many webhooks may act as one principal."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """An endpoint that calls one tool as one principal."""

    id: str
    principal_id: str
    name: str
    tool: str
    scheme: Scheme
    mapping: DeliveryMapping
    tolerance_seconds: int
    active: bool
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Made:
    """A webhook, and the secret that was made for it, which is shown this once. None where the sender makes secrets."""

    webhook: Webhook
    secret: str | None


@dataclass(frozen=True, slots=True)
class Changes:
    """The fields of a webhook to change; None leaves a field as it is."""

    name: str | None = None
    mapping: DeliveryMapping | None = None
    tolerance_seconds: int | None = None
    active: bool | None = None


class Webhooks:
    """Owner of the table of webhooks. People declare webhooks for themselves, and administrators for services."""

    def __init__(
        self, database: Database, vault: Vault, principals: Principals, roles: Roles, trail: Trail
    ) -> None:
        self._database = database
        self._vault = vault
        self._principals = principals
        self._roles = roles
        self._trail = trail

    async def declarable(self, by: Principal, principal_id: str | None) -> Principal:
        """Return whom a webhook of `declarer` acts as: themself, or a service; raises NotAllowed or WebhookInvalid."""
        if principal_id in {None, by.id}:
            return by
        if not await self._roles.administers(by):
            raise NotAllowed(
                "A webhook of yours acts as you. Only an administrator can have one act as a service."
            )
        declared = await self._principals.get(principal_id or "")
        if declared is None or declared.kind != "service":
            raise WebhookInvalid(
                "A webhook acts as whoever makes it, or as a service: no service has this id."
            )
        return declared

    async def create(
        self,
        by: Principal,
        principal: Principal,
        *,
        name: str,
        tool: str,
        scheme: Scheme,
        mapping: DeliveryMapping,
        tolerance_seconds: int = TOLERANCE_SECONDS,
        secret: str | None = None,
    ) -> Made:
        """Create a webhook that acts as a principal from `resolve_principal`, with a new secret unless one is given.

        Where the sender makes secrets and none is given yet, no delivery is accepted until `rotate_secret` stores it.
        """
        if secret is not None:
            require_secret(scheme, secret)
        if await self._count(principal) >= MOST_WEBHOOKS:
            raise WebhookInvalid(f"{MOST_WEBHOOKS} webhooks of one principal are the most. Delete one first.")
        row = WebhookRow(
            id=secrets.token_urlsafe(16),
            principal_id=principal.id,
            name=name,
            tool=tool,
            scheme=scheme,
            sealed_secret=b"",
            mapping=_stored(mapping),
            tolerance_seconds=tolerance_seconds,
            created_at=now(),
            updated_at=now(),
        )
        made = new_secret(scheme) if secret is None else None
        await self._seal(row, [(secret or made or "", None)])
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            session.add(row)
            await record(session, _line("webhook.created", by, row.id, f"Calls {tool} as {principal.name}."))
        return Made(_webhook(row), None if sender_makes_secret(scheme) else made)

    async def receiving(self, webhook_id: str) -> tuple[Webhook, list[str]]:
        """Return the webhook with this id and its secrets in force, to verify a delivery with.

        Raises WebhookUnknown, or VaultSealBroken where the row was altered.
        """
        row = await self._row(webhook_id)
        in_force = [secret for secret, until in await self._opened(row) if until is None or until > now()]
        return _webhook(row), in_force

    async def get(self, by: Principal, webhook_id: str) -> Webhook:
        """Return the webhook; raises WebhookUnknown unless it acts as `declarer`, or as a service they administer."""
        webhook = _webhook(await self._row(webhook_id))
        if webhook.principal_id != by.id:
            declared = await self._principals.get(webhook.principal_id)
            is_service = declared is not None and declared.kind == "service"
            if not is_service or not await self._roles.administers(by):
                raise _unknown()
        return webhook

    async def reachable(
        self, by: Principal, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> list[Webhook]:
        """Return the newest webhooks that `get_webhook` would return, after a place in that order."""
        whose = [col(WebhookRow.principal_id) == by.id]
        if await self._roles.administers(by):
            services = select(PrincipalRow.id).where(PrincipalRow.kind == "service")
            whose.append(col(WebhookRow.principal_id).in_(services))
        query = (
            select(WebhookRow)
            .where(or_(*whose))
            .order_by(col(WebhookRow.created_at).desc(), col(WebhookRow.id).desc())
            .limit(limit)
        )
        if after is not None:
            made_at, last = after
            earlier = col(WebhookRow.created_at) < made_at
            query = query.where(
                or_(earlier, and_(WebhookRow.created_at == made_at, col(WebhookRow.id) < last))
            )
        async with self._database.reading() as session:
            return [_webhook(row) for row in (await session.exec(query)).all()]

    async def change(self, by: Principal, webhook: Webhook, changes: Changes) -> Webhook | None:
        """Change this version of a webhook; return None where it is no longer the current version."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            row = await _in_force(session, webhook)
            if row is None:
                return None
            row.name = row.name if changes.name is None else changes.name
            row.mapping = row.mapping if changes.mapping is None else _stored(changes.mapping)
            if changes.tolerance_seconds is not None:
                row.tolerance_seconds = changes.tolerance_seconds
            if changes.active is not None:
                row.active = changes.active
            _touch(row)
            session.add(row)
            await record(session, _line("webhook.changed", by, row.id, None))
        return _webhook(row)

    async def rotate(
        self, by: Principal, webhook: Webhook, overlap: timedelta, secret: str | None = None
    ) -> Made | None:
        """Take a new secret, and accept the one before for `overlap`; return None where this version is not current.

        Raises WebhookInvalid for a secret that the scheme does not have, or where the sender has to make it.
        """
        if secret is None and sender_makes_secret(webhook.scheme):
            raise WebhookInvalid(
                f"The secrets of {webhook.scheme} are made there: give the one that it shows."
            )
        if secret is not None:
            require_secret(webhook.scheme, secret)
        made = new_secret(webhook.scheme) if secret is None else None
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            row = await _in_force(session, webhook)
            if row is None:
                return None
            (before, _), *_ = await self._opened(row)
            await self._seal(row, [(secret or made or "", None), (before, now() + overlap)])
            _touch(row)
            session.add(row)
            await record(session, _line("webhook.changed", by, row.id, "It has a new secret."))
        return Made(_webhook(row), made)

    async def delete(self, by: Principal, webhook: Webhook) -> bool:
        """Delete this version of a webhook and its secret; return False where it is no longer the current version."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            row = await _in_force(session, webhook)
            if row is None:
                return False
            await session.delete(row)
            await record(session, _line("webhook.deleted", by, webhook.id, None))
        return True

    @property
    def sealed(self) -> SealedColumn:
        """The column in which this table keeps sealed values."""
        return SealedColumn("webhooks", WebhookRow, "sealed_secret", _bound_to)

    async def _count(self, principal: Principal) -> int:
        query = select(func.count()).select_from(WebhookRow).where(WebhookRow.principal_id == principal.id)
        async with self._database.reading() as session:
            return (await session.exec(query)).one()

    async def _row(self, webhook_id: str) -> WebhookRow:
        # An address may hold characters that no database stores as text.
        if not webhook_id.isprintable():
            raise _unknown()
        async with self._database.reading() as session:
            row = await session.get(WebhookRow, webhook_id)
        if row is None:
            raise _unknown()
        return row

    async def _seal(self, row: WebhookRow, in_force: list[tuple[str, datetime | None]]) -> None:
        plain = [[secret, None if until is None else until.isoformat()] for secret, until in in_force]
        row.sealed_secret = await self._vault.seal(json.dumps(plain).encode(), _bound_to(row))

    async def _opened(self, row: WebhookRow) -> list[tuple[str, datetime | None]]:
        plain = json.loads(await self._vault.open(row.sealed_secret, _bound_to(row)))
        return [(secret, None if until is None else datetime.fromisoformat(until)) for secret, until in plain]


async def _in_force(session: AsyncSession, webhook: Webhook) -> WebhookRow | None:
    row = await session.get(WebhookRow, webhook.id, with_for_update=True)
    return None if row is None or row.version != webhook.version else row


def _touch(row: WebhookRow) -> None:
    row.version += 1
    row.updated_at = now()


def _line(kind: Kind, by: Principal, webhook_id: str, message: str | None) -> AuditEvent:
    return AuditEvent(kind=kind, principal=by, object_id=webhook_id, message=message)


def _unknown() -> WebhookUnknown:
    msg = "There is no webhook with this id."
    return WebhookUnknown(msg)


def _bound_to(row: WebhookRow) -> str:
    # The principal and the tool are part of it: a row with another of these opens no secret, so it accepts no delivery.
    return f"webhook:{row.id}:{row.principal_id}:{row.tool}:{row.scheme}"


def _stored(mapping: DeliveryMapping) -> dict[str, Any]:
    return mapping.model_dump(mode="json")


def _webhook(row: WebhookRow) -> Webhook:
    return Webhook(
        id=row.id,
        principal_id=row.principal_id,
        name=row.name,
        tool=row.tool,
        scheme=cast("Scheme", row.scheme),
        mapping=DeliveryMapping.model_validate(row.mapping),
        tolerance_seconds=row.tolerance_seconds,
        active=row.active,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
