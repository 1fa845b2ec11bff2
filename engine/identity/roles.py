"""Stores which roles each principal has. What a role allows is decided by policy and by approvals."""

from collections.abc import Collection
from typing import Final

from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database
from engine.db.tables import PrincipalRow, RoleRow
from engine.errors import NotAllowed
from engine.identity.model import Principal

ADMINISTRATOR_ROLE: Final = "administrator"
"""The only role with a built-in meaning: manages services, ends runs, and answers for what no person owns."""


class Roles:
    """Assigns, removes and checks roles, and owns their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_roles(self, principal_id: str) -> frozenset[str]:
        """Return the roles of a principal."""
        statement = select(RoleRow.role).where(RoleRow.principal_id == principal_id)
        async with self._database.open_read_session() as db_session:
            return frozenset((await db_session.exec(statement)).all())

    async def list_roles_by_principal(self, principal_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """Return the roles of each of these principals, by principal id."""
        statement = select(RoleRow).where(col(RoleRow.principal_id).in_(principal_ids))
        async with self._database.open_read_session() as db_session:
            role_rows = (await db_session.exec(statement)).all()
        roles_by_principal: dict[str, set[str]] = {principal_id: set() for principal_id in principal_ids}
        for role_row in role_rows:
            roles_by_principal[role_row.principal_id].add(role_row.role)
        return {
            principal_id: frozenset(role_names) for principal_id, role_names in roles_by_principal.items()
        }

    async def is_administrator(self, principal: Principal) -> bool:
        """Whether the principal is an administrator."""
        return ADMINISTRATOR_ROLE in await self.list_roles(principal.id)

    async def list_holders(self, role_name: str) -> list[str]:
        """Return the ids of the active principals that have this role, in order."""
        statement = (
            select(RoleRow.principal_id)
            .join(PrincipalRow, col(PrincipalRow.id) == RoleRow.principal_id)
            .where(RoleRow.role == role_name, col(PrincipalRow.active))
            .order_by(RoleRow.principal_id)
        )
        async with self._database.open_read_session() as db_session:
            return list((await db_session.exec(statement)).all())

    async def list_all_roles(self) -> dict[str, list[str]]:
        """Return the roles of every principal that has one, by principal id."""
        roles_by_principal: dict[str, list[str]] = {}
        async with self._database.open_read_session() as db_session:
            for role_row in (await db_session.exec(select(RoleRow).order_by(col(RoleRow.role)))).all():
                roles_by_principal.setdefault(role_row.principal_id, []).append(role_row.role)
        return roles_by_principal

    async def has_role(self, db_session: AsyncSession, principal_id: str, role_name: str) -> bool:
        """Whether the principal is an active person who has this role, read in the caller's transaction.

        Returns False for a service, whatever its roles.
        """
        statement = (
            select(RoleRow.principal_id)
            .join(PrincipalRow, col(PrincipalRow.id) == RoleRow.principal_id)
            .where(
                RoleRow.principal_id == principal_id,
                RoleRow.role == role_name,
                col(PrincipalRow.active),
                PrincipalRow.kind == "person",
            )
        )
        return (await db_session.exec(statement)).one_or_none() is not None

    async def assign_role(self, db_session: AsyncSession, principal_id: str, role_name: str) -> bool:
        """Assign a role in the caller's transaction, and return False if the principal has it already."""
        if await db_session.get(RoleRow, (principal_id, role_name)) is not None:
            return False
        db_session.add(RoleRow(principal_id=principal_id, role=role_name))
        return True

    async def remove_role(self, db_session: AsyncSession, principal_id: str, role_name: str) -> bool:
        """Remove a role in the caller's transaction, and return False if the principal does not have it."""
        statement = delete(RoleRow).where(
            col(RoleRow.principal_id) == principal_id, col(RoleRow.role) == role_name
        )
        return (await db_session.exec(statement)).rowcount > 0

    async def require_role(self, principal: Principal, role_name: str) -> None:
        """Raise NotAllowed unless the principal has the role."""
        if role_name not in await self.list_roles(principal.id):
            raise NotAllowed(
                f"This takes the role '{role_name}', which {principal.name} does not have. An "
                "administrator can give it."
            )
