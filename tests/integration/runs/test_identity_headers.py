"""Holds the worker to refusing every action without a good name: no request leaves, and the trail says why."""

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import OKPKey
from temporalio.api.common.v1 import Payload
from temporalio.client import ActivityFailureError

from engine.errors import (
    BylineError,
    IdentityForged,
    IdentityMisplaced,
    IdentityMissing,
    PrincipalInactive,
)
from engine.identity.model import Identity
from engine.interceptors.headers import encode_header
from engine.runs.outcome import Failed, Finished
from engine.wire import ACCESS_TOKEN_TYPE, IDENTITY_HEADER, IDENTITY_TYPE
from tests.fixtures.tools.account_reads import Reading
from tests.support.administration import retire_signing_key, rotate_signing_key, set_active
from tests.support.platform import NORTHWIND, Platform

READING = Reading(account_id=NORTHWIND)

Forger = Callable[[Platform, Identity], Awaitable[str]]


async def read_refusal(platform: Platform, run_id: str, error: type[BylineError]) -> str:
    """The message of a run's refusal, which the caller, the trail and the upstream must agree on."""
    outcome = await platform.wait_for_outcome(run_id)
    assert isinstance(outcome, Failed), outcome
    (event,) = await platform.list_trail_events("action.refused", run_id)
    assert outcome.code == event["error"] == error.code
    assert outcome.message == event["message"]
    assert event["action"] == "salesforce.read_account"
    assert not await platform.list_trail_events("action.intended", run_id)
    assert platform.list_requests("crm") == []
    return outcome.message


async def start_with_header(platform: Platform, run_id: str, header: Payload) -> None:
    await platform.start_past_the_gateway(
        "read_once", READING, run_id=run_id, headers={IDENTITY_HEADER: header}
    )


async def test_a_workflow_that_a_bare_client_starts_has_no_name_to_act_under(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)

    await platform.start_past_the_gateway("read_once", READING, run_id="bare-1", headers={})

    assert "Start tools through the gateway" in await read_refusal(platform, "bare-1", IdentityMissing)


async def test_an_activity_that_a_client_starts_by_itself_has_no_name_to_act_under(
    platform: Platform,
) -> None:
    await platform.give_grant("crm", platform.alice)
    handle = await platform.temporal.start_activity(
        "salesforce.read_account",
        NORTHWIND,
        id="alone-1",
        task_queue=platform.settings.temporal.task_queue,
        start_to_close_timeout=timedelta(seconds=20),
    )

    with pytest.raises(ActivityFailureError) as failure:
        await handle.result()

    (event,) = await platform.list_trail_events("action.refused")
    assert "step of a workflow" in str(failure.value.cause)
    assert event["error"] == IdentityMissing.code
    assert platform.list_requests("crm") == []


async def test_a_header_copied_from_another_run_opens_nothing(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)
    real = await platform.start_run("read_when_told", {"account_id": NORTHWIND}, platform.alice)
    copied_header = (await platform.fetch_headers(real))[IDENTITY_HEADER]

    await start_with_header(platform, "copy-1", copied_header)

    message = await read_refusal(platform, "copy-1", IdentityMisplaced)
    assert real in message
    assert "copy-1" in message


async def test_a_header_copied_into_a_second_execution_of_the_same_run_opens_nothing(
    platform: Platform,
) -> None:
    await platform.give_grant("crm", platform.alice)
    real = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
    assert isinstance(await platform.wait_for_outcome(real), Finished)
    before = platform.list_requests("crm")

    await start_with_header(platform, real, (await platform.fetch_headers(real))[IDENTITY_HEADER])

    outcome = await platform.wait_for_outcome(real)
    (event,) = await platform.list_trail_events("action.refused", real)
    assert isinstance(outcome, Failed)
    assert outcome.code == event["error"] == IdentityMisplaced.code
    assert "earlier" in outcome.message
    assert platform.list_requests("crm") == before


async def test_an_identity_of_a_run_that_was_never_registered_opens_nothing(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)
    identity = platform.build_identity(platform.alice, "unregistered-1", "read_once")

    await start_with_header(platform, identity.run_id, encode_header(await platform.sign_identity(identity)))

    await read_refusal(platform, identity.run_id, IdentityMisplaced)


async def sign_by_another_key(_platform: Platform, identity: Identity) -> str:
    return forge_header(identity, "0123456789abcdef")


async def sign_by_another_key_with_our_kid(platform: Platform, identity: Identity) -> str:
    (ours,) = (await platform.services.signing_keys.build_jwks())["keys"]
    return forge_header(identity, ours["kid"])


