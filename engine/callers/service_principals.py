"""Services: principals for machines, which an administrator adds. Nobody signs in as one."""

import re
import uuid
from typing import Final

from sqlalchemy.exc import IntegrityError

from engine.audit.trail import AuditEvent, AuditTrail
from engine.db.database import utc_now
from engine.db.tables import PrincipalRow
from engine.errors import NameTaken, ServiceUnknown
from engine.identity.model import Principal
from engine.identity.principals import Principals

SERVICE_NAME_PATTERN: Final = r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
"""The form of a service's name: a word that fits in addresses and commands."""


class ServicePrincipals:
    """The services among the principals; `issuer` is this installation, which is the issuer of each."""

    def __init__(self, principals: Principals, audit_trail: AuditTrail, issuer: str) -> None:
        self._principals = principals
        self._audit_trail = audit_trail
        self._issuer = issuer

    async def add_service(self, service_name: str, *, administrator: Principal | None = None) -> Principal:
        """Add a service. Raises NameTaken where a service has that name already, or the name has another form."""
        if re.fullmatch(SERVICE_NAME_PATTERN, service_name) is None:
            raise NameTaken(
                f"'{service_name}' does not fit: name a service in lower-case letters, digits and hyphens."
            )
        # No person of the built-in sign-in has such a subject: theirs are random UUIDs.
        service_principal = Principal(
            str(uuid.uuid4()), self._issuer, f"service:{service_name}", service_name, kind="service"
        )
        principal_row = PrincipalRow(
            id=service_principal.id,
            issuer=service_principal.issuer,
            subject=service_principal.subject,
            name=service_name,
            kind=service_principal.kind,
            created_at=utc_now(),
        )
        audit_event = AuditEvent(
            kind="service.created",
            principal=service_principal,
            by=administrator,
            object_id=service_principal.id,
        )
        try:
            await self._audit_trail.append_event(audit_event, principal_row)
        except IntegrityError as error:
            raise NameTaken(f"There is a service '{service_name}' already.") from error
        return service_principal

    async def list_services(self) -> list[Principal]:
        """Return every service, by name."""
        return await self._principals.list_principals(principal_kind="service")

    async def get_service(self, name_or_id: str) -> Principal:
        """Return the service with this name or id; raises ServiceUnknown."""
        named_service = await self._principals.find_by_subject(self._issuer, f"service:{name_or_id}")
        service_principal = named_service or await self._principals.find_principal(name_or_id)
        if service_principal is None or service_principal.kind != "service":
            raise ServiceUnknown(
                f"There is no service '{name_or_id}'. An administrator makes one: byline services add NAME."
            )
        return service_principal
