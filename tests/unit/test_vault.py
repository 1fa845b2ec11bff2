import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from engine.errors import VaultSealBroken
from engine.settings import VaultSettings
from engine.vault.keyring import Keyring
from engine.vault.vault import Vault

SECRET = b"a refresh token"


def vault(*key_ids: str) -> Vault:
    """A vault whose keys follow from their ids, newest first."""
    entries = [
        {"id": key_id, "key": urlsafe_b64encode(key_id.encode().ljust(32)).decode()} for key_id in key_ids
    ]
    return Vault(Keyring(VaultSettings(keyring_file=None, keyring=SecretStr(json.dumps({"keys": entries})))))


@given(st.binary(), st.text(alphabet=st.characters(codec="utf-8")))
def test_what_was_sealed_opens_for_the_row_that_it_was_sealed_for(secret: bytes, row: str) -> None:
    mine = vault("one")

    assert mine.open(mine.seal(secret, row), row) == secret


def test_the_same_secret_never_looks_the_same_twice() -> None:
    mine = vault("one")
    sealed = [mine.seal(SECRET, "row") for _ in range(100)]

    assert len(set(sealed)) == 100
    assert not [each for each in sealed if SECRET in each]


def test_a_value_moved_to_another_row_does_not_open() -> None:
    mine = vault("one")

    with pytest.raises(VaultSealBroken, match="grant:2 was altered, or belongs to another row"):
        mine.open(mine.seal(SECRET, "grant:1"), "grant:2")


def altered(sealed: bytes) -> Iterator[bytes]:
    for place in range(len(sealed)):
        yield sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        yield sealed[:place]
    yield sealed + b"\x00"
    yield b"\x00" + sealed


def test_a_value_of_which_any_part_was_altered_or_cut_does_not_open() -> None:
    mine = vault("one")

    for each in altered(mine.seal(SECRET, "row")):
        with pytest.raises(VaultSealBroken):
            mine.open(each, "row")


def test_a_value_cannot_be_made_to_name_another_key() -> None:
    sealed = vault("one").seal(SECRET, "row")

    with pytest.raises(VaultSealBroken):
        vault("two", "one").open(sealed.replace(b"one", b"two"), "row")


def test_any_key_of_the_ring_opens_and_the_first_one_seals() -> None:
    before, after = vault("one"), vault("two", "one")
    sealed = before.seal(SECRET, "row")

    assert after.open(sealed, "row") == SECRET
    assert not after.is_current(sealed)
    assert after.is_current(after.seal(SECRET, "row"))


def test_a_value_whose_key_is_gone_is_told_by_its_row_and_key() -> None:
    sealed = vault("one").seal(SECRET, "grant:1")

    with pytest.raises(
        VaultSealBroken, match=r"grant:1 was sealed with key one, which is not in the keyring"
    ):
        vault("two").open(sealed, "grant:1")


def test_no_error_of_the_vault_holds_the_secret() -> None:
    mine = vault("one")
    for opened in ((mine, "other"), (vault("two"), "row")):
        with pytest.raises(VaultSealBroken) as refused:
            opened[0].open(mine.seal(SECRET, "row"), opened[1])

        assert SECRET.decode() not in str(refused.value)
