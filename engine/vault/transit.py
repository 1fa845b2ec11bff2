"""HashiCorp Vault's transit engine as a key provider (OpenBao's is the same). The master key never leaves it."""

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any, Final

from engine.errors import KeyServiceUnavailable, SettingsInvalid, VaultSealBroken
from engine.settings import TransitSettings

try:
    import hvac
    from hvac.exceptions import Forbidden, InvalidRequest, VaultError
except ImportError as error:
    raise SettingsInvalid("BYLINE_VAULT__TRANSIT needs the library hvac: install byline[vault].") from error

from engine.vault.transit_token import TransitToken

_TIMEOUT_SECONDS: Final = 5.0
_FOREIGN_KEY_MESSAGES: Final = ("message authentication failed", "invalid ciphertext")


class TransitProvider:
    """One key of a transit engine, of an AEAD type, since that takes associated data (aes256-gcm96 is the default)."""

    name = "transit"

    def __init__(self, settings: TransitSettings) -> None:
        self._settings = settings
        self._transit_token = TransitToken(settings)

    async def wrap_key(self, data_key: bytes, associated_data: str) -> bytes:
        """Encrypt with the key's newest version."""

        def encrypt_key(transit_engine: Any, **key_arguments: str) -> str:
            response = transit_engine.encrypt_data(
                plaintext=_encode_base64(data_key),
                associated_data=_encode_base64(associated_data.encode()),
                **key_arguments,
            )
            return str(response["data"]["ciphertext"])

        return (await self._call_transit(encrypt_key, associated_data)).encode()

    async def unwrap_key(self, wrapped_key: bytes, associated_data: str) -> bytes:
        """Decrypt with the version of the key that encrypted."""

        def decrypt_key(transit_engine: Any, **key_arguments: str) -> str:
            response = transit_engine.decrypt_data(
                ciphertext=wrapped_key.decode(),
                associated_data=_encode_base64(associated_data.encode()),
                **key_arguments,
            )
            return str(response["data"]["plaintext"])

        return b64decode(await self._call_transit(decrypt_key, associated_data))

    async def _call_transit(self, transit_call: Callable[..., str], associated_data: str) -> str:
        try:
            return await asyncio.to_thread(self._call_with_token, transit_call)
        except InvalidRequest as error:
            if any(foreign_key_message in str(error) for foreign_key_message in _FOREIGN_KEY_MESSAGES):
                raise VaultSealBroken(
                    f"The key of {associated_data} was altered, or is not one that {self._describe_key()} wrapped."
                ) from None
            raise self._make_unavailable_error(error) from None
        except (VaultError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._make_unavailable_error(error) from None

    def _call_with_token(self, transit_call: Callable[..., str]) -> str:
        settings = self._settings
        # Each call has a client of its own, since threads that call at once may have different tokens.
        vault_client = hvac.Client(
            url=settings.address,
            token="",
            namespace=settings.namespace,
            timeout=_TIMEOUT_SECONDS,
            allow_redirects=False,
        )

        def call_with(vault_token: str) -> str:
            vault_client.token = vault_token
            return transit_call(vault_client.secrets.transit, name=settings.key, mount_point=settings.mount)

        try:
            vault_token = self._transit_token.get_token(vault_client)
            try:
                return call_with(vault_token)
            except Forbidden:
                other_token = self._transit_token.replace_token(vault_token, vault_client)
                if other_token is None:
                    raise
                return call_with(other_token)
        finally:
            vault_client.adapter.close()

    def _describe_key(self) -> str:
        return f"Vault's key '{self._settings.key}' at {self._settings.address}"

    def _make_unavailable_error(self, error: Exception) -> KeyServiceUnavailable:
        # The server's own words may be anything, so only the kind of the error is shown.
        msg = (
            f"{self._describe_key()} cannot be used ({type(error).__name__}): see that it is up, "
            "unsealed and permitted."
        )
        return KeyServiceUnavailable(msg)


def _encode_base64(raw_bytes: bytes) -> str:
    return b64encode(raw_bytes).decode()
