import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col, select

from engine.connections.connection import Connection
from engine.db.database import utc_now
from engine.db.tables import GrantRow, RevocationRow
from engine.errors import ConnectionMisconfigured, UpstreamUnavailable, VaultSealBroken
from engine.grants.grants import Credential
from engine.grants.revocations import PendingRevocation
from engine.identity.model import Principal
from engine.oauth.tokens import UpstreamTokens
from engine.services import Services
from engine.vault.resealing import reseal_columns
from tests.support.administration import SHELL, rotate_data_key
from tests.support.foreign.process import free_port
from tests.support.samples import build_connection, build_tokens
from tests.support.sandbox_systems import SandboxProcess, run_sandbox_system

SECRET = {"env": "BILLING_CLIENT_SECRET"}


@pytest.fixture(scope="module")
def billing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with run_sandbox_system("billing", tmp_path_factory.mktemp("billing") / "billing.db") as system:
        yield system


@pytest.fixture
def environment(billing: SandboxProcess) -> Mapping[str, str]:
    return {"BILLING_CLIENT_SECRET": billing.secret}


@pytest.fixture
def personal_billing(billing: SandboxProcess) -> Connection:
    """A connection that people sign in to themselves."""
    return build_connection(url=billing.url, client_secret=SECRET)


@pytest.fixture
def shared_billing(billing: SandboxProcess) -> Connection:
    """A connection that the service signs in to."""
    return build_connection("ledger", url=billing.url, mode="shared", client_secret=SECRET)


async def store_tokens(
    services: Services, connection: Connection, principal: Principal, issued_tokens: UpstreamTokens
) -> None:
    async with services.database.open_write_session() as session:
        await services.grants.store_grant(
            session, connection, principal.id, issued_tokens, "alice@acme.example"
        )


async def expire_tokens(services: Services) -> None:
    async with services.database.open_write_session() as session:
        await session.exec(update(GrantRow).values(expires_at=utc_now() - timedelta(minutes=1)))


async def list_overdue(services: Services) -> list[PendingRevocation]:
    """What upstreams are to be told, a while later."""
    async with services.database.open_write_session() as session:
        await session.exec(update(RevocationRow).values(due_at=utc_now()))
    return await services.revocations.list_due_revocations()


async def list_leases(services: Services) -> list[Any]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(GrantRow.refreshing_until))).all())


@pytest.fixture
async def signed_in(
    services: Services, alice: Principal, personal_billing: Connection, billing: SandboxProcess
) -> UpstreamTokens:
    """Alice's tokens from the billing system, stored as her grant."""
    token_response = await billing.fetch_tokens("alice", "read_only")
    granted_tokens = UpstreamTokens(
        token_response["access_token"],
        token_response["refresh_token"],
        token_response["expires_at"],
        ("read_only",),
    )
    await store_tokens(services, personal_billing, alice, granted_tokens)
    return granted_tokens


async def test_a_grant_yields_its_token_until_it_is_about_to_expire(
    services: Services,
    alice: Principal,
    personal_billing: Connection,
    signed_in: UpstreamTokens,
    billing: SandboxProcess,
) -> None:
    requests_before = len(billing.list_requests("token"))
    credential = await services.grants.find_credential(personal_billing, alice.id)

    assert credential is not None
    assert credential.access_token == signed_in.access_token
    assert (credential.account, credential.scopes) == ("alice@acme.example", ("read_only",))
    assert len(billing.list_requests("token")) == requests_before


@pytest.mark.parametrize(("left", "renewals"), [(60, 0), (20, 1)])
@pytest.mark.usefixtures("signed_in")
async def test_a_token_that_would_expire_on_its_way_is_renewed_before_it_is_used(
    services: Services,
    alice: Principal,
    personal_billing: Connection,
    billing: SandboxProcess,
    left: int,
    renewals: int,
) -> None:
    async with services.database.open_write_session() as session:
        await session.exec(update(GrantRow).values(expires_at=utc_now() + timedelta(seconds=left)))
    requests_before = len(billing.list_requests("token"))
    credential = await services.grants.find_credential(personal_billing, alice.id)

    assert credential is not None
    assert credential.grant_version == 1 + renewals
    assert len(billing.list_requests("token")) == requests_before + renewals


