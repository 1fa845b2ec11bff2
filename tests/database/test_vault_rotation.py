import json
import os
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mcp.shared.auth import OAuthClientInformationFull
from pydantic import AnyUrl
from sqlalchemy import update
from sqlmodel import select

from engine.authorization.requests import AuthorizationRequest
from engine.db.database import utc_now
from engine.db.tables import AuthorizationAttemptRow, DataKeyRow, GrantRow, OAuthClientRow, SigningKeyRow
from engine.errors import AuthorizationRefused, UpstreamUnavailable, VaultSealBroken
from engine.identity.model import Principal
from engine.services import Services
from engine.settings import VaultSettings
from engine.vault.keyring import Keyring
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from gateway.authorization_server.tables import build_authorization_server_tables
from tests.database.conftest import Opener
from tests.support.administration import rotate_data_key
from tests.support.commands import Commands, InProcessCommands
from tests.support.foreign.process import free_port
from tests.support.samples import build_connection, build_identity, build_tokens
from tests.support.sign_ins import consent_page

NAMES = tuple(f"system-{number}" for number in range(4))
CLIENT = OAuthClientInformationFull(
    client_id="chat", client_secret="of-the-client", redirect_uris=[AnyUrl("http://127.0.0.1/callback")]
)


async def store_grants(services: Services, principal: Principal) -> dict[str, str]:
    """Seal something in every table that keeps secrets; gives the access token of each connection."""
    issued_tokens = {name: build_tokens() for name in NAMES}
    async with services.database.open_write_session() as session:
        for name, granted_tokens in issued_tokens.items():
            await services.grants.store_grant(
                session, build_connection(name), principal.id, granted_tokens, "alice"
            )
    await services.signing_keys.sign_claims({}, IDENTITY_TYPE)
    await build_authorization_server_tables(services).oauth_clients.register_client(CLIENT)
    return {name: granted_tokens.access_token for name, granted_tokens in issued_tokens.items()}


async def read_tokens(services: Services, principal: Principal) -> dict[str, str]:
    credentials = {
        name: await services.grants.find_credential(build_connection(name), principal.id) for name in NAMES
    }
    return {
        name: credential.access_token for name, credential in credentials.items() if credential is not None
    }


async def count_stale(services: Services) -> int:
    """How many secrets are not sealed with the newest key."""
    async with services.database.open_read_session() as session:
        sealed_values = [row.sealed_tokens for row in (await session.exec(select(GrantRow))).all()]
        sealed_values += [row.sealed_private_key for row in (await session.exec(select(SigningKeyRow))).all()]
        sealed_values += [
            row.sealed_verifier for row in (await session.exec(select(AuthorizationAttemptRow))).all()
        ]
    return sum(
        [
            not await services.vault.has_current_key(sealed_value)
            for sealed_value in sealed_values
            if sealed_value
        ]
    )


async def begin_sign_in(services: Services, principal: Principal) -> tuple[AuthorizationRequest, str]:
    """A sign-in that is under way; gives the request, and the state that the provider would send back."""
    asking = build_connection("asking", url=f"http://127.0.0.1:{free_port()}")
    await services.catalogue.store_connections([asking])
    requirement = await services.authorization_requests.require_authorization(
        build_identity(principal), asking, asking.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
    )
    assert requirement is not None
    request = await services.authorization_requests.find_request(requirement.request_id)
    assert request is not None
    address = await consent_page(services, request, "browser")
    return request, parse_qs(urlsplit(address).query)["state"][0]


@pytest.fixture
def pass_a_minute(services: Services, keyring_file: Path) -> Callable[[], Awaitable[None]]:
    async def pass_minute() -> None:
        os.utime(keyring_file, (time.time() - 61, time.time() - 61))
        async with services.database.open_write_session() as session:
            await session.exec(update(DataKeyRow).values(created_at=utc_now() - timedelta(seconds=61)))

    return pass_minute


