"""Stores the people and services that Byline knows, by issuer and subject."""

import uuid
from typing import cast

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, utc_now
from engine.db.tables import PrincipalRow
from engine.identity.model import Principal, PrincipalKind


class Principals:
    """Creates, finds and deactivates principals, and owns their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resolve_principal(self, issuer: str, subject: str, name: str) -> Principal:
        """Return the principal of an issuer's verified statement, and create or rename it where necessary."""
        principal = await self.find_by_subject(issuer, subject)
        if principal is not None:
            # A statement without a name repeats the subject as name, which must not replace a known name.
            return (
                principal
                if name in {principal.name, subject}
                else await self._rename_principal(principal, name)
            )
        principal = Principal(str(uuid.uuid4()), issuer, subject, name)
        try:
            async with self._database.open_write_session() as db_session:
                self.add_principal(db_session, principal)
        except IntegrityError:
            # Another request created the same principal at the same time.
            principal = await self.find_by_subject(issuer, subject)
            if principal is None:
                raise
        return principal

    def add_principal(self, db_session: AsyncSession, principal: Principal) -> None:
        """Add a principal in the caller's transaction, which fails with IntegrityError if its subject is known."""
        db_session.add(
            PrincipalRow(
                id=principal.id,
                issuer=principal.issuer,
                subject=principal.subject,
                name=principal.name,
                kind=principal.kind,
                created_at=utc_now(),
            )
        )

    async def _rename_principal(self, principal: Principal, name: str) -> Principal:
        async with self._database.open_write_session() as db_session:
            principal_row = await db_session.get_one(PrincipalRow, principal.id)
            principal_row.name = name
            db_session.add(principal_row)
        return _build_principal(principal_row)

    async def find_by_subject(self, issuer: str, subject: str) -> Principal | None:
        """Return the principal with this issuer and subject, or None."""
        statement = select(PrincipalRow).where(PrincipalRow.issuer == issuer, PrincipalRow.subject == subject)
        async with self._database.open_read_session() as db_session:
            principal_row = (await db_session.exec(statement)).one_or_none()
        return None if principal_row is None else _build_principal(principal_row)

    async def find_principal(self, principal_id: str) -> Principal | None:
        """Return the principal with this id, or None."""
        async with self._database.open_read_session() as db_session:
            principal_row = await db_session.get(PrincipalRow, principal_id)
        return None if principal_row is None else _build_principal(principal_row)

    async def lock_principal(self, db_session: AsyncSession, principal_id: str) -> bool:
        """Lock the principal's row until the caller's transaction ends, and return whether the principal is active.

        Other transactions that lock the same principal wait meanwhile.
        """
        # SQLite has one writer at a time anyway. On PostgreSQL, FOR NO KEY UPDATE lets other rows refer to this one.
        statement = select(PrincipalRow.active).where(PrincipalRow.id == principal_id)
        return bool((await db_session.exec(statement.with_for_update(key_share=True))).one_or_none())

    async def find_by_name(self, name: str) -> list[Principal]:
        """Return the principal with this id, or else all whose name or subject it is."""
        principal = await self.find_principal(name)
        if principal is not None:
            return [principal]
        statement = select(PrincipalRow).where((PrincipalRow.name == name) | (PrincipalRow.subject == name))
        async with self._database.open_read_session() as db_session:
            return [
                _build_principal(principal_row) for principal_row in (await db_session.exec(statement)).all()
            ]

    async def list_principals(self, *, principal_kind: PrincipalKind | None = None) -> list[Principal]:
        """Return all principals, or all of one kind, ordered by name."""
        statement = select(PrincipalRow).order_by(col(PrincipalRow.name), col(PrincipalRow.id))
        if principal_kind is not None:
            statement = statement.where(PrincipalRow.kind == principal_kind)
        async with self._database.open_read_session() as db_session:
            return [
                _build_principal(principal_row) for principal_row in (await db_session.exec(statement)).all()
            ]

    async def set_active(self, db_session: AsyncSession, principal_id: str, *, is_active: bool) -> bool:
        """Activate or deactivate a principal in the caller's transaction, and return False if nothing changes.

        A deactivated principal is stopped from the next action on.
        """
        principal_row = await db_session.get_one(PrincipalRow, principal_id, with_for_update=True)
        if principal_row.active == is_active:
            return False
        principal_row.active = is_active
        db_session.add(principal_row)
        return True


def _build_principal(principal_row: PrincipalRow) -> Principal:
    return Principal(
        principal_row.id,
        principal_row.issuer,
        principal_row.subject,
        principal_row.name,
        principal_row.active,
        cast("PrincipalKind", principal_row.kind),
    )
