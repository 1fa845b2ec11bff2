"""Decides who may answer for whom: a person for themselves, and an administrator for a service."""

from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.identity.roles import Roles


class StandingIn:
    """Finds the principal for whom a person may answer, by the roles that the person has at this moment."""

    def __init__(self, principals: Principals, roles: Roles) -> None:
        self._principals = principals
        self._roles = roles

    async def asked(self, principal_id: str, person: Principal) -> Principal | None:
        """Return the principal that was asked if this person may answer for them, else None."""
        if principal_id == person.id:
            return person
        asked = await self._principals.get(principal_id)
        if asked is None or asked.kind != "service" or not asked.active or person.kind != "person":
            return None
        return asked if await self._roles.administers(person) else None


def stand_in(asked: Principal, person: Principal) -> Principal | None:
    """Return the person as the administrator who answers for a service, or None if they answer for themselves."""
    return None if asked.id == person.id else person
