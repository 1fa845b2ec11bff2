"""Delivers over real HTTP, signed by others' libraries, to a gateway whose runs are real."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine.audit.trail import AuditEvent
from engine.db.tables import PrincipalRow
from engine.identity.model import Actor, Identity, Principal, digest_call
from engine.identity.roles import ADMINISTRATOR_ROLE
from engine.policy.policy import Policy, PolicyFile
from engine.runs.outcome import Finished
from engine.runs.records import build_run_row
from engine.runs.runs import build_runs
from engine.webhooks.signatures import SignatureScheme
from tests.support.administration import give_role, set_active, take_role
from tests.support.api_server import ApiServer, serve_api
from tests.support.platform import NORTHWIND, Platform, connect_severed_client
from tests.support.webhook_senders import (
    SENDERS,
    STRIPE,
    SignedDelivery,
    new_event_id,
    now_seconds,
    sign_as_stripe,
)

READING = {"arguments": {"account_id": {"pointer": "/account"}}}
BODY_FIELDS = {"account": NORTHWIND}

schemes = pytest.mark.parametrize("scheme", list(SENDERS))


@dataclass(frozen=True)
class WebhookUnderTest:
    """A webhook, as its maker got it."""

    id: str
    url: str
    scheme: SignatureScheme
    secret: str
    etag: str
    document: Mapping[str, Any]

    def sign_delivery(
        self, event: str, body_fields: Mapping[str, Any] = BODY_FIELDS, signed_at: int | None = None
    ) -> SignedDelivery:
        return SENDERS[self.scheme][1](
            self.secret, event, body_fields, now_seconds() if signed_at is None else signed_at
        )


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as api_server:
        yield api_server


@pytest.fixture
async def ann(api_server: ApiServer, platform: Platform) -> Principal:
    """Somebody who connected the CRM."""
    principal = await api_server.add_person("alice", "Ann")
    await platform.give_grant("crm", principal)
    return principal


async def create_hook(
    api_server: ApiServer, by: Principal, scheme: SignatureScheme = "standard", **more: Any
) -> WebhookUnderTest:
    declaration = {
        "name": "Disputes",
        "tool": "read_once",
        "scheme": scheme,
        "mapping": READING,
        "secret": SENDERS[scheme][0],
    }
    async with api_server.open_client(by) as client:
        answer = await client.post("/webhooks", json={**declaration, **more})
    assert answer.status_code == 201, answer.text
    document = answer.json()
    secret = document["secret"] or SENDERS[scheme][0]
    return WebhookUnderTest(document["id"], document["url"], scheme, secret, answer.headers["etag"], document)


async def post_delivery(hook: WebhookUnderTest, delivery: SignedDelivery) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=60) as sender:
        return await sender.post(hook.url, content=delivery.body, headers=delivery.headers)


async def begin_run(hook: WebhookUnderTest, delivery: SignedDelivery) -> str:
    answer = await post_delivery(hook, delivery)
    assert answer.status_code == 202, answer.text
    assert answer.json().keys() == {"run_id"}
    return str(answer.json()["run_id"])


async def read_answer_code(hook: WebhookUnderTest, delivery: SignedDelivery) -> tuple[int, str]:
    answer = await post_delivery(hook, delivery)
    assert answer.headers["content-type"] == "application/problem+json"
    assert NORTHWIND not in answer.text
    return answer.status_code, answer.json()["type"].removeprefix("urn:byline:error:")


async def change_hook(
    api_server: ApiServer, by: Principal, hook: WebhookUnderTest, changes: Mapping[str, Any]
) -> None:
    async with api_server.open_client(by) as client:
        answer = await client.patch(f"/webhooks/{hook.id}", json=changes, headers={"If-Match": hook.etag})
    assert answer.status_code == 200, answer.text


@schemes
async def test_a_signed_delivery_begins_one_run_as_who_was_declared_however_often_it_comes(
    scheme: SignatureScheme, api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann, scheme)
    event = new_event_id()

    run = await begin_run(hook, hook.sign_delivery(event))
    again = await begin_run(hook, hook.sign_delivery(event, signed_at=now_seconds() + 7))
    outcome = await platform.wait_for_outcome(run)
    later = await begin_run(hook, hook.sign_delivery(event))
    other = await begin_run(hook, hook.sign_delivery(new_event_id()))

    assert run == again == later != other
    assert isinstance(outcome, Finished)
    assert outcome.value["id"] == NORTHWIND
    (called_event,) = await platform.list_trail_events("tool.called", run)
    (ended_event,) = await platform.list_trail_events("action.ended", run)
    for line in (called_event, ended_event):
        assert line["trigger"] == "webhook"
        assert line["actor"] == {"kind": "webhook", "id": hook.id, "name": "Disputes"}
        assert line["principal"]["id"] == ann.id
    assert ended_event["account"] == platform.systems["crm"].find_account("alice")


async def test_deliveries_that_come_at_once_begin_one_run(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann)
    delivery = hook.sign_delivery(new_event_id())

    runs = await asyncio.gather(*(begin_run(hook, delivery) for _ in range(8)))

    assert len(set(runs)) == 1
    assert isinstance(await platform.wait_for_outcome(runs[0]), Finished)
    assert len(await platform.list_trail_events("tool.called")) == 1


async def test_a_run_that_a_webhook_began_waits_as_any_other_and_goes_on_after_consent(
    api_server: ApiServer, platform: Platform
) -> None:
    unconnected_person = await api_server.add_person("alice", "Ann")
    hook = await create_hook(api_server, unconnected_person)
    delivery = hook.sign_delivery(new_event_id())

    run = await begin_run(hook, delivery)
    (request,) = await platform.wait_until_parked(run)
    assert await begin_run(hook, delivery) == run
    await platform.consent(request, unconnected_person)

    outcome = await platform.wait_for_outcome(run)
    assert request.principal_id == unconnected_person.id
    assert isinstance(outcome, Finished)


@schemes
async def test_what_nobody_with_the_secret_signed_is_refused_and_leaves_no_line(
    scheme: SignatureScheme, api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann, scheme)
    good = hook.sign_delivery(new_event_id())
    forged_delivery = replace(
        hook, secret="whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    ).sign_delivery(new_event_id())

    assert await read_answer_code(hook, replace(good, body=good.body + b" ")) == (401, "delivery_refused")
    assert await read_answer_code(hook, replace(good, headers={})) == (401, "delivery_refused")
    assert await read_answer_code(hook, forged_delivery) == (401, "delivery_refused")
    unknown = replace(hook, url=f"{api_server.url}/hooks/{'A' * 22}")
    assert await read_answer_code(unknown, good) == (404, "webhook_unknown")
    assert await read_answer_code(replace(hook, url=f"{api_server.url}/hooks/%00"), good) == (
        404,
        "webhook_unknown",
    )

    assert await platform.list_trail_events("tool.called") == []
    assert await platform.list_trail_events("webhook.refused") == []


@pytest.mark.parametrize("scheme", ["stripe", "slack", "standard"])
async def test_a_delivery_that_was_signed_at_another_time_is_refused_and_recorded_once(
    scheme: SignatureScheme, api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann, scheme, tolerance_seconds=60)
    early, late = (
        hook.sign_delivery(new_event_id(), signed_at=now_seconds() - 90),
        hook.sign_delivery(new_event_id(), signed_at=now_seconds() + 90),
    )

    for delivery in (early, late, early, late, early):
        assert await read_answer_code(hook, delivery) == (401, "delivery_stale")

    assert await platform.list_trail_events("tool.called") == []
    lines = await platform.list_trail_events("webhook.refused")
    assert [line["error"] for line in lines] == ["delivery_stale", "delivery_stale"]
    assert {line["object_id"] for line in lines} == {hook.id}
    assert {line["principal"]["id"] for line in lines} == {ann.id}


async def test_an_id_in_the_signed_body_cannot_be_exchanged_for_another(
    api_server: ApiServer, ann: Principal
) -> None:
    hook = await create_hook(api_server, ann, "github", mapping={**READING, "event_id": "/issue/id"})
    body_fields = {**BODY_FIELDS, "issue": {"id": 42}}
    good = hook.sign_delivery(new_event_id(), body_fields)
    renamed_delivery = replace(good, headers={**good.headers, "x-github-delivery": new_event_id()})

    assert await begin_run(hook, good) == await begin_run(hook, renamed_delivery)


@pytest.mark.parametrize(
    ("body_fields", "expected_message", "reason"),
    [
        ({"subject": NORTHWIND}, "nothing at /account for 'account_id'", "nothing at /account"),
        ({"account": 12}, "What the webhook takes from the body does not fit", "account_id: Input should be"),
    ],
)
async def test_a_signed_body_that_does_not_fit_is_refused_and_the_trail_says_why(
    body_fields: Mapping[str, Any],
    expected_message: str,
    reason: str,
    api_server: ApiServer,
    ann: Principal,
    platform: Platform,
) -> None:
    hook = await create_hook(api_server, ann)
    delivery = hook.sign_delivery(new_event_id(), body_fields)

    for _ in range(3):
        assert await read_answer_code(hook, delivery) == (422, "delivery_unfit")
    assert expected_message in (await post_delivery(hook, delivery)).json()["detail"]

    (line,) = await platform.list_trail_events("webhook.refused")
    assert reason in line["message"]
    assert await platform.list_trail_events("tool.called") == []


@schemes
async def test_a_delivery_that_is_not_meant_is_taken_and_ignored(
    scheme: SignatureScheme, api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    conditions = [{"pointer": "/action", "equals": ["opened", "reopened"]}]
    hook = await create_hook(api_server, ann, scheme, mapping={**READING, "conditions": conditions})

    closed_response = await post_delivery(
        hook, hook.sign_delivery(new_event_id(), {**BODY_FIELDS, "action": "closed"})
    )
    without = await post_delivery(hook, hook.sign_delivery(new_event_id()))
    run = await begin_run(hook, hook.sign_delivery(new_event_id(), {**BODY_FIELDS, "action": "opened"}))

    assert [(response.status_code, response.content) for response in (closed_response, without)] == [
        (204, b"")
    ] * 2
    assert [line["run_id"] for line in await platform.list_trail_events("tool.called")] == [run]
    assert await platform.list_trail_events("webhook.refused") == []


async def test_slack_is_answered_its_challenge_only_where_it_signed_it(
    api_server: ApiServer, ann: Principal
) -> None:
    hook = await create_hook(api_server, ann, "slack")
    challenge_delivery = hook.sign_delivery(
        "unused", {"type": "url_verification", "challenge": "3eZbrw1aB10"}
    )
    unsigned_delivery = replace(
        challenge_delivery, headers={**challenge_delivery.headers, "x-slack-signature": "v0=00"}
    )

    answer = await post_delivery(hook, challenge_delivery)

    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1aB10"})
    assert "3eZbrw1aB10" not in (await post_delivery(hook, unsigned_delivery)).text


async def test_githubs_ping_is_taken_and_begins_nothing(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann, "github")
    ping_delivery = hook.sign_delivery(new_event_id(), {"zen": "Keep it logically awesome."})

    answer = await post_delivery(
        hook, replace(ping_delivery, headers={**ping_delivery.headers, "x-github-event": "ping"})
    )

    assert answer.status_code == 204
    assert await platform.list_trail_events("webhook.refused") == []


async def test_who_was_deactivated_is_acted_for_no_more(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann)
    await set_active(platform.services, ann.id, is_active=False)

    assert await read_answer_code(hook, hook.sign_delivery(new_event_id())) == (403, "not_allowed")

    (line,) = await platform.list_trail_events("webhook.refused")
    assert line["error"] == "principal_inactive"


async def test_a_webhook_that_is_switched_off_refuses_until_it_is_switched_on(
    api_server: ApiServer, ann: Principal
) -> None:
    hook = await create_hook(api_server, ann)
    delivery = hook.sign_delivery(new_event_id())
    await change_hook(api_server, ann, hook, {"active": False})

    assert await read_answer_code(hook, delivery) == (403, "not_allowed")

    await change_hook(api_server, ann, replace(hook, etag='"2"'), {"active": True})
    assert await begin_run(hook, delivery)


async def test_who_may_not_call_the_tool_any_more_is_refused_without_a_word_about_them(
    platform: Platform,
) -> None:
    rules = PolicyFile.model_validate({"tools": {"read_once": {"roles": ["lead"]}}})
    services = replace(platform.services, policy=Policy(lambda: rules, platform.services.roles))
    runs = build_runs(services, platform.temporal, platform.registry)
    async with serve_api(replace(platform, services=services, runs=runs)) as api_server:
        ann = await api_server.add_person("alice", "Ann Archer")
        await give_role(services, ann.id, "lead")
        hook = await create_hook(api_server, ann)
        await take_role(services, ann.id, "lead")
        answer = await post_delivery(hook, hook.sign_delivery(new_event_id()))

    (line,) = await platform.list_trail_events("webhook.refused")
    assert answer.status_code == 403
    assert not {"Ann", "lead", "read_once"} & set(answer.json()["detail"].split())
    assert "the policy asks for the role lead" in line["message"]


async def store_delivery(
    hook: WebhookUnderTest, principal: Principal, event: str, platform: Platform
) -> Identity:
    """What a gateway leaves that dies before it starts the run of an event."""
    actor = Actor("webhook", hook.id, "Disputes")
    call = digest_call("read_once", {"account_id": NORTHWIND})
    identity = Identity.for_run(
        principal, actor, "webhook", run_id=f"read_once-{event}", tool_name="read_once", call_digest=call
    )
    row = build_run_row(identity, idempotency_key=f"webhook:{hook.id}:{event}")
    called_event = AuditEvent(kind="tool.called", identity=identity, run_id=identity.run_id)
    await platform.services.trail.append_event(called_event, row)
    return identity


async def test_a_delivery_that_was_stored_and_not_started_is_started_when_it_comes_again(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann)
    event = new_event_id()
    identity = await store_delivery(hook, ann, event, platform)

    assert await begin_run(hook, hook.sign_delivery(event)) == identity.run_id

    assert isinstance(await platform.wait_for_outcome(identity.run_id), Finished)


async def test_after_a_change_of_the_mapping_an_event_that_ran_does_not_run_again_and_an_unfinished_one_is_refused(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann)
    ran_event, left = new_event_id(), new_event_id()
    run = await begin_run(hook, hook.sign_delivery(ran_event))
    await platform.wait_for_outcome(run)
    await store_delivery(hook, ann, left, platform)
    label = {"label": {"constant": "again"}}
    await change_hook(api_server, ann, hook, {"mapping": {"arguments": {**READING["arguments"], **label}}})

    assert await begin_run(hook, hook.sign_delivery(ran_event)) == run
    assert await read_answer_code(hook, hook.sign_delivery(left)) == (422, "delivery_unfit")

    (line,) = await platform.list_trail_events("webhook.refused")
    assert line["error"] == "key_reused"


async def test_while_temporal_is_away_the_sender_is_asked_to_retry_and_then_the_run_begins(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann)
    delivery = hook.sign_delivery(new_event_id())
    async with connect_severed_client(platform) as temporal:
        runs = build_runs(platform.services, temporal, platform.registry)
        async with serve_api(replace(platform, runs=runs)) as away:
            there = replace(hook, url=f"{away.url}/hooks/{hook.id}")
            assert await read_answer_code(there, delivery) == (503, "temporal_unreachable")

    run = await begin_run(hook, delivery)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert [line["run_id"] for line in await platform.list_trail_events("tool.called")] == [run]
    assert await platform.list_trail_events("webhook.refused") == []


async def test_a_body_beyond_one_mebibyte_is_not_read(api_server: ApiServer, ann: Principal) -> None:
    hook = await create_hook(api_server, ann)
    large = hook.sign_delivery(new_event_id(), {**BODY_FIELDS, "more": "x" * 1024 * 1024})

    assert (await post_delivery(hook, large)).status_code == 413


async def add_service(platform: Platform, subject: str) -> Principal:
    row = PrincipalRow(
        id=f"service-{subject}",
        issuer="urn:services",
        subject=subject,
        name="Ticket desk",
        kind="service",
        created_at=platform.opened_at,
    )
    async with platform.services.database.open_write_session() as session:
        session.add(row)
    principal = await platform.services.principals.find_principal(row.id)
    assert principal is not None
    return principal


async def test_an_administrator_has_a_webhook_act_as_a_service_and_others_never_see_it(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    chief = await api_server.add_person("chief", "Chief")
    await give_role(platform.services, chief.id, ADMINISTRATOR_ROLE)
    desk = await add_service(platform, "alice")
    await platform.give_grant("crm", desk)

    hook = await create_hook(api_server, chief, principal_id=desk.id)
    run = await begin_run(hook, hook.sign_delivery(new_event_id()))

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    (called_event,) = await platform.list_trail_events("tool.called", run)
    (created_event,) = await platform.list_trail_events("webhook.created")
    assert (called_event["principal"]["id"], called_event["principal"]["kind"]) == (desk.id, "service")
    assert (created_event["principal"]["id"], created_event["object_id"]) == (chief.id, hook.id)
    async with api_server.open_client(ann) as client:
        assert (await client.get(f"/webhooks/{hook.id}")).status_code == 404
        assert (await client.get("/webhooks")).json()["items"] == []
    async with api_server.open_client(chief) as client:
        assert [item["id"] for item in (await client.get("/webhooks")).json()["items"]] == [hook.id]


async def test_a_webhook_acts_as_nobody_who_did_not_declare_themself(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    chief = await api_server.add_person("chief", "Chief")
    await give_role(platform.services, chief.id, ADMINISTRATOR_ROLE)
    desk = await add_service(platform, "desk")
    new = {"name": "n", "tool": "read_once", "scheme": "standard", "mapping": READING}

    async with api_server.open_client(ann) as client:
        as_chief = await client.post("/webhooks", json={**new, "principal_id": chief.id})
        as_desk = await client.post("/webhooks", json={**new, "principal_id": desk.id})
    async with api_server.open_client(chief) as client:
        as_ann = await client.post("/webhooks", json={**new, "principal_id": ann.id})

    assert [answer.status_code for answer in (as_chief, as_desk, as_ann)] == [403, 403, 422]
    assert await platform.list_trail_events("webhook.created") == []


async def test_an_api_token_makes_no_webhook_that_would_outlive_it(
    api_server: ApiServer, ann: Principal
) -> None:
    new = {"name": "n", "tool": "read_once", "scheme": "standard", "mapping": READING}
    async with api_server.open_client(ann) as client:
        token = await client.post("/tokens", json={"name": "for reports"})
        assert token.status_code == 201, token.text
        client.headers["Authorization"] = f"Bearer {token.json()['token']}"

        assert (await client.post("/webhooks", json=new)).status_code == 403


async def test_a_webhook_that_cannot_work_is_not_made(api_server: ApiServer, ann: Principal) -> None:
    new = {"name": "n", "tool": "read_once", "scheme": "standard", "mapping": READING}
    async with api_server.open_client(ann) as client:

        async def create_hook_with(**changes: Any) -> tuple[int, str]:
            answer = await client.post("/webhooks", json={**new, **changes})
            return answer.status_code, answer.json()["detail"]

        unmapped_response = await create_hook_with(mapping={"arguments": {"account": {"pointer": "/a"}}})
        no_pointer = await create_hook_with(mapping={"arguments": {"account_id": {"pointer": "a"}}})
        no_tool = await create_hook_with(tool="nothing")
        short = await create_hook_with(secret="short-secret")

    assert unmapped_response[0] == 422
    assert (
        "the tool has no argument 'account'; the argument 'account_id' comes from nowhere"
        in unmapped_response[1]
    )
    assert no_pointer[0] == 422
    assert "not a JSON pointer" in no_pointer[1]
    assert no_tool[0] == 404
    assert short[0] == 422
    assert "short-secret" not in short[1]


async def test_a_change_takes_the_version_that_was_read(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann)
    path = f"/webhooks/{hook.id}"
    async with api_server.open_client(ann) as client:
        read = await client.get(path)
        blind = await client.patch(path, json={"name": "New"})
        first = await client.patch(path, json={"name": "New"}, headers={"If-Match": read.headers["etag"]})
        second = await client.patch(path, json={"name": "Newer"}, headers={"If-Match": hook.etag})
        kept_response = await client.delete(path, headers={"If-Match": hook.etag})
        gone_response = await client.delete(path, headers={"If-Match": first.headers["etag"]})

    assert read.json() == {name: value for name, value in hook.document.items() if name != "secret"}
    statuses = [response.status_code for response in (blind, first, second, kept_response, gone_response)]
    assert statuses == [428, 200, 412, 412, 204]
    assert first.json()["name"] == "New"
    assert await read_answer_code(hook, hook.sign_delivery(new_event_id())) == (404, "webhook_unknown")
    kinds = ("webhook.created", "webhook.changed", "webhook.deleted")
    assert [line["object_id"] for kind in kinds for line in await platform.list_trail_events(kind)] == [
        hook.id
    ] * 3


async def test_a_new_secret_is_good_at_once_and_the_old_one_for_as_long_as_said(
    api_server: ApiServer, ann: Principal
) -> None:
    old = await create_hook(api_server, ann, secret=None)

    async def rotate_secret(etag: str, overlap: int) -> tuple[str, str]:
        async with api_server.open_client(ann) as client:
            answer = await client.post(
                f"/webhooks/{old.id}/secret", json={"overlap_seconds": overlap}, headers={"If-Match": etag}
            )
        assert answer.status_code == 200, answer.text
        return answer.json()["secret"], answer.headers["etag"]

    secret, etag = await rotate_secret(old.etag, 3600)
    new = replace(old, secret=secret)
    assert await begin_run(new, new.sign_delivery(new_event_id()))
    assert await begin_run(old, old.sign_delivery(new_event_id()))

    secret, _ = await rotate_secret(etag, 0)
    newest = replace(old, secret=secret)
    assert await begin_run(newest, newest.sign_delivery(new_event_id()))
    assert await read_answer_code(new, new.sign_delivery(new_event_id())) == (401, "delivery_refused")
    assert await read_answer_code(old, old.sign_delivery(new_event_id())) == (401, "delivery_refused")


async def test_stripe_gets_the_address_first_and_its_secret_is_stored_then(
    api_server: ApiServer, ann: Principal
) -> None:
    hook = await create_hook(api_server, ann, "stripe", secret=None)
    delivery = sign_as_stripe(STRIPE, new_event_id(), BODY_FIELDS, now_seconds())
    assert hook.document["secret"] is None
    assert await read_answer_code(hook, delivery) == (401, "delivery_refused")

    path, match = f"/webhooks/{hook.id}/secret", {"If-Match": hook.etag}
    async with api_server.open_client(ann) as client:
        made_here = await client.post(path, json={}, headers=match)
        secret_response = await client.post(path, json={"secret": STRIPE}, headers=match)

    assert (made_here.status_code, secret_response.status_code) == (422, 200)
    assert secret_response.json()["secret"] is None
    assert await begin_run(hook, delivery)


async def test_a_row_that_was_given_another_principal_takes_no_delivery(
    api_server: ApiServer, ann: Principal, platform: Platform
) -> None:
    hook = await create_hook(api_server, ann)
    async with platform.services.database.open_write_session() as session:
        connection = await session.connection()
        await connection.exec_driver_sql(f"UPDATE webhook SET principal_id = '{platform.bob.id}'")

    answer = await post_delivery(hook, hook.sign_delivery(new_event_id()))

    assert (answer.status_code, answer.json()["type"]) == (500, "urn:byline:error:vault_seal_broken")
    assert ann.id not in answer.text
    assert await platform.list_trail_events("tool.called") == []


async def test_no_secret_lies_open_anywhere(
    api_server: ApiServer, ann: Principal, platform: Platform, capfd: pytest.CaptureFixture[str]
) -> None:
    hooks = [await create_hook(api_server, ann, scheme) for scheme in SENDERS] + [
        await create_hook(api_server, ann, secret=None)
    ]
    for hook in hooks:
        await begin_run(hook, hook.sign_delivery(new_event_id()))
        await post_delivery(hook, replace(hook.sign_delivery(new_event_id()), headers={}))
        await post_delivery(hook, hook.sign_delivery(new_event_id(), {"secret": hook.secret}))
    async with api_server.open_client(ann) as client:
        listing_text = (await client.get("/webhooks")).text
    trail = json.dumps([line.event for line in await platform.services.trail.find_lines(limit=None)])
    database = Path(platform.settings.database.url.removeprefix("sqlite+aiosqlite:///"))
    stored_bytes = database.read_bytes() + database.with_name(f"{database.name}-wal").read_bytes()
    log_text = "".join(capfd.readouterr())

    for hook in hooks:
        secret = hook.secret.removeprefix("whsec_")
        assert secret.encode() not in stored_bytes
        assert all(secret not in text for text in (listing_text, trail, log_text))
