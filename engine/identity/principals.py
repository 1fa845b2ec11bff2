"""Stores the people and services that Byline knows, by issuer and subject."""

import uuid
from typing import cast

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, now
from engine.db.tables import PrincipalRow
from engine.identity.model import Principal, PrincipalKind


class Principals:
    """Creates, finds and deactivates principals, and owns their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resolve(self, issuer: str, subject: str, name: str) -> Principal:
        """Return the principal of an issuer's verified statement, and create or rename it where necessary."""
        found = await self.find(issuer, subject)
        if found is not None:
            # A statement without a name repeats the subject as name, which must not replace a known name.
            return found if name in {found.name, subject} else await self._renamed(found, name)
        row = PrincipalRow(id=str(uuid.uuid4()), issuer=issuer, subject=subject, name=name, created_at=now())
        try:
            async with self._database.writing() as session:
                session.add(row)
        except IntegrityError:
            # Another request created the same principal at the same time.
            found = await self.find(issuer, subject)
            if found is None:
                raise
            return found
        return _principal(row)

    async def _renamed(self, principal: Principal, name: str) -> Principal:
        async with self._database.writing() as session:
            row = await session.get_one(PrincipalRow, principal.id)
            row.name = name
            session.add(row)
        return _principal(row)

    async def find(self, issuer: str, subject: str) -> Principal | None:
        """Return the principal with this issuer and subject, or None."""
        query = select(PrincipalRow).where(PrincipalRow.issuer == issuer, PrincipalRow.subject == subject)
        async with self._database.reading() as session:
            row = (await session.exec(query)).one_or_none()
        return None if row is None else _principal(row)

    async def get(self, principal_id: str) -> Principal | None:
        """Return the principal with this id, or None."""
        async with self._database.reading() as session:
            row = await session.get(PrincipalRow, principal_id)
        return None if row is None else _principal(row)

    async def hold(self, session: AsyncSession, principal_id: str) -> bool:
        """Lock the principal's row until the caller's transaction ends, and return whether the principal is active.

        Other transactions that lock the same principal wait meanwhile.
        """
        # SQLite has one writer at a time anyway. On PostgreSQL, FOR NO KEY UPDATE lets other rows refer to this one.
        held = select(PrincipalRow.active).where(PrincipalRow.id == principal_id)
        return bool((await session.exec(held.with_for_update(key_share=True))).one_or_none())

    async def named(self, name: str) -> list[Principal]:
        """Return the principal with this id, or else all whose name or subject it is."""
        by_id = await self.get(name)
        if by_id is not None:
            return [by_id]
        query = select(PrincipalRow).where((PrincipalRow.name == name) | (PrincipalRow.subject == name))
        async with self._database.reading() as session:
            return [_principal(row) for row in (await session.exec(query)).all()]

    async def all(self, *, kind: PrincipalKind | None = None) -> list[Principal]:
        """Return all principals, or all of one kind, ordered by name."""
        query = select(PrincipalRow).order_by(col(PrincipalRow.name), col(PrincipalRow.id))
        if kind is not None:
            query = query.where(PrincipalRow.kind == kind)
        async with self._database.reading() as session:
            return [_principal(row) for row in (await session.exec(query)).all()]

    async def set_active(self, principal_id: str, *, active: bool) -> bool:
        """Activate or deactivate a principal, and return False if there is no such principal.

        A deactivated principal is stopped from the next action on.
        """
        async with self._database.writing() as session:
            row = await session.get(PrincipalRow, principal_id)
            if row is None:
                return False
            row.active = active
            session.add(row)
        return True


def _principal(row: PrincipalRow) -> Principal:
    return Principal(row.id, row.issuer, row.subject, row.name, row.active, cast("PrincipalKind", row.kind))
