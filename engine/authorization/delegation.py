"""Decides who may answer for whom: a person for themselves, and an administrator for a service."""

from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.identity.roles import Roles


class Delegation:
    """Finds the principal for whom a person may answer, by the roles that the person has at this moment."""

    def __init__(self, principals: Principals, roles: Roles) -> None:
        self._principals = principals
        self._roles = roles

    async def find_asked_principal(self, principal_id: str, person: Principal) -> Principal | None:
        """Return the principal that was asked if this person may answer for them, else None."""
        if principal_id == person.id:
            return person
        asked_principal = await self._principals.find_principal(principal_id)
        if (
            asked_principal is None
            or asked_principal.kind != "service"
            or not asked_principal.is_active
            or person.kind != "person"
        ):
            return None
        return asked_principal if await self._roles.is_administrator(person) else None


def acting_administrator(asked_principal: Principal, person: Principal) -> Principal | None:
    """Return the person as the administrator who answers for a service, or None if they answer for themselves."""
    return None if asked_principal.id == person.id else person