async def test_secrets_are_sealed_with_a_new_key_while_a_process_that_knows_only_the_old_one_runs(
    services: Services, alice: Principal, commands: Commands, another_process: Opener
) -> None:
    granted_tokens = await store_grants(services, alice)
    assert await read_tokens(services, alice) == granted_tokens
    output = await commands("vault", "rotate")

    assert output.code == 0, output.err
    assert output.out.startswith("6 secrets are sealed with data key 2 now")
    assert await read_tokens(services, alice) == granted_tokens
    assert await read_tokens(await another_process(), alice) == granted_tokens
    assert await count_stale(services) == 0


async def test_a_process_that_knew_only_the_old_key_seals_with_the_new_one(
    services: Services, other: Services, alice: Principal
) -> None:
    await store_grants(services, alice)
    key_id = await rotate_data_key(other)
    async with other.database.open_write_session() as session:
        await other.grants.store_grant(session, build_connection("newest"), alice.id, build_tokens(), "alice")
    assert await services.grants.find_credential(build_connection("newest"), alice.id)
    granted_tokens = await store_grants_again(services, alice)

    assert (await services.data_keys.get_current_key())[0] == key_id == "2"
    assert await read_tokens(other, alice) == granted_tokens
    assert await count_stale(services) == 1, (
        "only what was sealed before: grants that were replaced keep no tokens"
    )


async def store_grants_again(services: Services, principal: Principal) -> dict[str, str]:
    issued_tokens = {name: build_tokens() for name in NAMES}
    async with services.database.open_write_session() as session:
        for name, granted_tokens in issued_tokens.items():
            await services.grants.store_grant(
                session, build_connection(name), principal.id, granted_tokens, "alice"
            )
    return {name: granted_tokens.access_token for name, granted_tokens in issued_tokens.items()}


async def test_a_rotation_that_was_killed_in_the_middle_is_finished_by_the_next_command(
    services: Services, alice: Principal, commands: Commands, another_process: Opener
) -> None:
    many = {f"system-{number}": build_tokens() for number in range(400)}
    async with services.database.open_write_session() as session:
        for name, issued_tokens in many.items():
            await services.grants.store_grant(
                session, build_connection(name), alice.id, issued_tokens, "alice"
            )
    async with commands.running("vault", "rotate") as rotating:
        while not (line := (await rotating.readline()).decode()).startswith("grants: "):
            assert line, "the rotation ended before it came to the grants"
    assert 0 < await count_stale(await another_process()) < len(many)
    for name in ("system-0", "system-399"):
        credential = await services.grants.find_credential(build_connection(name), alice.id)
        assert credential is not None
        assert credential.access_token == many[name].access_token

    result = await commands("vault", "reseal")

    assert result.code == 0, result.err
    assert "grants: 400 of 400" in result.err
    assert "secrets were still sealed with an older key" in result.out
    assert await count_stale(await another_process()) == 0
    assert (await commands.read_output("vault", "reseal")).startswith("0 secrets")


async def test_the_older_keys_go_once_nothing_needs_them(
    services: Services,
    keyring_file: Path,
    alice: Principal,
    commands: Commands,
    another_process: Opener,
    pass_a_minute: Callable[[], Awaitable[None]],
) -> None:
    granted_tokens = await store_grants(services, alice)
    keyring = Keyring(VaultSettings(keyring_file=keyring_file))
    old = keyring.current_key[0]
    signed_token = await services.signing_keys.sign_claims({}, IDENTITY_TYPE)
    await commands.read_output("vault", "rotate")
    await pass_a_minute()
    retire_output = await commands.read_output("vault", "retire")
    fresh = await another_process()

    assert retire_output == f"Dropped: data key 1, master key {old}.\n"
    assert keyring.find_key(keyring.current_key[0]) is not None
    assert Keyring(VaultSettings(keyring_file=keyring_file)).find_key(old) is None
    assert await fresh.data_keys.find_key("1") is None
    assert await read_tokens(fresh, alice) == granted_tokens
    assert await fresh.signing_keys.verify_token(signed_token, IDENTITY_TYPE)
    client = await build_authorization_server_tables(fresh).oauth_clients.find_client("chat")
    assert client is not None
    assert client.client_secret == "of-the-client"
    assert "there was only one" in await commands.read_output("vault", "retire")


