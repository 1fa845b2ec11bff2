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
from engine.runs.runs import Failed, Finished
from engine.wire import ACCESS_TOKEN_TYPE, IDENTITY_HEADER, IDENTITY_TYPE
from tests.platform import NORTHWIND, Platform
from tests.tools.reading import Reading

READING = Reading(account_id=NORTHWIND)

Forger = Callable[[Platform, Identity], Awaitable[str]]


async def refused(platform: Platform, run_id: str, error: type[BylineError]) -> str:
    """The message of a run's refusal, which the caller, the trail and the upstream must agree on."""
    outcome = await platform.outcome(run_id)
    assert isinstance(outcome, Failed), outcome
    (event,) = await platform.trail("action.refused", run_id)
    assert outcome.code == event["error"] == error.code
    assert outcome.message == event["message"]
    assert event["action"] == "salesforce.read_account"
    assert not await platform.trail("action.intended", run_id)
    assert platform.requests("crm") == []
    return outcome.message


async def with_header(platform: Platform, run_id: str, header: Payload) -> None:
    await platform.start_past_the_gateway(
        "read_once", READING, run_id=run_id, headers={IDENTITY_HEADER: header}
    )


async def test_a_workflow_that_a_bare_client_starts_has_no_name_to_act_under(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)

    await platform.start_past_the_gateway("read_once", READING, run_id="bare-1", headers={})

    assert "Start tools through the gateway" in await refused(platform, "bare-1", IdentityMissing)


async def test_an_activity_that_a_client_starts_by_itself_has_no_name_to_act_under(
    platform: Platform,
) -> None:
    await platform.grant("crm", platform.alice)
    handle = await platform.temporal.start_activity(
        "salesforce.read_account",
        NORTHWIND,
        id="alone-1",
        task_queue=platform.settings.temporal.task_queue,
        start_to_close_timeout=timedelta(seconds=20),
    )

    with pytest.raises(ActivityFailureError) as failure:
        await handle.result()

    (event,) = await platform.trail("action.refused")
    assert "step of a workflow" in str(failure.value.cause)
    assert event["error"] == IdentityMissing.code
    assert platform.requests("crm") == []


async def test_a_header_copied_from_another_run_opens_nothing(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)
    real = await platform.start("read_when_told", {"account_id": NORTHWIND}, platform.alice)
    copied = (await platform.headers(real))[IDENTITY_HEADER]

    await with_header(platform, "copy-1", copied)

    message = await refused(platform, "copy-1", IdentityMisplaced)
    assert real in message
    assert "copy-1" in message


async def test_a_header_copied_into_a_second_execution_of_the_same_run_opens_nothing(
    platform: Platform,
) -> None:
    await platform.grant("crm", platform.alice)
    real = await platform.start("read_once", {"account_id": NORTHWIND}, platform.alice)
    assert isinstance(await platform.outcome(real), Finished)
    before = platform.requests("crm")

    await with_header(platform, real, (await platform.headers(real))[IDENTITY_HEADER])

    outcome = await platform.outcome(real)
    (event,) = await platform.trail("action.refused", real)
    assert isinstance(outcome, Failed)
    assert outcome.code == event["error"] == IdentityMisplaced.code
    assert "earlier" in outcome.message
    assert platform.requests("crm") == before


async def test_an_identity_of_a_run_that_was_never_registered_opens_nothing(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)
    identity = platform.identity(platform.alice, "unregistered-1", "read_once")

    await with_header(platform, identity.run_id, encode_header(await platform.signed(identity)))

    await refused(platform, identity.run_id, IdentityMisplaced)


async def by_another_key(_platform: Platform, identity: Identity) -> str:
    return forged(identity, "0123456789abcdef")


async def by_another_key_under_the_name_of_ours(platform: Platform, identity: Identity) -> str:
    (ours,) = (await platform.services.signing_keys.build_jwks())["keys"]
    return forged(identity, ours["kid"])


