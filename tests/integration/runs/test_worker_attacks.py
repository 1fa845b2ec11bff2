"""Attacks a running worker from both sides: by what a caller asks for, and by what a hostile upstream answers."""

import asyncio
import gzip
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from pydantic import HttpUrl
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse

from engine.audit.verify import verify_trail
from engine.errors import (
    ArgumentsInvalid,
    AuthorizationExpired,
    AuthorizationRefused,
    BylineError,
    UpstreamUnavailable,
)
from engine.identity.model import Principal
from engine.oauth.tokens import UpstreamTokens
from engine.runs.outcome import Failed, Finished, Outcome
from engine.settings import IssuerSettings
from engine.sign_in.authorization_code import AuthorizationCodeSignIn
from gateway.app import build_application
from gateway.mcp.server import create_mcp_servers
from gateway.services import build_gateway_services
from tests.support.foreign.process import free_port
from tests.support.hostile_server import HostileServer, build_answer, run_hostile_server
from tests.support.platform import CONTOSO, NORTHWIND, Platform, wait_until
from tests.support.sign_ins import resources

ACCOUNT = b'{"Id": "1", "Name": "Northwind"}'


@pytest.fixture
async def crm(platform: Platform) -> AsyncIterator[HostileServer]:
    """The hostile server in the place of the CRM, on which both people have grants."""
    for principal in (platform.alice, platform.bob):
        await platform.give_grant("crm", principal)
    async with run_hostile_server() as server:
        await platform.redeclare("crm", base_url=HttpUrl(server.url))
        yield server


async def read_account(platform: Platform, account_id: str, principal: Principal) -> tuple[str, Outcome]:
    run = await platform.start_run("read_once", {"account_id": account_id}, principal)
    return run, await platform.wait_for_outcome(run)


async def test_a_cookie_that_one_persons_answer_sets_is_not_sent_in_anothers_name(
    platform: Platform, crm: HostileServer
) -> None:
    crm.answers = [build_answer(ACCOUNT, "Set-Cookie: session=of-alice; Path=/")]

    await read_account(platform, NORTHWIND, platform.alice)
    await read_account(platform, NORTHWIND, platform.bob)

    assert len(crm.requests) == 2
    assert [head for head in crm.requests if "cookie" in head.lower()] == []


@pytest.mark.parametrize(
    "account_id",
    [
        "../Contact/003",
        "..",
        ".",
        "x/../../Contact/003",
        "x?fields=Secret",
        "x#",
        "..\\Contact",
        "x/Contacts",
    ],
)
async def test_an_argument_reaches_no_other_resource_than_the_one_the_action_names(
    platform: Platform, crm: HostileServer, account_id: str
) -> None:
    run, _ = await read_account(platform, account_id, platform.alice)

    for target in crm.targets:
        before, _, last = target.rpartition("/")
        assert before == "/services/data/v63.0/sobjects/Account"
        assert last not in {"", ".", ".."}
        assert "?" not in target
    assert [
        event["resource"] for event in await platform.list_trail_events("action.intended", run)
    ] == crm.targets


@pytest.mark.parametrize("account_id", ["x\n  verdict    allowed", "x\x1b[2J", "x\x00", "x" * 70_000])
async def test_an_argument_that_no_request_can_carry_fails_once_and_for_good(
    platform: Platform, crm: HostileServer, account_id: str
) -> None:
    run, outcome = await read_account(platform, account_id, platform.alice)

    assert isinstance(outcome, Failed)
    assert outcome.code == "ValueError"
    assert crm.requests == []
    assert await platform.list_trail_events("action.intended", run) == []


@pytest.mark.parametrize(
    "unreadable",
    [
        build_answer(b"not gzip", "Content-Encoding: gzip"),
        build_answer(gzip.compress(gzip.compress(ACCOUNT)), "Content-Encoding: gzip, gzip"),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
    ids=["garbage", "packed twice", "another protocol", "nothing"],
)
async def test_an_answer_that_cannot_be_read_leaves_its_mark_in_the_trail(
    platform: Platform, crm: HostileServer, unreadable: bytes
) -> None:
    crm.answers = [unreadable, build_answer(ACCOUNT)]

    run, outcome = await read_account(platform, NORTHWIND, platform.alice)

    assert isinstance(outcome, Finished)
    verdicts = [event["verdict"] for event in await platform.list_trail_events("action.ended", run)]
    assert len(verdicts) == 2
    assert verdicts[1] == "allowed"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"not JSON",
        b'{"id": "\\u0000"}',
        b'{"id": "\\ud800"}',
        b'{"id": "n\\n  verdict    denied"}',
        b'{"id": ["a", "b"]}',
    ],
    ids=range(6),
)
async def test_whatever_an_upstream_calls_a_new_record_it_is_made_once_and_in_the_trail(
    platform: Platform, crm: HostileServer, body: bytes
) -> None:
    crm.answers = [build_answer(body, status=201)]

    run = await platform.start_run("create_note", {"text": "…"}, platform.alice)
    await platform.wait_for_outcome(run)

    (intended_event,) = await platform.list_trail_events("action.intended", run)
    (ended_event,) = await platform.list_trail_events("action.ended", run)
    assert len(crm.requests) == 1
    assert ended_event["status"] == 201
    assert ended_event["verdict"] == "allowed"
    assert ended_event["account"] == intended_event["account"]
    assert (await verify_trail(platform.services.database, platform.services.signing_keys)).is_intact


