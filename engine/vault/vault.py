"""Seals secrets with data keys, each bound to the row it belongs to; it sees no database and no token's meaning."""

from engine.vault.data_keys import DataKeys
from engine.vault.keyring import Keyring
from engine.vault.sealed import BY_DATA_KEY, BY_MASTER_KEY, Sealed, seal


class Vault:
    """Authenticated encryption under the data keys; what a release before them sealed still opens by the keyring."""

    def __init__(self, data_keys: DataKeys, keyring: Keyring | None) -> None:
        self._data_keys = data_keys
        self._keyring = keyring

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Encrypt `plaintext` for the row that `bound_to` names; raises KeyServiceUnavailable."""
        key_id, key = await self._data_keys.current()
        return seal(BY_DATA_KEY, key_id, key, plaintext, bound_to)

    async def open(self, sealed: bytes, bound_to: str) -> bytes:
        """Decrypt; raises KeyServiceUnavailable, or VaultSealBroken for what was altered or moved, or lost its key."""
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
        """A key for one purpose from each data key, newest first, alike in every process."""
        return self._data_keys.derived(purpose)
