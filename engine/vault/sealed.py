"""The format of a sealed value: the id of its key, and AES-256-GCM. It holds no key and knows no row."""

import secrets
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import VaultSealBroken

KEY_BYTES: Final = 32
VERSION_MASTER_KEY: Final = 1
VERSION_DATA_KEY: Final = 2

_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class SealedValue:
    """Version (1 byte), length of the key's id (1), its id, nonce (12), ciphertext and tag.

    Everything before the nonce and the text `associated_data`, which names the row, are associated data of the cipher.
    So a value opens only in the row it was made for. Version 1 was sealed by a master key of the keyring itself,
    version 2 by a data key.
    """

    format_version: int
    key_id: str
    header_bytes: bytes
    payload_bytes: bytes

    @classmethod
    def parse_value(cls, stored_value: bytes) -> Self:
        """Parse a stored value; raises VaultSealBroken for anything else."""
        id_length_bytes = stored_value[1] if len(stored_value) > 1 else 0
        header_bytes, payload_bytes = stored_value[: 2 + id_length_bytes], stored_value[2 + id_length_bytes :]
        if len(payload_bytes) <= _NONCE_BYTES or stored_value[0] not in {
            VERSION_MASTER_KEY,
            VERSION_DATA_KEY,
        }:
            raise VaultSealBroken("A stored secret is not in the vault's format.")
        return cls(stored_value[0], header_bytes[2:].decode("ascii", "replace"), header_bytes, payload_bytes)

    def open_value(self, key_bytes: bytes | None, associated_data: str) -> bytes:
        """Decrypt; raises VaultSealBroken where the key is gone or the value was altered or moved to another row."""
        if key_bytes is None:
            key_kind = "master key" if self.format_version == VERSION_MASTER_KEY else "data key"
            raise VaultSealBroken(
                f"The secret of {associated_data} was sealed with {key_kind} {self.key_id}, which is not there."
            )
        nonce, ciphertext = self.payload_bytes[:_NONCE_BYTES], self.payload_bytes[_NONCE_BYTES:]
        try:
            return AESGCM(key_bytes).decrypt(nonce, ciphertext, self.header_bytes + associated_data.encode())
        except InvalidTag as error:
            raise VaultSealBroken(
                f"The secret of {associated_data} was altered, or belongs to another row."
            ) from error


def seal_value(
    format_version: int, key_id: str, key_bytes: bytes, plaintext: bytes, associated_data: str
) -> bytes:
    """Encrypt `plaintext` for the row that `associated_data` names."""
    header_bytes = bytes([format_version, len(key_id)]) + key_id.encode()
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return (
        header_bytes
        + nonce
        + AESGCM(key_bytes).encrypt(nonce, plaintext, header_bytes + associated_data.encode())
    )