@pytest.mark.parametrize(
    "patience", [b"\xb2", b"9" * 400, b"99999999999999", b"Fri, 31 Dec 9999 23:59:59 GMT"]
)
async def test_a_senseless_retry_after_delays_a_day_at_most(
    platform: Platform, crm: HostileServer, patience: bytes
) -> None:
    crm.answers = [
        build_answer(b"", status=429).replace(
            b"Connection:", b"Retry-After: " + patience + b"\r\nConnection:"
        )
    ]
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)

    async def has_failed() -> bool:
        (pending,) = (await describe_run(platform, run)).pending_activities or (None,)
        return pending is not None and bool(pending.last_failure.message)

    await wait_until(has_failed)
    (pending,) = (await describe_run(platform, run)).pending_activities
    assert pending.last_failure.application_failure_info.type == "rate_limited"
    assert pending.next_attempt_schedule_time.ToDatetime(UTC) < datetime.now(UTC) + timedelta(days=1, hours=1)
    await platform.temporal.get_workflow_handle(run).terminate()
    # The same call would be told how this one ended, if nobody had been yet.
    platform.runs.delivered_outcomes.mark_delivered(run)


async def describe_run(platform: Platform, run: str) -> DescribeWorkflowExecutionResponse:
    return (await platform.temporal.get_workflow_handle(run).describe()).raw_description


async def test_a_redirect_is_not_followed_and_carries_no_token_along(
    platform: Platform, crm: HostileServer
) -> None:
    async with run_hostile_server() as elsewhere:
        crm.answers = [build_answer(b"", f"Location: {elsewhere.url}", status=307)]
        _, outcome = await read_account(platform, NORTHWIND, platform.alice)

    assert isinstance(outcome, Failed)
    assert outcome.code == "request_rejected"
    assert elsewhere.requests == []


async def test_an_answer_without_end_is_not_read_to_its_end(platform: Platform, crm: HostileServer) -> None:
    crm.answers = [build_answer(b"[" + b" " * 17_000_000)]

    run, outcome = await read_account(platform, NORTHWIND, platform.alice)

    (ended_event,) = await platform.list_trail_events("action.ended", run)
    assert isinstance(outcome, Failed)
    assert (outcome.code, ended_event["error"]) == ("request_rejected", "answer_too_large")


@pytest.mark.parametrize(
    "name",
    [b'"planted \\ud800"', b"[" * 100_000 + b"]" * 100_000],
    ids=["half a character", "without bottom"],
)
async def test_an_answer_that_no_history_can_carry_is_asked_for_once(
    platform: Platform, crm: HostileServer, name: bytes
) -> None:
    crm.answers = [build_answer(b'{"Id": "1", "Name": ' + name + b"}")]

    async with asyncio.timeout(30):
        _, outcome = await read_account(platform, NORTHWIND, platform.alice)

    assert isinstance(outcome, Failed)
    assert "planted" not in outcome.message
    assert len(crm.requests) == 1


async def test_what_an_upstream_says_in_refusal_is_neither_shown_nor_recorded(
    platform: Platform, crm: HostileServer
) -> None:
    crm.answers = [
        build_answer(b'{"message": "planted-in-the-body"}', "X-Error: planted-in-a-header", status=403)
    ]

    run, outcome = await read_account(platform, NORTHWIND, platform.alice)

    history = await platform.fetch_history(run)
    assert isinstance(outcome, Failed)
    assert "planted" not in f"{outcome}{await platform.list_trail_events('action.ended', run)}{history}"


async def test_a_wait_of_somebody_else_is_not_ended_by_naming_it(platform: Platform) -> None:
    run = await platform.start_run("read_once", {"account_id": CONTOSO}, platform.bob)
    await platform.wait_until_parked(run)
    (waiter,) = await platform.list_waiters(run)
    alice = platform.build_identity(platform.alice, "some-run", "read_once")

    await platform.services.authorization_requests.check_wait_outcome(
        waiter.id, has_timed_out=True, identity=alice
    )

    (after,) = await platform.list_waiters(run)
    assert after.outcome == "waiting"
    assert await platform.list_trail_events("authorization.expired") == []
    bob = platform.build_identity(platform.bob, run, "read_once")
    with pytest.raises(AuthorizationExpired):
        await platform.services.authorization_requests.check_wait_outcome(
            waiter.id, has_timed_out=True, identity=bob
        )


