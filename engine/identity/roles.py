"""Which roles a principal has: an administrator gives and takes them; what a role allows is said elsewhere."""

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
"""The one role that Byline itself knows: services, terminations, and whatever belongs to nobody in particular."""

Note = Callable[[AsyncSession], Awaitable[object]]
"""Writes a line of the trail in the transaction of what it tells of."""


class Roles:
    """Owner of the table of roles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, principal_id: str) -> frozenset[str]:
        """The roles of a principal."""
        query = select(RoleRow.role).where(RoleRow.principal_id == principal_id)
        async with self._database.reading() as session:
            return frozenset((await session.exec(query)).all())

    async def of_each(self, principal_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """The roles of each of these principals."""
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
        """The ids of everybody active who has this role."""
        query = (
            select(RoleRow.principal_id)
            .join(PrincipalRow, col(PrincipalRow.id) == RoleRow.principal_id)
            .where(RoleRow.role == role, col(PrincipalRow.active))
            .order_by(RoleRow.principal_id)
        )
        async with self._database.reading() as session:
            return list((await session.exec(query)).all())

    async def all(self) -> dict[str, list[str]]:
        """The roles of everybody who has one, by principal."""
        found: dict[str, list[str]] = {}
        async with self._database.reading() as session:
            for row in (await session.exec(select(RoleRow).order_by(col(RoleRow.role)))).all():
                found.setdefault(row.principal_id, []).append(row.role)
        return found

    async def has(self, session: AsyncSession, principal_id: str, role: str) -> bool:
        """Whether an active person has this role, as the caller's transaction sees it; a service never does."""
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
        """Give a role, and note it in the same transaction; False where they have it."""
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
        """Take a role away, and note it in the same transaction; False where they do not have it."""
        taken = delete(RoleRow).where(col(RoleRow.principal_id) == principal_id, col(RoleRow.role) == role)
        async with self._database.writing() as session:
            was_there = (await session.exec(taken)).rowcount > 0
            if was_there and note is not None:
                await note(session)
        return was_there

    async def require(self, principal: Principal, role: str) -> None:
        """Return where the principal has the role; raises NotAllowed."""
        if role not in await self.of(principal.id):
            raise NotAllowed(
                f"This takes the role '{role}', which {principal.name} does not have. An administrator can give it."
            )