async def test_what_may_be_logged_of_a_credential_holds_no_token(
    services: Services, alice: Principal, personal_billing: Connection, signed_in: UpstreamTokens
) -> None:
    credential = await services.grants.find_credential(personal_billing, alice.id)

    assert signed_in.access_token not in repr(credential)
    assert signed_in.access_token not in str(credential)


async def test_no_token_lies_open_in_the_database(services: Services, signed_in: UpstreamTokens) -> None:
    async with services.database.open_read_session() as session:
        row = (await session.exec(select(GrantRow))).one()

    for token in (signed_in.access_token, str(signed_in.refresh_token)):
        assert token not in str(row.model_dump(exclude={"sealed_tokens"}))
        assert token.encode() not in row.sealed_tokens


@pytest.mark.usefixtures("signed_in")
async def test_a_hundred_actions_in_two_processes_renew_an_expired_token_once(
    services: Services,
    other: Services,
    alice: Principal,
    personal_billing: Connection,
    billing: SandboxProcess,
) -> None:
    await expire_tokens(services)
    requests_before = len(billing.list_requests("token"))
    credentials = await asyncio.gather(
        *(
            process.grants.find_credential(personal_billing, alice.id)
            for process in (services, other)
            for _ in range(50)
        )
    )

    assert len(billing.list_requests("token")) == requests_before + 1
    assert len({credential.access_token for credential in credentials if credential is not None}) == 1
    assert None not in credentials
    assert all(credential.grant_version == 2 for credential in credentials if credential is not None)
    assert (
        billing.get_path("/v1/invoices", credentials[0].access_token if credentials[0] else None).status_code
        == 200
    )


@pytest.mark.usefixtures("signed_in")
async def test_a_hundred_actions_whose_token_the_upstream_refused_renew_it_once(
    services: Services,
    other: Services,
    alice: Principal,
    personal_billing: Connection,
    billing: SandboxProcess,
) -> None:
    used_credential = await services.grants.find_credential(personal_billing, alice.id)
    assert used_credential is not None
    requests_before = len(billing.list_requests("token"))
    credentials = await asyncio.gather(
        *(
            process.grants.renew_credential(personal_billing, alice.id, used_credential)
            for process in (services, other)
            for _ in range(50)
        )
    )

    assert len(billing.list_requests("token")) == requests_before + 1
    assert {credential.grant_version for credential in credentials if credential is not None} == {2}


async def test_a_new_consent_meanwhile_is_not_taken_for_the_token_that_was_refused(
    services: Services,
    alice: Principal,
    personal_billing: Connection,
    signed_in: UpstreamTokens,
    billing: SandboxProcess,
) -> None:
    used_credential = await services.grants.find_credential(personal_billing, alice.id)
    assert used_credential is not None
    await store_tokens(
        services, personal_billing, alice, replace(signed_in, access_token="of-the-new-consent")
    )
    requests_before = len(billing.list_requests("token"))
    credential = await services.grants.renew_credential(personal_billing, alice.id, used_credential)

    assert credential is not None
    assert credential.access_token == "of-the-new-consent"
    assert len(billing.list_requests("token")) == requests_before


async def test_a_renewal_goes_on_though_the_action_that_began_it_was_cancelled(
    services: Services,
    alice: Principal,
    personal_billing: Connection,
    signed_in: UpstreamTokens,
    billing: SandboxProcess,
) -> None:
    await expire_tokens(services)
    requests_before = len(billing.list_requests("token"))
    billing.add_fault(on="token", hang_seconds=1)
    action = asyncio.create_task(services.grants.find_credential(personal_billing, alice.id))
    async with asyncio.timeout(30):
        while len(billing.list_requests("token")) == requests_before:
            await asyncio.sleep(0.01)
    action.cancel()
    with pytest.raises(asyncio.CancelledError):
        await action
    credential = await services.grants.find_credential(personal_billing, alice.id)

    assert credential is not None
    assert credential.grant_version == 2
    assert credential.access_token != signed_in.access_token
    assert len(billing.list_requests("token")) == requests_before + 1


