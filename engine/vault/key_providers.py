"""Key providers: the master key is in a local keyring, at HashiCorp Vault or at AWS. None returns a master key."""

from typing import Protocol

from engine.settings import VaultSettings
from engine.vault.keyring import Keyring


class KeyProvider(Protocol):
    """Wraps data keys with a master key that it keeps.

    Both methods raise KeyServiceUnavailable where the service that has the key does not answer or refuses.
    `unwrap_key` raises VaultSealBroken where `associated_data` is another or the wrapped key was altered.
    """

    name: str

    async def wrap_key(self, data_key: bytes, associated_data: str) -> bytes:
        """Return the data key, encrypted with the newest version of the master key."""
        ...

    async def unwrap_key(self, wrapped_key: bytes, associated_data: str) -> bytes:
        """Return the data key that was wrapped with any version of the master key."""
        ...


def open_key_providers(settings: VaultSettings) -> tuple[list[KeyProvider], Keyring | None]:
    """Return every provider that the settings name, the one that wraps first, and the keyring where there is one.

    A keyring is created on the first start only where it is to wrap. Beside another provider it only opens what was
    sealed before. A provider's library is imported only where the provider is used, and SettingsInvalid says which one
    is missing.
    """
    keyring = Keyring(settings) if settings.provider == "keyring" or settings.has_keyring else None
    providers_by_name: dict[str, KeyProvider] = {} if keyring is None else {keyring.name: keyring}
    if settings.transit is not None:
        from engine.vault.transit import TransitProvider

        providers_by_name[TransitProvider.name] = TransitProvider(settings.transit)
    if settings.aws_kms is not None:
        from engine.vault.aws_kms import AwsKmsProvider

        providers_by_name[AwsKmsProvider.name] = AwsKmsProvider(settings.aws_kms)
    return [providers_by_name.pop(settings.provider), *providers_by_name.values()], keyring
