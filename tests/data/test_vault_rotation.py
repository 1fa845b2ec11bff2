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
from tests.data.commands import Commands, CommandsHere
from tests.data.conftest import Opener
from tests.data.samples import connection, identity_of, tokens
from tests.foreign.process import free_port
from tests.signing_in import consent_page

NAMES = tuple(f"system-{number}" for number in range(4))
CLIENT = OAuthClientInformationFull(
    client_id="chat", client_secret="of-the-client", redirect_uris=[AnyUrl("http://127.0.0.1/callback")]
)


async def fill(services: Services, principal: Principal) -> dict[str, str]:
    """Seal something in every table that keeps secrets; gives the access token of each connection."""
    issued = {name: tokens() for name in NAMES}
    async with services.database.open_write_session() as session:
        for name, granted in issued.items():
            await services.grants.store_grant(session, connection(name), principal.id, granted, "alice")
    await services.signing_keys.sign_claims({}, IDENTITY_TYPE)
    await build_authorization_server_tables(services).oauth_clients.register_client(CLIENT)
    return {name: granted.access_token for name, granted in issued.items()}


async def read(services: Services, principal: Principal) -> dict[str, str]:
    found = {name: await services.grants.find_credential(connection(name), principal.id) for name in NAMES}
    return {name: credential.access_token for name, credential in found.items() if credential is not None}


async def stale(services: Services) -> int:
    """How many secrets are not sealed with the newest key."""
    async with services.database.open_read_session() as session:
        sealed = [row.sealed_tokens for row in (await session.exec(select(GrantRow))).all()]
        sealed += [row.sealed_private_key for row in (await session.exec(select(SigningKeyRow))).all()]
        sealed += [row.sealed_verifier for row in (await session.exec(select(AuthorizationAttemptRow))).all()]
    return sum([not await services.vault.has_current_key(each) for each in sealed if each])


async def begun(services: Services, principal: Principal) -> tuple[AuthorizationRequest, str]:
    """A sign-in that is under way; gives the request, and the state that the provider would send back."""
    asking = connection("asking", url=f"http://127.0.0.1:{free_port()}")
    await services.catalogue.store_connections([asking])
    required = await services.authorization_requests.require_authorization(
        identity_of(principal), asking, asking.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
    )
    assert required is not None
    request = await services.authorization_requests.find_request(required.request_id)
    assert request is not None
    address = await consent_page(services, request, "browser")
    return request, parse_qs(urlsplit(address).query)["state"][0]


@pytest.fixture
def a_minute_later(services: Services, keyring_file: Path) -> Callable[[], Awaitable[None]]:
    async def later() -> None:
        os.utime(keyring_file, (time.time() - 61, time.time() - 61))
        async with services.database.open_write_session() as session:
            await session.exec(update(DataKeyRow).values(created_at=utc_now() - timedelta(seconds=61)))

    return later


async def test_secrets_are_sealed_with_a_new_key_while_a_process_that_knows_only_the_old_one_runs(
    services: Services, alice: Principal, commands: Commands, another_process: Opener
) -> None:
    granted = await fill(services, alice)
    assert await read(services, alice) == granted
    rotated = await commands("vault", "rotate")

    assert rotated.code == 0, rotated.err
    assert rotated.out.startswith("6 secrets are sealed with data key 2 now")
    assert await read(services, alice) == granted
    assert await read(await another_process(), alice) == granted
    assert await stale(services) == 0


async def test_a_process_that_knew_only_the_old_key_seals_with_the_new_one(
    services: Services, other: Services, alice: Principal
) -> None:
    await fill(services, alice)
    key_id = await other.data_keys.rotate_key()
    async with other.database.open_write_session() as session:
        await other.grants.store_grant(session, connection("newest"), alice.id, tokens(), "alice")
    assert await services.grants.find_credential(connection("newest"), alice.id)
    granted = await fill_again(services, alice)

    assert (await services.data_keys.get_current_key())[0] == key_id == "2"
    assert await read(other, alice) == granted
    assert await stale(services) == 1, "only what was sealed before: grants that were replaced keep no tokens"


async def fill_again(services: Services, principal: Principal) -> dict[str, str]:
    issued = {name: tokens() for name in NAMES}
    async with services.database.open_write_session() as session:
        for name, granted in issued.items():
            await services.grants.store_grant(session, connection(name), principal.id, granted, "alice")
    return {name: granted.access_token for name, granted in issued.items()}