async def as_an_access_token(platform: Platform, identity: Identity) -> str:
    return await platform.services.signing_keys.sign_claims(identity.to_claims(), ACCESS_TOKEN_TYPE)


async def without_a_signature(platform: Platform, identity: Identity) -> str:
    _, body, _ = (await platform.signed(identity)).split(".")
    (ours,) = (await platform.services.signing_keys.build_jwks())["keys"]
    header = {"alg": "none", "kid": ours["kid"], "typ": IDENTITY_TYPE}
    return f"{encoded(header)}.{body}."


async def with_another_name_put_in(platform: Platform, identity: Identity) -> str:
    header, _, signature = (await platform.signed(identity)).split(".")
    return f"{header}.{encoded({**identity.to_claims(), 'sub': platform.bob.id})}.{signature}"


async def with_claims_left_out(platform: Platform, identity: Identity) -> str:
    return await platform.services.signing_keys.sign_claims({"sub": identity.principal_id}, IDENTITY_TYPE)


def forged(identity: Identity, kid: str) -> str:
    header = {"alg": "Ed25519", "kid": kid, "typ": IDENTITY_TYPE}
    key = OKPKey.generate_key("Ed25519")
    return jws.serialize_compact(header, json.dumps(identity.to_claims()), key, algorithms=["Ed25519"])


def encoded(part: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "forger",
    [
        by_another_key,
        by_another_key_under_the_name_of_ours,
        as_an_access_token,
        without_a_signature,
        with_another_name_put_in,
        with_claims_left_out,
    ],
)
async def test_a_forged_header_opens_nothing(platform: Platform, forger: Forger) -> None:
    await platform.grant("crm", platform.alice)
    identity = platform.identity(platform.alice, f"forged-{secrets.token_hex(4)}", "read_once")
    await platform.register(identity)

    await with_header(platform, identity.run_id, encode_header(await forger(platform, identity)))

    await refused(platform, identity.run_id, IdentityForged)


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
    await platform.grant("crm", platform.alice)

    for number, (header, error) in enumerate(GARBAGE):
        identity = platform.identity(platform.alice, f"garbage-{number}", "read_once")
        await platform.register(identity)
        await with_header(platform, identity.run_id, header)
        await refused(platform, identity.run_id, error)


async def test_who_is_deactivated_while_a_run_waits_does_nothing_any_more(platform: Platform) -> None:
    run = await platform.start("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.parked(run)

    await platform.services.principals.set_active(platform.alice.id, is_active=False)
    await platform.consent(request, platform.alice)

    assert "Alice Liddell is not active" in await refused(platform, run, PrincipalInactive)


async def test_a_refusal_deep_in_a_run_is_in_the_trail_of_that_run(platform: Platform) -> None:
    run = await platform.start("read_at_every_level", {"account_id": NORTHWIND, "levels": 2}, platform.alice)
    (request,) = await platform.asked(run)

    await platform.services.principals.set_active(platform.alice.id, is_active=False)
    await platform.consent(request, platform.alice)

    await refused(platform, run, PrincipalInactive)
    (event,) = await platform.trail("action.refused", run)
    assert [step.partition(":")[0] for step in event["chain"]] == ["read_at_every_level"] * 3


async def test_a_signing_key_that_was_retired_while_a_run_waits_lets_it_do_nothing_any_more(
    platform: Platform,
) -> None:
    run = await platform.start("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.parked(run)
    (old,) = (await platform.services.signing_keys.build_jwks())["keys"]

    await platform.services.signing_keys.rotate_key()
    assert await platform.services.signing_keys.retire_key(old["kid"])
    await platform.consent(request, platform.alice)

    await refused(platform, run, IdentityForged)


async def test_a_key_that_signs_no_more_still_vouches_for_the_runs_it_signed(platform: Platform) -> None:
    run = await platform.start("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.parked(run)

    await platform.services.signing_keys.rotate_key()
    await platform.consent(request, platform.alice)

    assert isinstance(await platform.outcome(run), Finished)
