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

SECRET = b"a refresh token"


def keyring(*key_ids: str) -> Keyring:
    """A keyring whose keys follow from their ids, newest first."""
    entries = [
        {"id": key_id, "key": urlsafe_b64encode(key_id.encode().ljust(32)).decode()} for key_id in key_ids
    ]
    return Keyring(VaultSettings(keyring_file=None, keyring=SecretStr(json.dumps({"keys": entries}))))


@given(st.binary(), st.text(alphabet=st.characters(codec="utf-8")))
async def test_what_was_sealed_opens_for_the_row_that_it_was_sealed_for(secret: bytes, row: str) -> None:
    mine = keyring("one")

    assert await mine.unwrap_key(await mine.wrap_key(secret, row), row) == secret


async def test_the_same_secret_never_looks_the_same_twice() -> None:
    mine = keyring("one")
    sealed_values = [await mine.wrap_key(SECRET, "row") for _ in range(100)]

    assert len(set(sealed_values)) == 100
    assert not [sealed_value for sealed_value in sealed_values if SECRET in sealed_value]


async def test_a_value_moved_to_another_row_does_not_open() -> None:
    mine = keyring("one")

    with pytest.raises(VaultSealBroken, match="grant:2 was altered, or belongs to another row"):
        await mine.unwrap_key(await mine.wrap_key(SECRET, "grant:1"), "grant:2")


def alter_bytes(sealed_value: bytes) -> Iterator[bytes]:
    for place in range(len(sealed_value)):
        yield sealed_value[:place] + bytes([sealed_value[place] ^ 1]) + sealed_value[place + 1 :]
        yield sealed_value[:place]
    yield sealed_value + b"\x00"
    yield b"\x00" + sealed_value


async def test_a_value_of_which_any_part_was_altered_or_cut_does_not_open() -> None:
    mine = keyring("one")

    for altered_value in alter_bytes(await mine.wrap_key(SECRET, "row")):
        with pytest.raises(VaultSealBroken):
            await mine.unwrap_key(altered_value, "row")


async def test_a_value_cannot_be_made_to_name_another_key() -> None:
    sealed_value = await keyring("one").wrap_key(SECRET, "row")

    with pytest.raises(VaultSealBroken):
        await keyring("two", "one").unwrap_key(sealed_value.replace(b"one", b"two"), "row")


async def test_any_key_of_the_ring_opens_and_the_first_one_seals() -> None:
    before, after = keyring("one"), keyring("two", "one")
    sealed_value = await before.wrap_key(SECRET, "row")

    assert await after.unwrap_key(sealed_value, "row") == SECRET
    with pytest.raises(VaultSealBroken):
        await before.unwrap_key(await after.wrap_key(SECRET, "row"), "row")


async def test_a_value_whose_key_is_gone_is_reported_by_its_row_and_key() -> None:
    sealed_value = await keyring("one").wrap_key(SECRET, "grant:1")

    with pytest.raises(VaultSealBroken, match=r"grant:1 was sealed with master key one, which is not there"):
        await keyring("two").unwrap_key(sealed_value, "grant:1")


async def test_no_error_of_the_vault_holds_the_secret() -> None:
    mine = keyring("one")
    for opening in ((mine, "other"), (keyring("two"), "row")):
        with pytest.raises(VaultSealBroken) as error_info:
            await opening[0].unwrap_key(await mine.wrap_key(SECRET, "row"), opening[1])

        assert SECRET.decode() not in str(error_info.value)
