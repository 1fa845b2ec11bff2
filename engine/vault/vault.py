"""Seals secrets with data keys and binds each to its row. It accesses no database, and does not interpret secrets."""

from engine.vault.data_keys import DataKeys
from engine.vault.keyring import Keyring
from engine.vault.sealed import VERSION_DATA_KEY, VERSION_MASTER_KEY, SealedValue, seal_value
from engine.vault.sealed_column import SealedColumn


class Vault:
    """Authenticated encryption with the data keys. The keyring opens what a release without data keys sealed."""

    def __init__(self, data_keys: DataKeys, keyring: Keyring | None) -> None:
        self._data_keys = data_keys
        self._keyring = keyring
        self._sealed_columns: dict[tuple[str, str], SealedColumn] = {}

    def register_column(self, sealed_column: SealedColumn) -> None:
        """Add a column to those that are sealed again after a rotation. The owner of a table does so when constructed.

        A column that nobody registers loses its secrets when the older keys are retired.
        """
        self._sealed_columns[sealed_column.row_class.__name__, sealed_column.column_name] = sealed_column

    @property
    def sealed_columns(self) -> tuple[SealedColumn, ...]:
        """Every registered column, the newest registration first.

        An owner that moves sealed values into another owner's table is constructed after it. In this order a value that
        moves while the columns are visited is met in its new place.
        """
        return tuple(reversed(self._sealed_columns.values()))

    async def seal_secret(self, plaintext: bytes, associated_data: str) -> bytes:
        """Encrypt `plaintext` for the row that `associated_data` names; raises KeyServiceUnavailable."""
        key_id, key_bytes = await self._data_keys.get_current_key()
        return seal_value(VERSION_DATA_KEY, key_id, key_bytes, plaintext, associated_data)

    async def open_secret(self, sealed_secret: bytes, associated_data: str) -> bytes:
        """Decrypt; raises KeyServiceUnavailable, or VaultSealBroken where it was altered, moved or lost its key."""
        sealed_value = SealedValue.parse_value(sealed_secret)
        if sealed_value.format_version == VERSION_MASTER_KEY:
            key_bytes = None if self._keyring is None else self._keyring.find_key(sealed_value.key_id)
        else:
            key_bytes = await self._data_keys.find_key(sealed_value.key_id)
        return sealed_value.open_value(key_bytes, associated_data)

    async def has_current_key(self, sealed_secret: bytes) -> bool:
        """Whether this value is sealed with the key that seals now."""
        sealed_value = SealedValue.parse_value(sealed_secret)
        return (sealed_value.format_version, sealed_value.key_id) == (
            VERSION_DATA_KEY,
            (await self._data_keys.get_current_key())[0],
        )

    def derive_keys(self, purpose: str) -> list[bytes]:
        """Derive a key for one purpose from each data key, newest first. The keys are the same in every process."""
        return self._data_keys.derive_keys(purpose)
