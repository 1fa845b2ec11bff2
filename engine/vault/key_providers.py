"""Where the master key lies: in a keyring here, at HashiCorp Vault, or at AWS; it never hands a master key out."""

from typing import Protocol

from engine.settings import VaultSettings
from engine.vault.keyring import Keyring


class KeyProvider(Protocol):
    """Wraps data keys with a master key that it keeps.

    Both raise KeyServiceUnavailable where the service that has the key does not answer or refuses, and `unwrap` raises
    VaultSealBroken where `bound_to` is another or the wrapped key was altered.
    """

    name: str

    async def wrap(self, data_key: bytes, bound_to: str) -> bytes:
        """The data key, encrypted with the newest version of the master key."""
        ...

    async def unwrap(self, wrapped: bytes, bound_to: str) -> bytes:
        """The data key that was wrapped, with whichever version of the master key."""
        ...


def open_key_providers(settings: VaultSettings) -> tuple[list[KeyProvider], Keyring | None]:
    """Every provider that the settings name, the one that wraps first; and the keyring, where there is one.

    A keyring is made on the first start only where it is to wrap: beside another provider it is for what was sealed
    before. A provider's library is loaded where the provider is used, and SettingsInvalid says which one is missing.
    """
    keyring = Keyring(settings) if settings.provider == "keyring" or settings.has_keyring else None
    providers: dict[str, KeyProvider] = {} if keyring is None else {keyring.name: keyring}
    if settings.transit is not None:
        from engine.vault.transit import Transit

        providers[Transit.name] = Transit(settings.transit)
    if settings.aws_kms is not None:
        from engine.vault.aws_kms import AwsKms

        providers[AwsKms.name] = AwsKms(settings.aws_kms)
    return [providers.pop(settings.provider), *providers.values()], keyring
