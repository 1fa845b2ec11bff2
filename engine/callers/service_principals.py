"""Services: principals for machines, which an administrator adds. Nobody signs in as one."""

from typing import Final

from engine.errors import ServiceUnknown
from engine.identity.model import Principal
from engine.identity.principals import Principals

SERVICE_NAME_PATTERN: Final = r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
"""The form of a service's name: a word that fits in addresses and commands."""


class ServicePrincipals:
    """The services among the principals; `issuer` is this installation, which is the issuer of each."""

    def __init__(self, principals: Principals, issuer: str) -> None:
        self._principals = principals
        self.issuer = issuer

    async def list_services(self) -> list[Principal]:
        """Return every service, by name."""
        return await self._principals.list_principals(principal_kind="service")

    async def get_service(self, name_or_id: str) -> Principal:
        """Return the service with this name or id; raises ServiceUnknown."""
        named_service = await self._principals.find_by_subject(self.issuer, f"service:{name_or_id}")
        service_principal = named_service or await self._principals.find_principal(name_or_id)
        if service_principal is None or service_principal.kind != "service":
            raise ServiceUnknown(
                f"There is no service '{name_or_id}'. An administrator makes one: byline services add NAME."
            )
        return service_principal
