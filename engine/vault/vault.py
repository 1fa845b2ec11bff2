"""Seals secrets with AES-256-GCM, each bound to the row it belongs to; it sees no database and no token's meaning."""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import VaultSealBroken
from engine.vault.keyring import Keyring

_VERSION = b"\x01"
_NONCE_BYTES = 12


class Vault:
    """Authenticated encryption under the keyring.

    A sealed value is version (1 byte), length of the key id (1), key id, nonce (12), ciphertext and tag; everything
    before the nonce and the `bound_to` text are associated data, so that a value opens only in the row it was made for.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Encrypt `plaintext` for the row that `bound_to` names."""
        key_id, key = self._keyring.current
        prefix = _VERSION + bytes([len(key_id)]) + key_id.encode()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return prefix + nonce + AESGCM(key).encrypt(nonce, plaintext, prefix + bound_to.encode())

    def open(self, sealed: bytes, bound_to: str) -> bytes:
        """Decrypt; raises VaultSealBroken where the key is gone or the value was altered or moved to another row."""
        key_id, prefix, rest = _split(sealed)
        key = self._keyring.key(key_id)
        if key is None:
            msg = f"The secret of {bound_to} was sealed with key {key_id}, which is not in the keyring."
            raise VaultSealBroken(msg)
        try:
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], prefix + bound_to.encode())
        except InvalidTag as error:
            msg = f"The secret of {bound_to} was altered, or belongs to another row."
            raise VaultSealBroken(msg) from error

    def is_current(self, sealed: bytes) -> bool:
        """Whether this value is sealed with the key that seals now."""
        return _split(sealed)[0] == self._keyring.current[0]


def _split(sealed: bytes) -> tuple[str, bytes, bytes]:
    length = sealed[1] if len(sealed) > 1 else 0
    prefix, rest = sealed[: 2 + length], sealed[2 + length :]
    if sealed[:1] != _VERSION or len(rest) <= _NONCE_BYTES:
        msg = "A stored secret is not in the vault's format."
        raise VaultSealBroken(msg)
    return prefix[2:].decode("ascii", "replace"), prefix, rest
