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

_BOTO_CONFIG: Final = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
_FOREIGN_KEY_ERROR_CODES: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class AwsKmsProvider:
    """One symmetric KMS key; the encryption context of each call is the text that a data key is bound to."""

    name = "aws_kms"

    def __init__(self, settings: AwsKmsSettings) -> None:
        self._kms_key_id = settings.key_id
        try:
            self._kms_client = boto3.client(
                "kms", region_name=settings.region, endpoint_url=settings.endpoint, config=_BOTO_CONFIG
            )
        except (BotoCoreError, ValueError) as error:
            raise SettingsInvalid(
                f"BYLINE_VAULT__AWS_KMS cannot be used ({type(error).__name__}): set its REGION, or its ENDPOINT."
            ) from error

    async def wrap_key(self, data_key: bytes, associated_data: str) -> bytes:
        """Encrypt with the key's newest material."""
        return await self._call_kms(
            self._kms_client.encrypt, "CiphertextBlob", associated_data, Plaintext=data_key
        )

    async def unwrap_key(self, wrapped_key: bytes, associated_data: str) -> bytes:
        """Decrypt with the key material that encrypted."""
        return await self._call_kms(
            self._kms_client.decrypt, "Plaintext", associated_data, CiphertextBlob=wrapped_key
        )

    async def _call_kms(
        self,
        kms_operation: Callable[..., Mapping[str, Any]],
        response_field: str,
        associated_data: str,
        **parameters: bytes,
    ) -> bytes:
        encryption_context = {"byline": associated_data}
        try:
            response = await asyncio.to_thread(
                kms_operation, KeyId=self._kms_key_id, EncryptionContext=encryption_context, **parameters
            )
        except ClientError as error:
            error_code = str(error.response.get("Error", {}).get("Code"))
            if error_code in _FOREIGN_KEY_ERROR_CODES:
                raise VaultSealBroken(
                    f"The key of {associated_data} was altered, or is not one that AWS KMS key "
                    f"{self._kms_key_id} wrapped."
                ) from None
            raise self._make_unavailable_error(error_code) from None
        except BotoCoreError as error:
            raise self._make_unavailable_error(type(error).__name__) from None
        return bytes(response[response_field])

    def _make_unavailable_error(self, reason: str) -> KeyServiceUnavailable:
        msg = (
            f"AWS KMS key {self._kms_key_id} cannot be used ({reason}): see that it is enabled, "
            "reachable and permitted."
        )
        return KeyServiceUnavailable(msg)