async def test_a_grant_that_was_taken_back_upstream_is_none(
    services: Services, alice: Principal, personal_billing: Connection, billing: SandboxProcess
) -> None:
    await store_tokens(
        services, personal_billing, alice, build_tokens(life=-60, refresh_token="unknown there")
    )

    assert await services.grants.find_credential(personal_billing, alice.id) is None
    requests_before = len(billing.list_requests("token"))
    assert await services.grants.find_credential(personal_billing, alice.id) is None
    assert len(billing.list_requests("token")) == requests_before


async def test_an_expired_token_that_nothing_can_renew_is_none(
    services: Services, alice: Principal, personal_billing: Connection
) -> None:
    await store_tokens(services, personal_billing, alice, build_tokens(life=-60))

    assert await services.grants.find_credential(personal_billing, alice.id) is None


@pytest.mark.usefixtures("signed_in")
async def test_a_token_endpoint_that_fails_leaves_the_grant_for_another_try(
    services: Services, alice: Principal, personal_billing: Connection, billing: SandboxProcess
) -> None:
    await expire_tokens(services)
    billing.add_fault(on="token", status=503)

    with pytest.raises(UpstreamUnavailable):
        await services.grants.find_credential(personal_billing, alice.id)

    assert await list_leases(services) == [None]
    assert await services.grants.find_credential(personal_billing, alice.id) is not None


async def test_a_token_endpoint_that_is_down_leaves_the_grant_for_another_try(
    services: Services, alice: Principal
) -> None:
    unreachable_connection = build_connection(url=f"http://127.0.0.1:{free_port()}", client_secret=SECRET)
    await store_tokens(services, unreachable_connection, alice, build_tokens(life=-60, refresh_token="r"))

    with pytest.raises(UpstreamUnavailable, match="does not answer"):
        await services.grants.find_credential(unreachable_connection, alice.id)
    assert await list_leases(services) == [None]


async def test_a_client_secret_that_is_wrong_is_the_administrators_to_mend_and_costs_no_grant(
    services: Services, alice: Principal, personal_billing: Connection
) -> None:
    wrong = personal_billing.model_copy(update={"client_id": "somebody else"})
    await store_tokens(services, wrong, alice, build_tokens(life=-60, refresh_token="r"))

    with pytest.raises(ConnectionMisconfigured, match="invalid_client"):
        await services.grants.find_credential(wrong, alice.id)
    assert await list_leases(services) == [None]


async def test_a_missing_client_secret_is_reported_and_holds_nobody_up(
    services: Services, alice: Principal, billing: SandboxProcess
) -> None:
    unset = build_connection(url=billing.url, client_secret={"env": "UNSET_SECRET"})
    await store_tokens(services, unset, alice, build_tokens(life=-60, refresh_token="r"))

    with pytest.raises(ConnectionMisconfigured, match="set UNSET_SECRET"):
        await services.grants.find_credential(unset, alice.id)
    assert await list_leases(services) == [None]


@pytest.mark.usefixtures("signed_in")
async def test_a_process_that_died_while_it_renewed_holds_the_others_up_only_as_long_as_its_lease(
    services: Services, alice: Principal, personal_billing: Connection
) -> None:
    await expire_tokens(services)
    async with services.database.open_write_session() as session:
        await session.exec(update(GrantRow).values(refreshing_until=utc_now() - timedelta(seconds=1)))

    credential = await services.grants.find_credential(personal_billing, alice.id)
    assert credential is not None
    assert credential.grant_version == 2


async def test_a_removed_grant_is_gone_here_and_revoked_upstream(
    services: Services,
    alice: Principal,
    personal_billing: Connection,
    signed_in: UpstreamTokens,
    billing: SandboxProcess,
) -> None:
    assert billing.get_path("/v1/invoices", signed_in.access_token).status_code == 200

    assert await services.grant_removal.remove_own_grant(personal_billing, alice)

    assert await services.grants.find_credential(personal_billing, alice.id) is None
    assert billing.get_path("/v1/invoices", signed_in.access_token).status_code == 401
    assert not await services.grant_removal.remove_own_grant(personal_billing, alice)


