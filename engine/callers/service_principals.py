"""Services: principals for machines, which an administrator adds. Nobody signs in as one."""

import re
import uuid
from typing import Final

from sqlalchemy.exc import IntegrityError

from engine.audit.trail import AuditEvent, Trail
from engine.db.database import now
from engine.db.tables import PrincipalRow
from engine.errors import NameTaken, ServiceUnknown
from engine.identity.model import Principal
from engine.identity.principals import Principals

NAME: Final = r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
"""The form of a service's name: a word that fits in addresses and commands."""


class ServicePrincipals:
    """The services among the principals; `issuer` is this installation, which is the issuer of each."""

    def __init__(self, principals: Principals, trail: Trail, issuer: str) -> None:
        self._principals = principals
        self._trail = trail
        self._issuer = issuer

    async def add(self, name: str, *, by: Principal | None = None) -> Principal:
        """Add a service. Raises NameTaken where a service has that name already, or the name has another form."""
        if re.fullmatch(NAME, name) is None:
            raise NameTaken(
                f"'{name}' does not fit: name a service in lower-case letters, digits and hyphens."
            )
        # No person of the built-in sign-in has such a subject: theirs are random UUIDs.
        service = Principal(str(uuid.uuid4()), self._issuer, f"service:{name}", name, kind="service")
        row = PrincipalRow(
            id=service.id,
            issuer=service.issuer,
            subject=service.subject,
            name=name,
            kind=service.kind,
            created_at=now(),
        )
        created = AuditEvent(kind="service.created", principal=service, by=by, object_id=service.id)
        try:
            await self._trail.append(created, row)
        except IntegrityError as error:
            raise NameTaken(f"There is a service '{name}' already.") from error
        return service

    async def all(self) -> list[Principal]:
        """Return every service, by name."""
        return await self._principals.all(kind="service")

    async def get(self, name_or_id: str) -> Principal:
        """Return the service with this name or id; raises ServiceUnknown."""
        found = await self._principals.find(self._issuer, f"service:{name_or_id}")
        service = found or await self._principals.get(name_or_id)
        if service is None or service.kind != "service":
            raise ServiceUnknown(
                f"There is no service '{name_or_id}'. An administrator makes one: byline services add NAME."
            )
        return service
