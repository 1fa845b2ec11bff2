"""Which roles a principal has: an administrator gives and takes them; what a role allows is said elsewhere."""

from typing import Final

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, select

from engine.db.database import Database
from engine.db.tables import PrincipalRow, RoleRow
from engine.errors import NotAllowed
from engine.identity.model import Principal

ADMINISTRATOR: Final = "administrator"
"""The one role that Byline itself knows: services, terminations, and whatever belongs to nobody in particular."""


class Roles:
    """Owner of the table of roles."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, principal_id: str) -> frozenset[str]:
        """The roles of a principal."""
        query = select(RoleRow.role).where(RoleRow.principal_id == principal_id)
        async with self._database.reading() as session:
            return frozenset((await session.exec(query)).all())

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

    async def give(self, principal_id: str, role: str) -> bool:
        """Give a role; False where they have it."""
        try:
            async with self._database.writing() as session:
                if await session.get(RoleRow, (principal_id, role)) is not None:
                    return False
                session.add(RoleRow(principal_id=principal_id, role=role))
        except IntegrityError:
            return False
        return True

    async def take(self, principal_id: str, role: str) -> bool:
        """Take a role away; False where they do not have it."""
        taken = delete(RoleRow).where(col(RoleRow.principal_id) == principal_id, col(RoleRow.role) == role)
        async with self._database.writing() as session:
            return (await session.exec(taken)).rowcount > 0

    async def require(self, principal: Principal, role: str) -> None:
        """Return where the principal has the role; raises NotAllowed."""
        if role not in await self.of(principal.id):
            msg = f"This takes the role '{role}', which {principal.name} does not have. An administrator can give it."
            raise NotAllowed(msg)