async def test_tokens_that_arrive_after_their_grant_was_removed_are_revoked_as_well(
    services: Services,
    alice: Principal,
    personal_billing: Connection,
    signed_in: UpstreamTokens,
    billing: SandboxProcess,
) -> None:
    await expire_tokens(services)
    requests_before = len(billing.list_requests("token"))
    billing.add_fault(on="token", hang_seconds=1.0, work_is_done=True)
    renewing = asyncio.create_task(services.grants.find_credential(personal_billing, alice.id))
    async with asyncio.timeout(30):
        while len(billing.list_requests("token")) == requests_before:
            await asyncio.sleep(0.02)
    was_removed = await services.grant_removal.remove_own_grant(personal_billing, alice)

    assert was_removed
    assert await renewing is None
    # What came back was issued after the upstream was told of the grant's end, and it has to be told again.
    (pending_revocation,) = await list_overdue(services)
    await services.catalogue.store_connections([personal_billing])
    assert await services.grant_removal.retry_revocation(pending_revocation)
    assert await list_overdue(services) == []
    assert [request["status"] for request in billing.list_requests("revoke")][-2:] == [200, 200]
    assert billing.get_path("/v1/invoices", signed_in.access_token).status_code == 401


@pytest.mark.usefixtures("signed_in")
async def test_no_token_of_a_grant_that_ended_is_kept(
    services: Services, alice: Principal, personal_billing: Connection, billing: SandboxProcess
) -> None:
    billing.add_fault(on="revoke", status=503)
    with pytest.raises(UpstreamUnavailable):
        await services.grant_removal.remove_own_grant(personal_billing, alice)
    async with services.database.open_read_session() as session:
        assert (await session.exec(select(GrantRow.sealed_tokens))).all() == [b""]

    assert await services.revocations.list_due_revocations() == []
    (pending_revocation,) = await list_overdue(services)
    await services.catalogue.store_connections([personal_billing])
    assert await services.grant_removal.retry_revocation(pending_revocation)
    assert await list_overdue(services) == []


async def test_each_account_of_a_person_is_kept_up_and_ended_on_its_own(
    services: Services, alice: Principal, personal_billing: Connection, billing: SandboxProcess
) -> None:
    token_by_account: dict[str, str] = {}
    for account in ("home", "work"):
        token_response = await billing.fetch_tokens("alice", "read_only")
        token_by_account[account] = token_response["access_token"]
        granted_tokens = UpstreamTokens(
            token_response["access_token"],
            token_response["refresh_token"],
            token_response["expires_at"],
            ("read_only",),
        )
        async with services.database.open_write_session() as session:
            await services.grants.store_grant(session, personal_billing, alice.id, granted_tokens, account)
            await session.exec(update(GrantRow).values(renewed_at=utc_now() - timedelta(days=1)))
    since = utc_now() - timedelta(hours=1)

    first, second = await services.renewals.list_idle_grant_ids(personal_billing, since)
    renewal = await services.renewals.renew_idle_grant(personal_billing, first)
    assert renewal is not None
    assert (renewal.holder, renewal.grant_id) == (alice.id, first)
    assert await services.renewals.list_idle_grant_ids(personal_billing, since) == [second]

    removed = await services.grant_removal.remove_own_grant(personal_billing, alice, "home")
    assert removed is not None
    assert removed.account == "home"
    left = await services.grants.find_credential(personal_billing, alice.id)
    assert left is not None
    assert left.account == "work"
    assert billing.get_path("/v1/invoices", left.access_token).status_code == 200
    assert billing.get_path("/v1/invoices", token_by_account["home"]).status_code == 401
    assert await services.grants.list_accounts_revoked_by_owner(personal_billing, alice.id) == {"home"}

    await services.catalogue.store_connections([personal_billing])
    removals = await services.grant_removal.remove_all_grants(alice, SHELL)
    assert [(removal.grant.account, removal.upstream_error) for removal in removals] == [("work", None)]
    assert await services.grants.list_accounts_revoked_by_owner(personal_billing, alice.id) == {
        "home",
        "work",
    }
    await store_tokens(services, personal_billing, alice, build_tokens())
    assert await services.grants.list_accounts_revoked_by_owner(personal_billing, alice.id) == {
        "home",
        "work",
    }
    async with services.database.open_write_session() as session:
        await services.grants.store_grant(session, personal_billing, alice.id, build_tokens(), "home")
    assert await services.grants.list_accounts_revoked_by_owner(personal_billing, alice.id) == {"work"}


