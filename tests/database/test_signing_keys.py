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
from tests.database.conftest import Opener
from tests.support.administration import retire_signing_key, rotate_signing_key
from tests.support.commands import Commands

CLAIMS = {"sub": "alice"}


def read_kid(token: str) -> str:
    kid: str = decode_part(token.split(".", maxsplit=1)[0])["kid"]
    return kid


def decode_part(part: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return document


def encode_part(document: object) -> str:
    return urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


async def list_keys(services: Services) -> list[SigningKeyRow]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(SigningKeyRow))).all())


async def list_keys_in_force(services: Services) -> set[str]:
    return {key["kid"] for key in (await services.signing_keys.build_jwks())["keys"]}


async def test_what_one_process_signs_another_verifies(services: Services, other: Services) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    claims = await other.signing_keys.verify_token(token, IDENTITY_TYPE)

    assert claims["sub"] == "alice"
    assert {"iat", "jti"} < set(claims)
    assert decode_part(token.split(".")[0]) == {
        "alg": "Ed25519",
        "kid": read_kid(token),
        "typ": IDENTITY_TYPE,
    }


async def test_the_first_signatures_of_a_process_make_one_key(services: Services) -> None:
    await asyncio.gather(*(services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE) for _ in range(20)))

    assert len(await list_keys(services)) == 1


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

    assert (
        {read_kid(token) for token in tokens}
        <= await list_keys_in_force(services)
        == await list_keys_in_force(other)
    )


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
    processes = [
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
    for process in processes:
        assert process.stdout is not None
        await process.stdout.readline()
    results = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    services = await another_process()

    for out, _ in results:
        assert await services.signing_keys.verify_token(out.decode().strip(), "test")


async def test_after_a_rotation_the_new_key_signs_and_the_old_one_verifies(
    services: Services, other: Services
) -> None:
    before = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    assert await other.signing_keys.verify_token(before, IDENTITY_TYPE)
    kid = await rotate_signing_key(services)
    after = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)

    assert read_kid(after) == kid != read_kid(before)
    for process in (services, other):
        for token in (before, after):
            assert await process.signing_keys.verify_token(token, IDENTITY_TYPE)


async def test_what_a_retired_key_signed_is_refused(services: Services, another_process: Opener) -> None:
    before = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    await rotate_signing_key(services)

    assert await retire_signing_key(services, read_kid(before))

    for process in (services, await another_process()):
        with pytest.raises(IdentityForged, match="not signed by a key in force"):
            await process.signing_keys.verify_token(before, IDENTITY_TYPE)


async def test_only_an_older_key_in_force_can_be_retired(services: Services) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    assert not await retire_signing_key(services, read_kid(token))
    assert not await retire_signing_key(services, "unknown")
    await rotate_signing_key(services)

    assert await retire_signing_key(services, read_kid(token))
    assert not await retire_signing_key(services, read_kid(token))


async def test_only_keys_in_force_are_published_and_none_of_them_in_private(services: Services) -> None:
    first = read_kid(await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE))
    second = await rotate_signing_key(services)
    assert await list_keys_in_force(services) == {first, second}
    await retire_signing_key(services, first)

    (key,) = (await services.signing_keys.build_jwks())["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "alg", "use"}
    assert (key["kid"], key["alg"], key["use"]) == (second, "Ed25519", "sig")


async def test_a_token_of_another_type_is_refused(services: Services) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, ACCESS_TOKEN_TYPE)

    with pytest.raises(IdentityForged):
        await services.signing_keys.verify_token(token, IDENTITY_TYPE)


async def test_a_token_that_was_altered_is_refused(services: Services) -> None:
    header, payload, signature = (await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)).split(".")
    forged_part = encode_part({**decode_part(payload), "sub": "bob"})
    unsigned_header = encode_part({**decode_part(header), "alg": "none"})

    for token in (
        f"{header}.{forged_part}.{signature}",
        f"{header}.{payload}.{'A' * len(signature)}",
        f"{header}.{payload}.",
        f"{unsigned_header}.{payload}.",
        f"{header}.{payload}",
        f"{encode_part({**decode_part(header), 'kid': 'unknown'})}.{payload}.{signature}",
        f"{encode_part([])}.{payload}.{signature}",
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
    header = {"alg": "HS256", "kid": read_kid(token), "typ": IDENTITY_TYPE}
    secret = OctKey.import_key(urlsafe_b64decode(key["x"] + "="))
    forged_part = jws.serialize_compact(header, json.dumps(CLAIMS), secret, algorithms=["HS256"])

    with pytest.raises(IdentityForged):
        await services.signing_keys.verify_token(forged_part, IDENTITY_TYPE)


async def test_no_private_key_lies_open_in_the_database(services: Services) -> None:
    await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    (row,) = await list_keys(services)
    secret = await services.vault.open_secret(
        row.sealed_private_key, f"signing_key:{row.kid}:{row.public_key.hex()}"
    )

    assert len(secret) == 32
    assert secret not in row.sealed_private_key


async def test_an_administrator_rotates_and_retires_keys(
    services: Services, commands: Commands, another_process: Opener
) -> None:
    token = await services.signing_keys.sign_claims(CLAIMS, IDENTITY_TYPE)
    output = await commands.read_output("keys", "rotate")
    retire_output = await commands.read_output("keys", "retire", read_kid(token))
    again = await commands("keys", "retire", read_kid(token))

    assert output.endswith("signs from now on.\n")
    assert retire_output == f"What key {read_kid(token)} signed is refused from now on.\n"
    assert again.code == 1
    assert "unknown, retired already, or the one that signs" in again.err
    with pytest.raises(IdentityForged):
        await (await another_process()).signing_keys.verify_token(token, IDENTITY_TYPE)
