"""Consents: which clients may act for which principals. No token is valid longer than its consent.

A consent is given by a person, or asserted by an enterprise's issuer. Its id is the family of the tokens issued under
it. It ends when the person withdraws it, when its client revokes a token of it, when a code or a refresh token of it is
used a second time, and when nothing of it was used for 30 days.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from sqlalchemy import ColumnElement, delete, update
from sqlmodel import col, select

from engine.audit.trail import AuditEvent
from engine.db.database import Database, now
from engine.db.tables import ClientConsentRow
from engine.identity.model import Actor, Principal

UNUSED_LIFE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """What a client may do for a principal.

    `goes_to` is where the browser was sent with the answer. `asserted_by` is the enterprise's issuer that let the
    client in without a question to the person.
    """

    id: str
    principal_id: str
    client_id: str
    client_name: str
    goes_to: str | None = None
    asserted_by: str | None = None
    resource: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime

    def event(
        self,
        kind: Literal["client.allowed", "client.asserted", "client.withdrawn"],
        principal: Principal,
        circumstances: str = "",
    ) -> AuditEvent:
        """Return the audit event that records a change of this consent."""
        return AuditEvent(
            kind=kind,
            principal=principal,
            actor=Actor("mcp_client", self.client_id, self.client_name),
            scopes=self.scopes,
            object_id=self.id,
            message=f"For {self.resource}{circumstances}.",
        )


class Consents:
    """Owner of the table of consents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, consent: Consent) -> None:
        """Store a consent, and delete those that expired."""
        fields = {name: getattr(consent, name) for name in consent.__slots__}
        row = ClientConsentRow(**{**fields, "scopes": " ".join(consent.scopes)})
        async with self._database.writing() as session:
            await session.exec(delete(ClientConsentRow).where(col(ClientConsentRow.expires_at) <= now()))
            session.add(row)

    async def get(self, consent: str) -> Consent | None:
        """Return the consent with this id while it is valid, or None."""
        async with self._database.reading() as session:
            row = await session.get(ClientConsentRow, consent)
        return None if row is None or row.expires_at <= now() else _consent(row)

    async def of(self, principal_id: str) -> list[Consent]:
        """Return everything that clients may do for a principal, newest first."""
        query = (
            select(ClientConsentRow)
            .where(ClientConsentRow.principal_id == principal_id, col(ClientConsentRow.expires_at) > now())
            .order_by(col(ClientConsentRow.created_at).desc(), col(ClientConsentRow.id))
        )
        async with self._database.reading() as session:
            return [_consent(row) for row in (await session.exec(query)).all()]

    async def covers(self, asked: Consent) -> bool:
        """Whether the person consented to this before: same client, destination and resource, and no more scopes."""
        return any(
            set(asked.scopes) <= set(given.scopes)
            for given in await self.of(asked.principal_id)
            if (given.client_id, given.goes_to, given.resource)
            == (asked.client_id, asked.goes_to, asked.resource)
        )

    async def prolong(self, consent: str) -> None:
        """Extend a consent by UNUSED_CONSENT_LIFE, since it was used."""
        later = update(ClientConsentRow).where(col(ClientConsentRow.id) == consent)
        async with self._database.writing() as session:
            await session.exec(later.values(expires_at=now() + UNUSED_LIFE))

    async def end(self, consent: str) -> bool:
        """End one consent and so all of its tokens; False where it had ended before."""
        return bool(await self._end(col(ClientConsentRow.id) == consent))

    async def end_of_client(self, client_id: str) -> None:
        """End all consents of this client, for every principal."""
        await self._end(col(ClientConsentRow.client_id) == client_id)

    async def withdraw(self, principal_id: str, client_id: str) -> list[str]:
        """End all that a client may do for one principal; returns the ids of the consents that were valid."""
        return await self._end(
            col(ClientConsentRow.principal_id) == principal_id, col(ClientConsentRow.client_id) == client_id
        )

    async def _end(self, *which: ColumnElement[bool]) -> list[str]:
        ended = delete(ClientConsentRow).where(*which).returning(col(ClientConsentRow.id))
        async with self._database.writing() as session:
            return list((await session.exec(ended)).scalars().all())


def _consent(row: ClientConsentRow) -> Consent:
    return Consent(
        id=row.id,
        principal_id=row.principal_id,
        client_id=row.client_id,
        client_name=row.client_name,
        goes_to=row.goes_to,
        asserted_by=row.asserted_by,
        resource=row.resource,
        scopes=tuple(row.scopes.split()),
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
