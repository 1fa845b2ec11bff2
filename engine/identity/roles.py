"""Stores which roles each principal has. What a role allows is decided by policy and by approvals."""

from collections.abc import Awaitable, Callable, Collection
from typing import Final

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database
from engine.db.tables import PrincipalRow, RoleRow
from engine.errors import NotAllowed
from engine.identity.model import Principal

ADMINISTRATOR: Final = "administrator"
"""The only role with a built-in meaning: manages services, ends runs, and answers for what no person owns."""

Note = Callable[[AsyncSession], Awaitable[object]]
"""Writes an audit event in the transaction of the change that it describes."""


class Roles:
    """Assigns, removes and checks roles, and owns their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, principal_id: str) -> frozenset[str]:
        """Return the roles of a principal."""
        query = select(RoleRow.role).where(RoleRow.principal_id == principal_id)
        async with self._database.reading() as session:
            return frozenset((await session.exec(query)).all())

    async def of_each(self, principal_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """Return the roles of each of these principals, by principal id."""
        query = select(RoleRow).where(col(RoleRow.principal_id).in_(principal_ids))
        async with self._database.reading() as session:
            rows = (await session.exec(query)).all()
        roles: dict[str, set[str]] = {principal_id: set() for principal_id in principal_ids}
        for row in rows:
            roles[row.principal_id].add(row.role)
        return {principal_id: frozenset(has) for principal_id, has in roles.items()}

    async def administers(self, principal: Principal) -> bool:
        """Whether the principal is an administrator."""
        return ADMINISTRATOR in await self.of(principal.id)

    async def holders(self, role: str) -> list[str]:
        """Return the ids of the active principals that have this role, in order."""
        query = (
            select(RoleRow.principal_id)
            .join(PrincipalRow, col(PrincipalRow.id) == RoleRow.principal_id)
            .where(RoleRow.role == role, col(PrincipalRow.active))
            .order_by(RoleRow.principal_id)
        )
        async with self._database.reading() as session:
            return list((await session.exec(query)).all())

    async def all(self) -> dict[str, list[str]]:
        """Return the roles of every principal that has one, by principal id."""
        found: dict[str, list[str]] = {}
        async with self._database.reading() as session:
            for row in (await session.exec(select(RoleRow).order_by(col(RoleRow.role)))).all():
                found.setdefault(row.principal_id, []).append(row.role)
        return found

    async def has(self, session: AsyncSession, principal_id: str, role: str) -> bool:
        """Whether the principal is an active person who has this role, read in the caller's transaction.

        Returns False for a service, whatever its roles.
        """
        query = (
            select(RoleRow.principal_id)
            .join(PrincipalRow, col(PrincipalRow.id) == RoleRow.principal_id)
            .where(
                RoleRow.principal_id == principal_id,
                RoleRow.role == role,
                col(PrincipalRow.active),
                PrincipalRow.kind == "person",
            )
        )
        return (await session.exec(query)).one_or_none() is not None

    async def give(self, principal_id: str, role: str, note: Note | None = None) -> bool:
        """Assign a role and record that in the same transaction, and return False if the principal has it already."""
        try:
            async with self._database.writing() as session:
                if await session.get(RoleRow, (principal_id, role)) is not None:
                    return False
                session.add(RoleRow(principal_id=principal_id, role=role))
                if note is not None:
                    await note(session)
        except IntegrityError:
            return False
        return True

    async def take(self, principal_id: str, role: str, note: Note | None = None) -> bool:
        """Remove a role and record that in the same transaction, and return False if the principal does not have it."""
        taken = delete(RoleRow).where(col(RoleRow.principal_id) == principal_id, col(RoleRow.role) == role)
        async with self._database.writing() as session:
            was_there = (await session.exec(taken)).rowcount > 0
            if was_there and note is not None:
                await note(session)
        return was_there

    async def require(self, principal: Principal, role: str) -> None:
        """Raise NotAllowed unless the principal has the role."""
        if role not in await self.of(principal.id):
            raise NotAllowed(
                f"This takes the role '{role}', which {principal.name} does not have. An administrator can give it."
            )