async def test_a_rotation_that_was_killed_in_the_middle_is_finished_by_the_next_command(
    services: Services, alice: Principal, commands: Commands, another_process: Opener
) -> None:
    many = {f"system-{number}": tokens() for number in range(400)}
    async with services.database.open_write_session() as session:
        for name, issued in many.items():
            await services.grants.store_grant(session, connection(name), alice.id, issued, "alice")
    async with commands.running("vault", "rotate") as rotating:
        while not (line := (await rotating.readline()).decode()).startswith("grants: "):
            assert line, "the rotation ended before it came to the grants"
    assert 0 < await stale(await another_process()) < len(many)
    for name in ("system-0", "system-399"):
        found = await services.grants.find_credential(connection(name), alice.id)
        assert found is not None
        assert found.access_token == many[name].access_token

    ended = await commands("vault", "reseal")

    assert ended.code == 0, ended.err
    assert "grants: 400 of 400" in ended.err
    assert "secrets were still sealed with an older key" in ended.out
    assert await stale(await another_process()) == 0
    assert (await commands.answer("vault", "reseal")).startswith("0 secrets")


async def test_the_older_keys_go_once_nothing_needs_them(
    services: Services,
    keyring_file: Path,
    alice: Principal,
    commands: Commands,
    another_process: Opener,
    a_minute_later: Callable[[], Awaitable[None]],
) -> None:
    granted = await fill(services, alice)
    keyring = Keyring(VaultSettings(keyring_file=keyring_file))
    old = keyring.current_key[0]
    signed = await services.signing_keys.sign_claims({}, IDENTITY_TYPE)
    await commands.answer("vault", "rotate")
    await a_minute_later()
    retired = await commands.answer("vault", "retire")
    fresh = await another_process()

    assert retired == f"Dropped: data key 1, master key {old}.\n"
    assert keyring.find_key(keyring.current_key[0]) is not None
    assert Keyring(VaultSettings(keyring_file=keyring_file)).find_key(old) is None
    assert await fresh.data_keys.find_key("1") is None
    assert await read(fresh, alice) == granted
    assert await fresh.signing_keys.verify_token(signed, IDENTITY_TYPE)
    client = await build_authorization_server_tables(fresh).oauth_clients.find_client("chat")
    assert client is not None
    assert client.client_secret == "of-the-client"
    assert "there was only one" in await commands.answer("vault", "retire")


async def test_older_keys_are_kept_as_long_as_something_sealed_with_them_may_be_on_its_way(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await fill(services, alice)
    await commands.answer("vault", "rotate")
    assert "less than a minute ago" in await commands.refusal("vault", "retire")
    assert await read(services, alice)


async def test_a_sign_in_that_is_under_way_survives_a_rotation_and_the_end_of_the_older_keys(
    services: Services,
    alice: Principal,
    commands: Commands,
    another_process: Opener,
    a_minute_later: Callable[[], Awaitable[None]],
) -> None:
    _, state = await begun(services, alice)
    await commands.answer("vault", "rotate")
    await a_minute_later()
    await commands.answer("vault", "retire")
    fresh = await another_process()

    # The code is taken to the provider, which is where this test has nothing more to show.
    with pytest.raises(UpstreamUnavailable):
        await fresh.sign_ins.finish_redirect({"state": state, "code": "c"}, alice, "browser")
    with pytest.raises(AuthorizationRefused, match="used already"):
        await fresh.sign_ins.finish_redirect({"state": state, "code": "c"}, alice, "browser")


async def test_a_verifier_moved_to_another_sign_in_does_not_open(
    services: Services, alice: Principal
) -> None:
    request, _ = await begun(services, alice)
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
    issued = tokens()
    async with services.database.open_write_session() as session:
        await services.grants.store_grant(session, connection("old"), alice.id, issued, "alice")
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

    before = await services.grants.find_credential(connection("old"), alice.id)
    told = await commands.answer("vault", "reseal")
    after = await services.grants.find_credential(connection("old"), alice.id)

    assert told.startswith("1 secrets")
    assert before == after
    assert after is not None
    assert after.access_token == issued.access_token
    assert await stale(services) == 0


async def test_the_master_keys_of_the_environment_are_changed_there_and_taken_up_by_a_command(
    address: str, tmp_path: Path
) -> None:
    def ring(*letters: str) -> str:
        return json.dumps({"keys": [{"id": each, "key": each * 43 + "="} for each in letters]})

    def commands(keyring: str) -> Commands:
        return CommandsHere({"BYLINE_DATABASE__URL": address, "BYLINE_VAULT__KEYRING": keyring}, tmp_path)

    assert "data key 2 now" in await commands(ring("A")).answer("vault", "rotate")
    told = await commands(ring("E", "A")).answer("vault", "rewrap")
    assert told == "Data key 1 is wrapped by keyring.\nData key 2 is wrapped by keyring.\n"
    assert (await commands(ring("E")).answer("vault", "reseal")).startswith("0 secrets")
    assert "was sealed with master key E, which is not there" in (
        await commands(ring("A")).refusal("vault", "reseal")
    )
