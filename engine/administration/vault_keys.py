"""Rotates and retires the keys that seal every secret, while everything runs.

A key of the keyring's file is changed as the last step of the transaction that records it, because a file is not part
of a transaction.
"""

from collections.abc import AsyncIterator

from sqlalchemy.exc import IntegrityError

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent, AuditEventKind
from engine.services import Services
from engine.vault.resealing import ProgressCallback, reseal_columns


async def rotate_vault_keys(
    services: Services, administrator: Administrator, report_progress: ProgressCallback
) -> tuple[str, int]:
    """Make a new data key, and a new master key where the keyring is a file, and seal every secret anew.

    Returns the data key's id and the number of secrets. After an interruption, `reseal_secrets` does the rest.
    """
    if services.settings.vault.provider == "keyring":
        await _rotate_master_key(services, administrator)
    async for _ in rewrap_data_keys(services, administrator):
        pass
    key_id = await rotate_data_key(services, administrator)
    return key_id, await reseal_secrets(services, report_progress)


async def retire_vault_keys(
    services: Services, administrator: Administrator, report_progress: ProgressCallback
) -> list[str]:
    """Drop every data key but the newest, and every master key but the newest where the keyring is a file.

    Returns the dropped keys, each as its kind and id. Raises TooSoon and SettingsInvalid within a minute of a rotation.
    """
    await reseal_secrets(services, report_progress)
    dropped_keys = [f"data key {key_id}" for key_id in await _retire_data_keys(services, administrator)]
    async for _ in rewrap_data_keys(services, administrator):
        pass
    return dropped_keys + [
        f"master key {key_id}" for key_id in await _retire_master_keys(services, administrator)
    ]


async def rotate_data_key(services: Services, administrator: Administrator) -> str:
    """Make a data key that seals from now on and return its id."""
    while True:
        new_key = await services.data_keys.make_next_key()
        try:
            async with services.trail.open_transaction() as transaction:
                services.data_keys.add_key(transaction.db_session, new_key)
                transaction.record(
                    _make_key_event("vault.key_rotated", "data", new_key.key_id, administrator)
                )
        except IntegrityError:
            if new_key.key_id not in await services.data_keys.list_key_ids():
                raise
            # Another process made the key with this number at the same time, so the next one is tried.
            continue
        return await services.data_keys.use_newest_key()


async def rewrap_data_keys(services: Services, administrator: Administrator) -> AsyncIterator[str]:
    """Wrap every data key with its provider's newest master key, one short transaction each; yield the ids.

    It also moves keys from another provider to the one that wraps now. After an interruption it may be repeated.
    """
    for key_id in await services.data_keys.list_key_ids():
        wrapped_key = await services.data_keys.wrap_again(key_id)
        if wrapped_key is None:
            continue
        async with services.trail.open_transaction() as transaction:
            if await services.data_keys.store_wrapped(transaction.db_session, wrapped_key):
                transaction.record(_make_key_event("vault.key_rewrapped", "data", key_id, administrator))
        yield key_id


async def reseal_secrets(services: Services, report_progress: ProgressCallback) -> int:
    """Seal with the newest data key every secret that an older one sealed; return how many."""
    return await reseal_columns(services.database, services.vault, report_progress)


async def _rotate_master_key(services: Services, administrator: Administrator) -> None:
    if services.keyring is None or not services.keyring.is_file_based:
        return
    async with services.trail.open_transaction() as transaction:
        key_id = services.keyring.rotate_key()
        transaction.record(_make_key_event("vault.key_rotated", "master", key_id, administrator))


async def _retire_master_keys(services: Services, administrator: Administrator) -> list[str]:
    if services.keyring is None or not services.keyring.is_file_based:
        return []
    async with services.trail.open_transaction() as transaction:
        key_ids = services.keyring.retire_keys()
        transaction.record(
            *(_make_key_event("vault.key_retired", "master", key_id, administrator) for key_id in key_ids)
        )
    return key_ids


async def _retire_data_keys(services: Services, administrator: Administrator) -> list[str]:
    async with services.trail.open_transaction() as transaction:
        key_ids = await services.data_keys.retire_keys(transaction.db_session)
        transaction.record(
            *(_make_key_event("vault.key_retired", "data", key_id, administrator) for key_id in key_ids)
        )
    return key_ids


def _make_key_event(
    event_kind: AuditEventKind, key_kind: str, key_id: str, administrator: Administrator
) -> AuditEvent:
    audit_event = AuditEvent(kind=event_kind, object_id=key_id, message=f"It is a {key_kind} key.")
    return attribute_event(audit_event, administrator)