async def test_older_keys_are_kept_as_long_as_something_sealed_with_them_may_be_on_its_way(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await store_grants(services, alice)
    await commands.read_output("vault", "rotate")
    assert "less than a minute ago" in await commands.read_refusal("vault", "retire")
    assert await read_tokens(services, alice)


async def test_a_sign_in_that_is_under_way_survives_a_rotation_and_the_end_of_the_older_keys(
    services: Services,
    alice: Principal,
    commands: Commands,
    another_process: Opener,
    pass_a_minute: Callable[[], Awaitable[None]],
) -> None:
    _, state = await begin_sign_in(services, alice)
    await commands.read_output("vault", "rotate")
    await pass_a_minute()
    await commands.read_output("vault", "retire")
    fresh = await another_process()

    # The code is taken to the provider, which is where this test has nothing more to show.
    with pytest.raises(UpstreamUnavailable):
        await fresh.sign_ins.finish_redirect({"state": state, "code": "c"}, alice, "browser")
    with pytest.raises(AuthorizationRefused, match="used already"):
        await fresh.sign_ins.finish_redirect({"state": state, "code": "c"}, alice, "browser")


async def test_a_verifier_moved_to_another_sign_in_does_not_open(
    services: Services, alice: Principal
) -> None:
    request, _ = await begin_sign_in(services, alice)
    address = await consent_page(services, request, "browser")
    state = parse_qs(urlsplit(address).query)["state"][0]
    async with services.database.open_write_session() as session:
        one, two = (await session.exec(select(AuthorizationAttemptRow))).all()
        one.sealed_verifier, two.sealed_verifier = two.sealed_verifier, one.sealed_verifier
        session.add_all([one, two])

    with pytest.raises(VaultSealBroken):
        await services.sign_ins.finish_redirect({"state": state, "code": "c"}, alice, "browser")


async def test_the_secret_of_a_client_lies_sealed(services: Services) -> None:
    await build_authorization_server_tables(services).oauth_clients.register_client(CLIENT)
    async with services.database.open_read_session() as session:
        row = (await session.exec(select(OAuthClientRow))).one()

    assert "of-the-client" not in str(row.metadata_)


async def test_what_the_release_before_data_keys_sealed_still_opens_and_is_sealed_anew(
    services: Services, alice: Principal, commands: Commands, keyring_file: Path
) -> None:
    issued_tokens = build_tokens()
    async with services.database.open_write_session() as session:
        await services.grants.store_grant(session, build_connection("old"), alice.id, issued_tokens, "alice")
    keyring = Keyring(VaultSettings(keyring_file=keyring_file))
    async with services.database.open_write_session() as session:
        row = (await session.exec(select(GrantRow))).one()
        bound_to = f"grant:{row.id}:{row.holder}:{row.connection}"
        # The older form is the keyring's own, by which it wraps data keys now.
        row.sealed_tokens = await keyring.wrap_key(
            await services.vault.open_secret(row.sealed_tokens, bound_to), bound_to
        )
        session.add(row)
    assert row.sealed_tokens[0] == 1

    before = await services.grants.find_credential(build_connection("old"), alice.id)
    output = await commands.read_output("vault", "reseal")
    after = await services.grants.find_credential(build_connection("old"), alice.id)

    assert output.startswith("1 secrets")
    assert before == after
    assert after is not None
    assert after.access_token == issued_tokens.access_token
    assert await count_stale(services) == 0


async def test_the_master_keys_of_the_environment_are_changed_there_and_taken_up_by_a_command(
    address: str, tmp_path: Path
) -> None:
    def ring(*letters: str) -> str:
        return json.dumps({"keys": [{"id": key_id, "key": key_id * 43 + "="} for key_id in letters]})

    def commands(keyring: str) -> Commands:
        return InProcessCommands(
            {"BYLINE_DATABASE__URL": address, "BYLINE_VAULT__KEYRING": keyring}, tmp_path
        )

    assert "data key 2 now" in await commands(ring("A")).read_output("vault", "rotate")
    output = await commands(ring("E", "A")).read_output("vault", "rewrap")
    assert output == "Data key 1 is wrapped by keyring.\nData key 2 is wrapped by keyring.\n"
    assert (await commands(ring("E")).read_output("vault", "reseal")).startswith("0 secrets")
    assert "was sealed with master key E, which is not there" in (
        await commands(ring("A")).read_refusal("vault", "reseal")
    )
