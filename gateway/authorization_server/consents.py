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
from engine.db.database import Database, utc_now
from engine.db.tables import ClientConsentRow
from engine.identity.model import Actor, Principal

UNUSED_CONSENT_LIFE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConsent:
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

    def to_audit_event(
        self,
        event_kind: Literal["client.allowed", "client.asserted", "client.withdrawn"],
        principal: Principal,
        circumstances: str = "",
    ) -> AuditEvent:
        """Return the audit event that records a change of this consent."""
        return AuditEvent(
            kind=event_kind,
            principal=principal,
            actor=Actor("mcp_client", self.client_id, self.client_name),
            scopes=self.scopes,
            object_id=self.id,
            message=f"For {self.resource}{circumstances}.",
        )


class ClientConsents:
    """Owner of the table of consents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store_consent(self, client_consent: ClientConsent) -> None:
        """Store a consent, and delete those that expired."""
        column_values = {
            column_name: getattr(client_consent, column_name) for column_name in client_consent.__slots__
        }
        consent_row = ClientConsentRow(**{**column_values, "scopes": " ".join(client_consent.scopes)})
        async with self._database.open_write_session() as db_session:
            await db_session.exec(
                delete(ClientConsentRow).where(col(ClientConsentRow.expires_at) <= utc_now())
            )
            db_session.add(consent_row)

    async def find_consent(self, consent_id: str) -> ClientConsent | None:
        """Return the consent with this id while it is valid, or None."""
        async with self._database.open_read_session() as db_session:
            consent_row = await db_session.get(ClientConsentRow, consent_id)
        return (
            None if consent_row is None or consent_row.expires_at <= utc_now() else _to_consent(consent_row)
        )

    async def list_consents(self, principal_id: str) -> list[ClientConsent]:
        """Return everything that clients may do for a principal, newest first."""
        statement = (
            select(ClientConsentRow)
            .where(
                ClientConsentRow.principal_id == principal_id, col(ClientConsentRow.expires_at) > utc_now()
            )
            .order_by(col(ClientConsentRow.created_at).desc(), col(ClientConsentRow.id))
        )
        async with self._database.open_read_session() as db_session:
            return [_to_consent(consent_row) for consent_row in (await db_session.exec(statement)).all()]

    async def has_consent_for(self, requested_consent: ClientConsent) -> bool:
        """Whether the person consented to this before: same client, destination and resource, and no more scopes."""
        return any(
            set(requested_consent.scopes) <= set(earlier_consent.scopes)
            for earlier_consent in await self.list_consents(requested_consent.principal_id)
            if (earlier_consent.client_id, earlier_consent.goes_to, earlier_consent.resource)
            == (requested_consent.client_id, requested_consent.goes_to, requested_consent.resource)
        )

    async def extend_consent(self, consent_id: str) -> None:
        """Extend a consent by UNUSED_CONSENT_LIFE, since it was used."""
        update_statement = update(ClientConsentRow).where(col(ClientConsentRow.id) == consent_id)
        async with self._database.open_write_session() as db_session:
            await db_session.exec(update_statement.values(expires_at=utc_now() + UNUSED_CONSENT_LIFE))

    async def end_consent(self, consent_id: str) -> bool:
        """End one consent and so all of its tokens; False where it had ended before."""
        return bool(await self._end_consents(col(ClientConsentRow.id) == consent_id))

    async def end_client_consents(self, client_id: str) -> None:
        """End all consents of this client, for every principal."""
        await self._end_consents(col(ClientConsentRow.client_id) == client_id)

    async def withdraw_client(self, principal_id: str, client_id: str) -> list[str]:
        """End all that a client may do for one principal; returns the ids of the consents that were valid."""
        return await self._end_consents(
            col(ClientConsentRow.principal_id) == principal_id, col(ClientConsentRow.client_id) == client_id
        )

    async def _end_consents(self, *conditions: ColumnElement[bool]) -> list[str]:
        delete_statement = delete(ClientConsentRow).where(*conditions).returning(col(ClientConsentRow.id))
        async with self._database.open_write_session() as db_session:
            return list((await db_session.exec(delete_statement)).scalars().all())


def _to_consent(consent_row: ClientConsentRow) -> ClientConsent:
    return ClientConsent(
        id=consent_row.id,
        principal_id=consent_row.principal_id,
        client_id=consent_row.client_id,
        client_name=consent_row.client_name,
        goes_to=consent_row.goes_to,
        asserted_by=consent_row.asserted_by,
        resource=consent_row.resource,
        scopes=tuple(consent_row.scopes.split()),
        created_at=consent_row.created_at,
        expires_at=consent_row.expires_at,
    )