async def build_client_of(platform: Platform, provider: HostileServer) -> AuthorizationCodeSignIn:
    """Byline as the client of a hostile sign-in service."""
    crm = await platform.services.catalogue.get_connection("crm")
    endpoints = {"token_endpoint": HttpUrl(provider.url), "userinfo_endpoint": HttpUrl(provider.url)}
    connection = crm.model_copy(update={"provider": crm.provider.model_copy(update=endpoints)})
    return AuthorizationCodeSignIn(connection, resources(platform.services.outgoing, platform.environment))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"planted"',
        b'{"access_token": ""}',
        b'{"access_token": {"planted": 1}}',
        b'{"access_token": "planted", "refresh_token": ["planted"]}',
        b'{"access_token": "planted", "expires_in": "planted"}',
        b'{"access_token": "planted", "expires_in": 1e300}',
        b'{"access_token": "planted", "expires_at": "planted"}',
        b'{"access_token": "planted", "expires_at": -1}',
        b'{"error": "planted \\u001b[2J"}',
        b'{"error": {"planted": 1}}',
    ],
    ids=range(14),
)
async def test_a_sign_in_service_that_answers_nonsense_is_reported_and_not_quoted(
    idle_platform: Platform, body: bytes
) -> None:
    async with run_hostile_server() as provider:
        provider.answers = [build_answer(body, "Content-Type: application/json")]
        client = await build_client_of(idle_platform, provider)

        with pytest.raises(BylineError) as error_info:
            await client.refresh_tokens(UpstreamTokens("old", "old", None, ()))

    assert "planted" not in str(error_info.value)


@pytest.mark.parametrize("body", [b"", b"[]", b'"planted"', b"null"])
async def test_an_account_that_cannot_be_read_is_no_account(idle_platform: Platform, body: bytes) -> None:
    async with run_hostile_server() as provider:
        provider.answers = [build_answer(body, "Content-Type: application/json")]
        client = await build_client_of(idle_platform, provider)

        with pytest.raises(BylineError):
            await client.find_account(UpstreamTokens("planted", None, None, ()))


async def test_a_garbled_answer_of_a_sign_in_service_is_one_to_try_again(idle_platform: Platform) -> None:
    async with run_hostile_server() as provider:
        provider.answers = [build_answer(b"garbage", "Content-Encoding: gzip")]
        client = await build_client_of(idle_platform, provider)

        with pytest.raises(UpstreamUnavailable):
            await client.refresh_tokens(UpstreamTokens("old", "old", None, ()))


async def test_arguments_too_large_for_a_run_are_refused_before_it_begins(idle_platform: Platform) -> None:
    with pytest.raises(ArgumentsInvalid, match="too large"):
        await idle_platform.start_run(
            "read_once", {"account_id": NORTHWIND, "label": "x" * 3_000_000}, idle_platform.alice
        )

    assert await idle_platform.list_trail_events("tool.called") == []


async def test_what_a_database_refuses_is_reported_without_the_values(idle_platform: Platform) -> None:
    async with idle_platform.services.database.open_read_session() as session:
        connection = await session.connection()
        with pytest.raises(DBAPIError) as error_info:
            await connection.execute(text("SELECT * FROM nowhere WHERE a = :a"), {"a": "planted"})

    assert "planted" not in str(error_info.value)


@asynccontextmanager
async def gateway(idle_platform: Platform, **changes: object) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway with these settings."""
    settings = idle_platform.settings.model_copy(
        update={"gateway": idle_platform.settings.gateway.model_copy(update=changes)}
    )
    services = replace(idle_platform.services, settings=settings)
    own = build_gateway_services(services)
    servers = create_mcp_servers(
        services, own.token_verifiers, idle_platform.registry, idle_platform.runs, idle_platform.temporal
    )
    app = build_application(
        services, own, idle_platform.registry, idle_platform.runs, idle_platform.temporal, servers
    )
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with AsyncExitStack() as open_:
        for server in servers.values():
            await open_.enter_async_context(server.session_manager.run())
        client = httpx2.AsyncClient(transport=transport, base_url=settings.public_url)
        yield await open_.enter_async_context(client)


async def test_an_issuer_that_does_not_answer_is_no_fault_of_the_token_nor_of_byline(
    idle_platform: Platform,
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    issuer = IssuerSettings(issuer=nowhere, audience="byline", client_id="byline")
    header = urlsafe_b64encode(b'{"alg": "RS256", "kid": "1"}').decode().rstrip("=")

    async with gateway(idle_platform, issuer=issuer) as http:
        response = await http.post("/mcp", headers={"Authorization": f"Bearer {header}.e30.AA"}, json={})

    assert response.status_code == 503
    assert response.json()["type"] == "urn:byline:error:upstream_unavailable"


async def test_a_form_without_end_is_not_read_to_its_end(idle_platform: Platform) -> None:
    async with gateway(idle_platform) as http:
        await http.get("/sign-in")
        response = await http.post("/sign-in", data={"username": "x" * 5_000_000})

    assert response.status_code == 413


async def test_an_answer_that_names_its_issuer_is_not_taken_for_one_of_a_provider_that_names_none(
    platform: Platform,
) -> None:
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    crm = await platform.services.catalogue.get_connection("crm")
    await platform.redeclare("crm", provider=crm.provider.model_copy(update={"issuer": None}))

    with pytest.raises(AuthorizationRefused, match="set `issuer`"):
        await platform.consent(request, platform.alice)

    assert platform.list_requests("crm", "token") == []
    assert await platform.services.grants.list_grants(platform.alice.id) == []