@pytest.mark.usefixtures("signed_in")
async def test_a_lapsed_grant_keeps_no_token_and_is_neither_renewed_nor_revoked_upstream(
    services: Services, alice: Principal, personal_billing: Connection
) -> None:
    used_credential = await services.grants.find_credential(personal_billing, alice.id)
    assert used_credential is not None
    await services.grants.lapse_grant(used_credential)

    (grant,) = await services.grants.list_grants(alice.id)
    async with services.database.open_read_session() as session:
        assert (await session.exec(select(GrantRow.sealed_tokens))).all() == [b""]
    assert grant.has_lapsed
    assert await services.renewals.list_idle_grant_ids(personal_billing, utc_now()) == []
    assert await services.renewals.renew_idle_grant(personal_billing, grant.id) is None
    assert await services.grants.list_accounts_revoked_by_owner(personal_billing, alice.id) == set()
    removed = await services.grant_removal.remove_own_grant(personal_billing, alice)
    assert removed is not None
    assert removed.account == "alice@acme.example"
    assert await list_overdue(services) == []


async def test_a_new_consent_takes_the_place_of_the_one_before(
    services: Services, alice: Principal, personal_billing: Connection
) -> None:
    await store_tokens(services, personal_billing, alice, build_tokens())
    newer = build_tokens("read_only", "read_write")
    await store_tokens(services, personal_billing, alice, newer)
    credential = await services.grants.find_credential(personal_billing, alice.id)

    assert credential is not None
    assert credential.access_token == newer.access_token
    assert await services.grants.list_active_scopes(personal_billing, alice.id) == ("read_only", "read_write")


async def test_a_shared_connection_signs_in_as_the_service_once_for_everybody(
    services: Services,
    other: Services,
    alice: Principal,
    bob: Principal,
    shared_billing: Connection,
    billing: SandboxProcess,
) -> None:
    alices_credential = await services.grants.find_credential(shared_billing, alice.id)
    his = await other.grants.find_credential(shared_billing, bob.id)

    assert alices_credential is not None
    assert his == alices_credential
    assert alices_credential.account == "byline (shared)"
    assert billing.list_requests("token")[-1]["grant_type"] == "client_credentials"
    assert billing.get_path("/v1/invoices", alices_credential.access_token).status_code == 200


async def test_two_processes_that_sign_in_to_a_shared_connection_at_once_use_one_grant(
    services: Services, other: Services, alice: Principal, shared_billing: Connection
) -> None:
    credentials = await asyncio.gather(
        *(
            process.grants.find_credential(shared_billing, alice.id)
            for process in (services, other)
            for _ in range(5)
        )
    )

    assert len({credential.grant_id for credential in credentials if credential is not None}) == 1


async def test_an_expired_shared_token_is_renewed_once_by_signing_in_again(
    services: Services, other: Services, alice: Principal, shared_billing: Connection, billing: SandboxProcess
) -> None:
    await services.grants.find_credential(shared_billing, alice.id)
    await expire_tokens(services)
    requests_before = len(billing.list_requests("token"))
    credentials = await asyncio.gather(
        *(
            process.grants.find_credential(shared_billing, alice.id)
            for process in (services, other)
            for _ in range(10)
        )
    )

    assert {credential.grant_version for credential in credentials if credential is not None} == {2}
    assert len(billing.list_requests("token")) == requests_before + 1


