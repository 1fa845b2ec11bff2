"""AWS KMS as a key provider. The master key never leaves it, and boto3 finds the credentials in its usual ways."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.errors import KeyServiceUnavailable, SettingsInvalid, VaultSealBroken
from engine.settings import AwsKmsSettings

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as error:
    raise SettingsInvalid("BYLINE_VAULT__AWS_KMS needs the library boto3: install byline[aws].") from error

_BOUNDED: Final = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
_NOT_ITS_OWN: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class AwsKms:
    """One symmetric KMS key; the encryption context of each call is the text that a data key is bound to."""

    name = "aws_kms"

    def __init__(self, settings: AwsKmsSettings) -> None:
        self._key = settings.key_id
        try:
            self._kms = boto3.client(
                "kms", region_name=settings.region, endpoint_url=settings.endpoint, config=_BOUNDED
            )
        except (BotoCoreError, ValueError) as error:
            raise SettingsInvalid(
                f"BYLINE_VAULT__AWS_KMS cannot be used ({type(error).__name__}): set its REGION, or its ENDPOINT."
            ) from error

    async def wrap(self, data_key: bytes, bound_to: str) -> bytes:
        """Encrypt with the key's newest material."""
        return await self._asked(self._kms.encrypt, "CiphertextBlob", bound_to, Plaintext=data_key)

    async def unwrap(self, wrapped: bytes, bound_to: str) -> bytes:
        """Decrypt with the key material that encrypted."""
        return await self._asked(self._kms.decrypt, "Plaintext", bound_to, CiphertextBlob=wrapped)

    async def _asked(
        self, question: Callable[..., Mapping[str, Any]], part: str, bound_to: str, **given: bytes
    ) -> bytes:
        context = {"byline": bound_to}
        try:
            answer = await asyncio.to_thread(question, KeyId=self._key, EncryptionContext=context, **given)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            if code in _NOT_ITS_OWN:
                raise VaultSealBroken(
                    f"The key of {bound_to} was altered, or is not one that AWS KMS key {self._key} wrapped."
                ) from None
            raise self._unavailable(code) from None
        except BotoCoreError as error:
            raise self._unavailable(type(error).__name__) from None
        return bytes(answer[part])

    def _unavailable(self, reason: str) -> KeyServiceUnavailable:
        msg = f"AWS KMS key {self._key} cannot be used ({reason}): see that it is enabled, reachable and permitted."
        return KeyServiceUnavailable(msg)
