"""Adds services: principals for machines, which act in their own name."""

import re
import uuid

from sqlalchemy.exc import IntegrityError

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent
from engine.callers.service_principals import SERVICE_NAME_PATTERN
from engine.errors import NameTaken
from engine.identity.model import Principal
from engine.services import Services


async def add_service(services: Services, administrator: Administrator, service_name: str) -> Principal:
    """Add a service. Raises NameTaken where a service has that name already, or the name has another form."""
    if re.fullmatch(SERVICE_NAME_PATTERN, service_name) is None:
        raise NameTaken(
            f"'{service_name}' does not fit: name a service in lower-case letters, digits and hyphens."
        )
    # No person of the built-in sign-in has such a subject: theirs are random UUIDs.
    service_principal = Principal(
        str(uuid.uuid4()),
        services.service_principals.issuer,
        f"service:{service_name}",
        service_name,
        kind="service",
    )
    audit_event = AuditEvent(
        kind="service.created", principal=service_principal, object_id=service_principal.id
    )
    try:
        async with services.trail.open_transaction() as transaction:
            services.principals.add_principal(transaction.db_session, service_principal)
            transaction.record(attribute_event(audit_event, administrator))
    except IntegrityError as error:
        raise NameTaken(f"There is a service '{service_name}' already.") from error
    return service_principal
