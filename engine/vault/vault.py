"""Seals secrets with data keys and binds each to its row. It accesses no database, and does not interpret secrets."""

from engine.vault.data_keys import DataKeys
from engine.vault.keyring import Keyring
from engine.vault.sealed import BY_DATA_KEY, BY_MASTER_KEY, Sealed, seal


class Vault:
    """Authenticated encryption with the data keys. The keyring opens what a release without data keys sealed."""

    def __init__(self, data_keys: DataKeys, keyring: Keyring | None) -> None:
        self._data_keys = data_keys
        self._keyring = keyring

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Encrypt `plaintext` for the row that `associated_data` names; raises KeyServiceUnavailable."""
        key_id, key = await self._data_keys.current()
        return seal(BY_DATA_KEY, key_id, key, plaintext, bound_to)

    async def open(self, sealed: bytes, bound_to: str) -> bytes:
        """Decrypt; raises KeyServiceUnavailable, or VaultSealBroken where it was altered, moved or lost its key."""
        value = Sealed.read(sealed)
        if value.version == BY_MASTER_KEY:
            key = None if self._keyring is None else self._keyring.key(value.key_id)
        else:
            key = await self._data_keys.key(value.key_id)
        return value.open(key, bound_to)

    async def is_current(self, sealed: bytes) -> bool:
        """Whether this value is sealed with the key that seals now."""
        value = Sealed.read(sealed)
        return (value.version, value.key_id) == (BY_DATA_KEY, (await self._data_keys.current())[0])

    def derived(self, purpose: str) -> list[bytes]:
        """Derive a key for one purpose from each data key, newest first. The keys are the same in every process."""
        return self._data_keys.derived(purpose)
