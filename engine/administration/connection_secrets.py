"""Stores and removes the secrets of connections' clients."""

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent
from engine.services import Services


async def store_connection_secret(
    services: Services, administrator: Administrator, connection_name: str, client_secret: str
) -> None:
    """Store the secret of a connection's client in the vault, in place of an earlier one."""
    audit_event = AuditEvent(kind="connection.secret_put", connection=connection_name)
    async with services.trail.open_transaction() as transaction:
        await services.client_secrets.store_secret(transaction.db_session, connection_name, client_secret)
        transaction.record(attribute_event(audit_event, administrator))


async def remove_connection_secret(
    services: Services, administrator: Administrator, connection_name: str
) -> bool:
    """Remove the secret of a connection's client from the vault; return False if there is none."""
    audit_event = AuditEvent(kind="connection.secret_removed", connection=connection_name)
    async with services.trail.open_transaction() as transaction:
        is_removed = await services.client_secrets.delete_secret(transaction.db_session, connection_name)
        if is_removed:
            transaction.record(attribute_event(audit_event, administrator))
    return is_removed
