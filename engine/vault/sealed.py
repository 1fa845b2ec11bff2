"""The format of a sealed value: the id of its key, and AES-256-GCM. It holds no key and knows no row."""

import secrets
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import VaultSealBroken

KEY_BYTES: Final = 32
BY_MASTER_KEY: Final = 1
BY_DATA_KEY: Final = 2

_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Sealed:
    """Version (1 byte), length of the key's id (1), its id, nonce (12), ciphertext and tag.

    Everything before the nonce and the text `associated_data`, which names the row, are associated data of the cipher.
    So a value opens only in the row it was made for. Version 1 was sealed by a master key of the keyring itself,
    version 2 by a data key.
    """

    version: int
    key_id: str
    prefix: bytes
    rest: bytes

    @classmethod
    def read(cls, value: bytes) -> Self:
        """Parse a stored value; raises VaultSealBroken for anything else."""
        length = value[1] if len(value) > 1 else 0
        prefix, rest = value[: 2 + length], value[2 + length :]
        if len(rest) <= _NONCE_BYTES or value[0] not in {BY_MASTER_KEY, BY_DATA_KEY}:
            raise VaultSealBroken("A stored secret is not in the vault's format.")
        return cls(value[0], prefix[2:].decode("ascii", "replace"), prefix, rest)

    def open(self, key: bytes | None, bound_to: str) -> bytes:
        """Decrypt; raises VaultSealBroken where the key is gone or the value was altered or moved to another row."""
        if key is None:
            kind = "master key" if self.version == BY_MASTER_KEY else "data key"
            raise VaultSealBroken(
                f"The secret of {bound_to} was sealed with {kind} {self.key_id}, which is not there."
            )
        nonce, encrypted = self.rest[:_NONCE_BYTES], self.rest[_NONCE_BYTES:]
        try:
            return AESGCM(key).decrypt(nonce, encrypted, self.prefix + bound_to.encode())
        except InvalidTag as error:
            raise VaultSealBroken(
                f"The secret of {bound_to} was altered, or belongs to another row."
            ) from error


def seal(version: int, key_id: str, key: bytes, plaintext: bytes, bound_to: str) -> bytes:
    """Encrypt `plaintext` for the row that `associated_data` names."""
    prefix = bytes([version, len(key_id)]) + key_id.encode()
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return prefix + nonce + AESGCM(key).encrypt(nonce, plaintext, prefix + bound_to.encode())
