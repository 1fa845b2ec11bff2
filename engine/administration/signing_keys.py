"""Rotates and retires the keys that sign identities, tokens and the trail."""

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent
from engine.services import Services


async def rotate_signing_key(services: Services, administrator: Administrator) -> str:
    """Sign with a new key from now on and return its id. The line about it is the last that the older key signs."""
    async with services.trail.open_transaction() as transaction:
        kid = await services.signing_keys.add_key(transaction.db_session)
        transaction.record(attribute_event(AuditEvent(kind="key.rotated", object_id=kid), administrator))
    await services.signing_keys.load_keys()
    return kid


async def retire_signing_key(services: Services, administrator: Administrator, kid: str) -> bool:
    """Refuse from now on what this key signed; return False if it is not in force or is the one that signs."""
    async with services.trail.open_transaction() as transaction:
        is_retired = await services.signing_keys.retire_key(transaction.db_session, kid)
        if is_retired:
            transaction.record(attribute_event(AuditEvent(kind="key.retired", object_id=kid), administrator))
    await services.signing_keys.load_keys()
    return is_retired
