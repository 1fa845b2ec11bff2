"""Gives and takes roles."""

import re
from typing import Final

from sqlalchemy.exc import IntegrityError

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent
from engine.errors import SettingsInvalid
from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR_ROLE
from engine.services import Services

_ROLE_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


async def give_role(
    services: Services, administrator: Administrator, principal: Principal, role_name: str
) -> bool:
    """Give a role; return False if the principal has it already.

    Raises SettingsInvalid for a name that is no role's, and for a service that would become an administrator.
    """
    if _ROLE_PATTERN.fullmatch(role_name) is None:
        raise SettingsInvalid(
            f"'{role_name}' is no role: write one word of lower-case letters, digits and hyphens."
        )
    if role_name == ADMINISTRATOR_ROLE and principal.kind != "person":
        raise SettingsInvalid(f"{principal.name} is a service, and only a person can be an administrator.")
    audit_event = AuditEvent(kind="role.given", principal=principal, role=role_name)
    try:
        async with services.trail.open_transaction() as transaction:
            if not await services.roles.assign_role(transaction.db_session, principal.id, role_name):
                return False
            transaction.record(attribute_event(audit_event, administrator))
    except IntegrityError:
        # Another administrator gave it at the same time.
        return False
    return True


async def take_role(
    services: Services, administrator: Administrator, principal: Principal, role_name: str
) -> bool:
    """Take a role away; return False if the principal does not have it."""
    audit_event = AuditEvent(kind="role.taken", principal=principal, role=role_name)
    async with services.trail.open_transaction() as transaction:
        has_removed_role = await services.roles.remove_role(transaction.db_session, principal.id, role_name)
        if has_removed_role:
            transaction.record(attribute_event(audit_event, administrator))
    return has_removed_role
