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
_NOT_ITS_OWN: Final = ("message authentication failed", "invalid ciphertext")


class Transit:
    """One key of a transit engine, of an AEAD type, since that takes associated data (aes256-gcm96 is the default)."""

    name = "transit"

    def __init__(self, settings: TransitSettings) -> None:
        self._settings = settings
        self._token = TransitToken(settings)

    async def wrap(self, data_key: bytes, bound_to: str) -> bytes:
        """Encrypt with the key's newest version."""

        def encrypt(transit: Any, **key: str) -> str:
            answer = transit.encrypt_data(
                plaintext=_text(data_key), associated_data=_text(bound_to.encode()), **key
            )
            return str(answer["data"]["ciphertext"])

        return (await self._asked(encrypt, bound_to)).encode()

    async def unwrap(self, wrapped: bytes, bound_to: str) -> bytes:
        """Decrypt with the version of the key that encrypted."""

        def decrypt(transit: Any, **key: str) -> str:
            answer = transit.decrypt_data(
                ciphertext=wrapped.decode(), associated_data=_text(bound_to.encode()), **key
            )
            return str(answer["data"]["plaintext"])

        return b64decode(await self._asked(decrypt, bound_to))

    async def _asked(self, question: Callable[..., str], bound_to: str) -> str:
        try:
            return await asyncio.to_thread(self._ask, question)
        except InvalidRequest as error:
            if any(told in str(error) for told in _NOT_ITS_OWN):
                raise VaultSealBroken(
                    f"The key of {bound_to} was altered, or is not one that {self._where()} wrapped."
                ) from None
            raise self._unavailable(error) from None
        except (VaultError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._unavailable(error) from None

    def _ask(self, question: Callable[..., str]) -> str:
        settings = self._settings
        # Each call has a client of its own, since threads that call at once may have different tokens.
        client = hvac.Client(
            url=settings.address,
            token="",
            namespace=settings.namespace,
            timeout=_TIMEOUT_SECONDS,
            allow_redirects=False,
        )

        def asked_with(token: str) -> str:
            client.token = token
            return question(client.secrets.transit, name=settings.key, mount_point=settings.mount)

        try:
            token = self._token.current(client)
            try:
                return asked_with(token)
            except Forbidden:
                another = self._token.instead_of(token, client)
                if another is None:
                    raise
                return asked_with(another)
        finally:
            client.adapter.close()

    def _where(self) -> str:
        return f"Vault's key '{self._settings.key}' at {self._settings.address}"

    def _unavailable(self, error: Exception) -> KeyServiceUnavailable:
        # The server's own words may be anything, so only the kind of the error is shown.
        msg = f"{self._where()} cannot be used ({type(error).__name__}): see that it is up, unsealed and permitted."
        return KeyServiceUnavailable(msg)


def _text(data: bytes) -> str:
    return b64encode(data).decode()