async def sign_as_access_token(platform: Platform, identity: Identity) -> str:
    return await platform.services.signing_keys.sign_claims(identity.to_claims(), ACCESS_TOKEN_TYPE)


async def omit_signature(platform: Platform, identity: Identity) -> str:
    _, body, _ = (await platform.sign_identity(identity)).split(".")
    (ours,) = (await platform.services.signing_keys.build_jwks())["keys"]
    header = {"alg": "none", "kid": ours["kid"], "typ": IDENTITY_TYPE}
    return f"{encode_part(header)}.{body}."


async def replace_name(platform: Platform, identity: Identity) -> str:
    header, _, signature = (await platform.sign_identity(identity)).split(".")
    return f"{header}.{encode_part({**identity.to_claims(), 'sub': platform.bob.id})}.{signature}"


async def omit_claims(platform: Platform, identity: Identity) -> str:
    return await platform.services.signing_keys.sign_claims({"sub": identity.principal_id}, IDENTITY_TYPE)


def forge_header(identity: Identity, kid: str) -> str:
    header = {"alg": "Ed25519", "kid": kid, "typ": IDENTITY_TYPE}
    key = OKPKey.generate_key("Ed25519")
    return jws.serialize_compact(header, json.dumps(identity.to_claims()), key, algorithms=["Ed25519"])


def encode_part(part: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "forger",
    [
        sign_by_another_key,
        sign_by_another_key_with_our_kid,
        sign_as_access_token,
        omit_signature,
        replace_name,
        omit_claims,
    ],
)
async def test_a_forged_header_opens_nothing(platform: Platform, forger: Forger) -> None:
    await platform.give_grant("crm", platform.alice)
    identity = platform.build_identity(platform.alice, f"forged-{secrets.token_hex(4)}", "read_once")
    await platform.register(identity)

    await start_with_header(platform, identity.run_id, encode_header(await forger(platform, identity)))

    await read_refusal(platform, identity.run_id, IdentityForged)


GARBAGE = [
    (encode_header("Alice Liddell"), IdentityForged),
    (encode_header("a.b.c"), IdentityForged),
    (encode_header("…"), IdentityForged),
    (encode_header("W10.W10.W10"), IdentityForged),
    (encode_header("bnVsbA.bnVsbA."), IdentityForged),
    (encode_header("." * 40_000), IdentityForged),
    (encode_header(f"{urlsafe_b64encode(b'[' * 3000).decode()}.e30.e30"), IdentityForged),
    (encode_header({"sub": "alice"}), IdentityMissing),
    (Payload(data=b"\xff\xfe\x00"), IdentityMissing),
    (Payload(metadata={"encoding": b"binary/encrypted"}, data=b"[" * 5000), IdentityMissing),
]


async def test_garbage_in_the_header_opens_nothing(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)

    for number, (header, error) in enumerate(GARBAGE):
        identity = platform.build_identity(platform.alice, f"garbage-{number}", "read_once")
        await platform.register(identity)
        await start_with_header(platform, identity.run_id, header)
        await read_refusal(platform, identity.run_id, error)


async def test_who_is_deactivated_while_a_run_waits_does_nothing_any_more(platform: Platform) -> None:
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.wait_until_parked(run)

    await set_active(platform.services, platform.alice.id, is_active=False)
    await platform.consent(request, platform.alice)

    assert "Alice Liddell is not active" in await read_refusal(platform, run, PrincipalInactive)


async def test_a_refusal_deep_in_a_run_is_in_the_trail_of_that_run(platform: Platform) -> None:
    run = await platform.start_run(
        "read_at_every_level", {"account_id": NORTHWIND, "levels": 2}, platform.alice
    )
    (request,) = await platform.wait_for_requests(run)

    await set_active(platform.services, platform.alice.id, is_active=False)
    await platform.consent(request, platform.alice)

    await read_refusal(platform, run, PrincipalInactive)
    (event,) = await platform.list_trail_events("action.refused", run)
    assert [step.partition(":")[0] for step in event["chain"]] == ["read_at_every_level"] * 3


async def test_a_signing_key_that_was_retired_while_a_run_waits_lets_it_do_nothing_any_more(
    platform: Platform,
) -> None:
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    (old,) = (await platform.services.signing_keys.build_jwks())["keys"]

    await rotate_signing_key(platform.services)
    assert await retire_signing_key(platform.services, old["kid"])
    await platform.consent(request, platform.alice)

    await read_refusal(platform, run, IdentityForged)


async def test_a_retired_key_still_verifies_the_runs_it_signed(platform: Platform) -> None:
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.wait_until_parked(run)

    await rotate_signing_key(platform.services)
    await platform.consent(request, platform.alice)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
