import asyncio
import json
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import OctKey
from sqlmodel import select

from engine.db.tables import SigningKeyRow
from engine.errors import IdentityForged
from engine.services import Services
from engine.wire import ACCESS_TOKEN_TYPE, IDENTITY_TYPE
from tests.data.commands import Commands
from tests.data.conftest import Opener

CLAIMS = {"sub": "alice"}


def kid_of(token: str) -> str:
    kid: str = decoded(token.split(".", maxsplit=1)[0])["kid"]
    return kid


def decoded(part: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return document


def encoded(document: object) -> str:
    return urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


async def keys(services: Services) -> list[SigningKeyRow]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(SigningKeyRow))).all())


async def in_force(services: Services) -> set[str]:
    return {key["kid"] for key in (await services.signing_keys.build_jwks())["keys"]}


async def test_what_one_process_signs_another_verifies(services: Services, other: Services) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    claims = await other.signing_keys.verify_token(token, IDENTITY_TYPE)

    assert claims["sub"] == "alice"
    assert {"iat", "jti"} < set(claims)
    assert decoded(token.split(".")[0]) == {"alg": "Ed25519", "kid": kid_of(token), "typ": IDENTITY_TYPE}


async def test_the_first_signatures_of_a_process_make_one_key(services: Services) -> None:
    await asyncio.gather(*(services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE) for _ in range(20)))

    assert len(await keys(services)) == 1


async def test_processes_that_sign_at_once_on_a_new_database_verify_each_other(
    services: Services, other: Services
) -> None:
    tokens = await asyncio.gather(
        *(
            process.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
            for process in (services, other)
            for _ in range(5)
        )
    )
    await asyncio.gather(
        *(
            process.signing_keys.verify_token(token, IDENTITY_TYPE)
            for process in (services, other)
            for token in tokens
        )
    )

    assert {kid_of(token) for token in tokens} <= await in_force(services) == await in_force(other)


async def test_real_processes_that_start_at_once_on_a_new_database_and_keyring_verify_each_other(
    address: str, keyring_file: Path, another_process: Opener
) -> None:
    program = (
        "import asyncio, sys\n"
        "from engine.services import open_services\n"
        "from engine.settings import Settings\n"
        "async def main():\n"
        "    print(flush=True)\n"
        "    sys.stdin.readline()\n"
        "    async with open_services(Settings(), {}) as services:\n"
        "        print(await services.signing_keys.sign_claims({}, 'test'))\n"
        "asyncio.run(main())\n"
    )
    environment = {"BYLINE_DATABASE__URL": address, "BYLINE_VAULT__KEYRING_FILE": str(keyring_file)}
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        await process.stdout.readline()
    ended = await asyncio.gather(*(process.communicate(b"go\n") for process in started))
    services = await another_process()

    for out, _ in ended:
        assert await services.signing_keys.verify_token(out.decode().strip(), "test")


async def test_after_a_rotation_the_new_key_signs_and_the_old_one_verifies(
    services: Services, other: Services
) -> None:
    before = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    assert await other.signing_keys.verify_token(before, IDENTITY_TYPE)
    kid = await services.signing_keys.rotate_key()
    after = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)

    assert kid_of(after) == kid != kid_of(before)
    for process in (services, other):
        for token in (before, after):
            assert await process.signing_keys.verify_token(token, IDENTITY_TYPE)


async def test_what_a_retired_key_signed_is_refused(services: Services, another_process: Opener) -> None:
    before = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    await services.signing_keys.rotate_key()

    assert await services.signing_keys.retire_key(kid_of(before))

    for process in (services, await another_process()):
        with pytest.raises(IdentityForged, match="not signed by a key in force"):
            await process.signing_keys.verify_token(before, IDENTITY_TYPE)


async def test_only_an_older_key_in_force_can_be_retired(services: Services) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    assert not await services.signing_keys.retire_key(kid_of(token))
    assert not await services.signing_keys.retire_key("unknown")
    await services.signing_keys.rotate_key()

    assert await services.signing_keys.retire_key(kid_of(token))
    assert not await services.signing_keys.retire_key(kid_of(token))


async def test_only_keys_in_force_are_published_and_none_of_them_in_private(services: Services) -> None:
    first = kid_of(await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE))
    second = await services.signing_keys.rotate_key()
    assert await in_force(services) == {first, second}
    await services.signing_keys.retire_key(first)

    (key,) = (await services.signing_keys.build_jwks())["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "alg", "use"}
    assert (key["kid"], key["alg"], key["use"]) == (second, "Ed25519", "sig")


async def test_a_token_of_another_type_is_refused(services: Services) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, ACCESS_TOKEN_TYPE)

    with pytest.raises(IdentityForged):
        await services.signing_keys.verify_token(token, IDENTITY_TYPE)


async def test_a_token_that_was_altered_is_refused(services: Services) -> None:
    header, payload, signature = (await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)).split(".")
    forged = encoded({**decoded(payload), "sub": "bob"})
    unsigned = encoded({**decoded(header), "alg": "none"})

    for token in (
        f"{header}.{forged}.{signature}",
        f"{header}.{payload}.{'A' * len(signature)}",
        f"{header}.{payload}.",
        f"{unsigned}.{payload}.",
        f"{header}.{payload}",
        f"{encoded({**decoded(header), 'kid': 'unknown'})}.{payload}.{signature}",
        f"{encoded([])}.{payload}.{signature}",
        "nonsense",
        "",
        "a.b.c",
        "é.é.é",
    ):
        with pytest.raises(IdentityForged):
            await services.signing_keys.verify_token(token, IDENTITY_TYPE)


async def test_a_token_signed_with_the_public_key_as_a_shared_secret_is_refused(services: Services) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    (key,) = (await services.signing_keys.build_jwks())["keys"]
    header = {"alg": "HS256", "kid": kid_of(token), "typ": IDENTITY_TYPE}
    secret = OctKey.import_key(urlsafe_b64decode(key["x"] + "="))
    forged = jws.serialize_compact(header, json.dumps(CLAIMS), secret, algorithms=["HS256"])

    with pytest.raises(IdentityForged):
        await services.signing_keys.verify_token(forged, IDENTITY_TYPE)


async def test_no_private_key_lies_open_in_the_database(services: Services) -> None:
    await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    (row,) = await keys(services)
    secret = await services.vault.open_secret(
        row.sealed_private_key, f"signing_key:{row.kid}:{row.public_key.hex()}"
    )

    assert len(secret) == 32
    assert secret not in row.sealed_private_key


async def test_an_administrator_rotates_and_retires_keys(
    services: Services, commands: Commands, another_process: Opener
) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    rotated = await commands.answer("keys", "rotate")
    retired = await commands.answer("keys", "retire", kid_of(token))
    again = await commands("keys", "retire", kid_of(token))

    assert rotated.endswith("signs from now on.\n")
    assert retired == f"What key {kid_of(token)} signed is refused from now on.\n"
    assert again.code == 1
    assert "unknown, retired already, or the one that signs" in again.err
    with pytest.raises(IdentityForged):
        await (await another_process()).signing_keys.verify_token(token, IDENTITY_TYPE)