HOLDERS = ("alice", "bob", "carol", "shared")
NAMES = ("crm", "billing", "support")


@pytest.fixture
async def people(services: Services) -> dict[str, Principal]:
    """People by subject; one has the name that the service's own grants are held under."""
    return {
        subject: await services.principals.resolve_principal("https://people.example", subject, subject)
        for subject in HOLDERS
    }


@given(
    consents=st.lists(st.tuples(st.sampled_from(HOLDERS), st.sampled_from(NAMES)), max_size=6),
    services_own=st.sets(st.sampled_from(NAMES)),
    owner=st.tuples(st.sampled_from(HOLDERS), st.sampled_from(NAMES)),
)
@settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_a_connection_of_people_never_yields_the_grant_of_another_or_of_the_service(
    services: Services,
    people: dict[str, Principal],
    consents: list[tuple[str, str]],
    services_own: set[str],
    owner: tuple[str, str],
) -> None:
    async with services.database.open_write_session() as session:
        await session.exec(
            update(GrantRow).where(col(GrantRow.revoked_at).is_(None)).values(revoked_at=utc_now())
        )
    for name in services_own:
        await store_tokens(services, build_connection(name, mode="shared"), people["alice"], build_tokens())
    token_by_owner: dict[tuple[str, str], str] = {}
    for subject, name in consents:
        granted_tokens = build_tokens()
        await store_tokens(services, build_connection(name), people[subject], granted_tokens)
        token_by_owner[subject, name] = granted_tokens.access_token

    subject, name = owner
    credential = await services.grants.find_credential(build_connection(name), people[subject].id)

    assert (credential.access_token if credential is not None else None) == token_by_owner.get(owner)


async def test_a_grant_moved_to_another_holder_or_connection_in_the_database_does_not_open(
    services: Services, alice: Principal, bob: Principal, personal_billing: Connection
) -> None:
    await store_tokens(services, personal_billing, alice, build_tokens())
    async with services.database.open_write_session() as session:
        await session.exec(update(GrantRow).values(holder=bob.id))

    with pytest.raises(VaultSealBroken, match="belongs to another row"):
        await services.grants.find_credential(personal_billing, bob.id)


async def test_tokens_copied_from_anothers_grant_do_not_open(
    services: Services, alice: Principal, bob: Principal, personal_billing: Connection
) -> None:
    await store_tokens(services, personal_billing, alice, build_tokens())
    await store_tokens(services, personal_billing, bob, build_tokens())
    async with services.database.open_write_session() as session:
        rows = {row.holder: row for row in (await session.exec(select(GrantRow))).all()}
        rows[bob.id].sealed_tokens = rows[alice.id].sealed_tokens
        session.add(rows[bob.id])

    with pytest.raises(VaultSealBroken, match="belongs to another row"):
        await services.grants.find_credential(personal_billing, bob.id)


async def test_a_reseal_never_puts_older_tokens_over_renewed_ones(
    services: Services, other: Services, alice: Principal, personal_billing: Connection
) -> None:
    await store_tokens(services, personal_billing, alice, build_tokens())
    async with services.database.open_read_session() as session:
        grant_id = (await session.exec(select(GrantRow.id))).one()
    for _ in range(10):
        await rotate_data_key(other)
        newer = build_tokens()
        await asyncio.gather(
            services.renewals._grant_records.store_renewed_tokens(grant_id, newer),
            reseal_columns(other.database, other.vault, lambda *_: None),
        )
        credential = await services.grants.find_credential(personal_billing, alice.id)
        assert credential is not None
        assert credential.access_token == newer.access_token


def test_tokens_are_stored_in_a_form_that_outlives_a_release() -> None:
    assert json.dumps(asdict(UpstreamTokens("a", "r", 1.5, ("x", "y")))) == (
        '{"access_token": "a", "refresh_token": "r", "expires_at": 1.5, "scopes": ["x", "y"],'
        ' "proof_key": null, "account": ""}'
    )


def test_a_credential_names_everything_but_its_token() -> None:
    assert "secret" not in repr(Credential("g", "account", ("s",), "f", 1, "secret", None))
