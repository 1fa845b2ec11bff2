"""Who may answer for whom: everybody for themselves, an administrator for a service, and nobody for another person."""

from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.identity.roles import Roles


class StandingIn:
    """Decides by what is on record at this moment: a role that was taken away answers nothing any more."""

    def __init__(self, principals: Principals, roles: Roles) -> None:
        self._principals = principals
        self._roles = roles

    async def asked(self, principal_id: str, person: Principal) -> Principal | None:
        """The principal that was asked, where this person may answer; None for everybody else."""
        if principal_id == person.id:
            return person
        asked = await self._principals.get(principal_id)
        if asked is None or asked.kind != "service" or not asked.active or person.kind != "person":
            return None
        return asked if await self._roles.administers(person) else None


def stand_in(asked: Principal, person: Principal) -> Principal | None:
    """The administrator who answers for a service, to be named beside it; None where it is a person who was asked."""
    return None if asked.id == person.id else person
