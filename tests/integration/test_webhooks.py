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
from tests.administration import give_role, set_active, take_role
from tests.platform import NORTHWIND, Platform, severed
from tests.rest import Rest, serving
from tests.senders import SENDERS, STRIPE, Delivery, an_event, now, stripe

READING = {"arguments": {"account_id": {"pointer": "/account"}}}
SAID = {"account": NORTHWIND}

schemes = pytest.mark.parametrize("scheme", list(SENDERS))


@dataclass(frozen=True)
class Hook:
    """A webhook, as its maker got it."""

    id: str
    url: str
    scheme: SignatureScheme
    secret: str
    etag: str
    shown: Mapping[str, Any]

    def signed(self, event: str, said: Mapping[str, Any] = SAID, at: int | None = None) -> Delivery:
        return SENDERS[self.scheme][1](self.secret, event, said, now() if at is None else at)


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as rest:
        yield rest


@pytest.fixture
async def ann(rest: Rest, platform: Platform) -> Principal:
    """Somebody who connected the CRM."""
    principal = await rest.person("alice", "Ann")
    await platform.grant("crm", principal)
    return principal


async def made(rest: Rest, by: Principal, scheme: SignatureScheme = "standard", **more: Any) -> Hook:
    declaration = {
        "name": "Disputes",
        "tool": "read_once",
        "scheme": scheme,
        "mapping": READING,
        "secret": SENDERS[scheme][0],
    }
    async with rest.calling_as(by) as client:
        answer = await client.post("/webhooks", json={**declaration, **more})
    assert answer.status_code == 201, answer.text
    shown = answer.json()
    secret = shown["secret"] or SENDERS[scheme][0]
    return Hook(shown["id"], shown["url"], scheme, secret, answer.headers["etag"], shown)


async def delivered(hook: Hook, delivery: Delivery) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=60) as sender:
        return await sender.post(hook.url, content=delivery.body, headers=delivery.headers)


async def begun(hook: Hook, delivery: Delivery) -> str:
    answer = await delivered(hook, delivery)
    assert answer.status_code == 202, answer.text
    assert answer.json().keys() == {"run_id"}
    return str(answer.json()["run_id"])


async def code(hook: Hook, delivery: Delivery) -> tuple[int, str]:
    answer = await delivered(hook, delivery)
    assert answer.headers["content-type"] == "application/problem+json"
    assert NORTHWIND not in answer.text
    return answer.status_code, answer.json()["type"].removeprefix("urn:byline:error:")


async def changed(rest: Rest, by: Principal, hook: Hook, changes: Mapping[str, Any]) -> None:
    async with rest.calling_as(by) as client:
        answer = await client.patch(f"/webhooks/{hook.id}", json=changes, headers={"If-Match": hook.etag})
    assert answer.status_code == 200, answer.text


@schemes
async def test_a_signed_delivery_begins_one_run_as_who_was_declared_however_often_it_comes(
    scheme: SignatureScheme, rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann, scheme)
    event = an_event()

    run = await begun(hook, hook.signed(event))
    again = await begun(hook, hook.signed(event, at=now() + 7))
    outcome = await platform.outcome(run)
    later = await begun(hook, hook.signed(event))
    other = await begun(hook, hook.signed(an_event()))

    assert run == again == later != other
    assert isinstance(outcome, Finished)
    assert outcome.value["id"] == NORTHWIND
    (called,) = await platform.trail("tool.called", run)
    (ended,) = await platform.trail("action.ended", run)
    for line in (called, ended):
        assert line["trigger"] == "webhook"
        assert line["actor"] == {"kind": "webhook", "id": hook.id, "name": "Disputes"}
        assert line["principal"]["id"] == ann.id
    assert ended["account"] == platform.systems["crm"].account("alice")


async def test_deliveries_that_come_at_once_begin_one_run(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    delivery = hook.signed(an_event())

    runs = await asyncio.gather(*(begun(hook, delivery) for _ in range(8)))

    assert len(set(runs)) == 1
    assert isinstance(await platform.outcome(runs[0]), Finished)
    assert len(await platform.trail("tool.called")) == 1


async def test_a_run_that_a_webhook_began_waits_as_any_other_and_goes_on_after_consent(
    rest: Rest, platform: Platform
) -> None:
    unconnected = await rest.person("alice", "Ann")
    hook = await made(rest, unconnected)
    delivery = hook.signed(an_event())

    run = await begun(hook, delivery)
    (request,) = await platform.parked(run)
    assert await begun(hook, delivery) == run
    await platform.consent(request, unconnected)

    outcome = await platform.outcome(run)
    assert request.principal_id == unconnected.id
    assert isinstance(outcome, Finished)


@schemes
async def test_what_nobody_with_the_secret_signed_is_refused_and_leaves_no_line(
    scheme: SignatureScheme, rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann, scheme)
    good = hook.signed(an_event())
    forged = replace(hook, secret="whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=").signed(an_event())

    assert await code(hook, replace(good, body=good.body + b" ")) == (401, "delivery_refused")
    assert await code(hook, replace(good, headers={})) == (401, "delivery_refused")
    assert await code(hook, forged) == (401, "delivery_refused")
    unknown = replace(hook, url=f"{rest.url}/hooks/{'A' * 22}")
    assert await code(unknown, good) == (404, "webhook_unknown")
    assert await code(replace(hook, url=f"{rest.url}/hooks/%00"), good) == (404, "webhook_unknown")

    assert await platform.trail("tool.called") == []
    assert await platform.trail("webhook.refused") == []


@pytest.mark.parametrize("scheme", ["stripe", "slack", "standard"])
async def test_a_delivery_that_was_signed_at_another_time_is_refused_and_told_once(
    scheme: SignatureScheme, rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann, scheme, tolerance_seconds=60)
    early, late = hook.signed(an_event(), at=now() - 90), hook.signed(an_event(), at=now() + 90)

    for delivery in (early, late, early, late, early):
        assert await code(hook, delivery) == (401, "delivery_stale")

    assert await platform.trail("tool.called") == []
    lines = await platform.trail("webhook.refused")
    assert [line["error"] for line in lines] == ["delivery_stale", "delivery_stale"]
    assert {line["object_id"] for line in lines} == {hook.id}
    assert {line["principal"]["id"] for line in lines} == {ann.id}


async def test_an_id_in_the_signed_body_cannot_be_exchanged_for_another(rest: Rest, ann: Principal) -> None:
    hook = await made(rest, ann, "github", mapping={**READING, "event_id": "/issue/id"})
    said = {**SAID, "issue": {"id": 42}}
    good = hook.signed(an_event(), said)
    renamed = replace(good, headers={**good.headers, "x-github-delivery": an_event()})

    assert await begun(hook, good) == await begun(hook, renamed)


@pytest.mark.parametrize(
    ("said", "told", "reason"),
    [
        ({"subject": NORTHWIND}, "nothing at /account for 'account_id'", "nothing at /account"),
        ({"account": 12}, "What the webhook takes from the body does not fit", "account_id: Input should be"),
    ],
)
async def test_a_signed_body_that_does_not_fit_is_refused_and_the_trail_says_why(
    said: Mapping[str, Any], told: str, reason: str, rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    delivery = hook.signed(an_event(), said)

    for _ in range(3):
        assert await code(hook, delivery) == (422, "delivery_unfit")
    assert told in (await delivered(hook, delivery)).json()["detail"]

    (line,) = await platform.trail("webhook.refused")
    assert reason in line["message"]
    assert await platform.trail("tool.called") == []


@schemes
async def test_a_delivery_that_is_not_meant_is_taken_and_ignored(
    scheme: SignatureScheme, rest: Rest, ann: Principal, platform: Platform
) -> None:
    conditions = [{"pointer": "/action", "equals": ["opened", "reopened"]}]
    hook = await made(rest, ann, scheme, mapping={**READING, "conditions": conditions})

    closed = await delivered(hook, hook.signed(an_event(), {**SAID, "action": "closed"}))
    without = await delivered(hook, hook.signed(an_event()))
    run = await begun(hook, hook.signed(an_event(), {**SAID, "action": "opened"}))

    assert [(each.status_code, each.content) for each in (closed, without)] == [(204, b"")] * 2
    assert [line["run_id"] for line in await platform.trail("tool.called")] == [run]
    assert await platform.trail("webhook.refused") == []


async def test_slack_is_answered_its_challenge_only_where_it_signed_it(rest: Rest, ann: Principal) -> None:
    hook = await made(rest, ann, "slack")
    asked = hook.signed("unused", {"type": "url_verification", "challenge": "3eZbrw1aB10"})
    unsigned = replace(asked, headers={**asked.headers, "x-slack-signature": "v0=00"})

    answer = await delivered(hook, asked)

    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1aB10"})
    assert "3eZbrw1aB10" not in (await delivered(hook, unsigned)).text


async def test_githubs_ping_is_taken_and_begins_nothing(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann, "github")
    said = hook.signed(an_event(), {"zen": "Keep it logically awesome."})

    answer = await delivered(hook, replace(said, headers={**said.headers, "x-github-event": "ping"}))

    assert answer.status_code == 204
    assert await platform.trail("webhook.refused") == []


async def test_who_was_deactivated_is_acted_for_no_more(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    await set_active(platform.services, ann.id, is_active=False)

    assert await code(hook, hook.signed(an_event())) == (403, "not_allowed")

    (line,) = await platform.trail("webhook.refused")
    assert line["error"] == "principal_inactive"


async def test_a_webhook_that_is_switched_off_refuses_until_it_is_switched_on(
    rest: Rest, ann: Principal
) -> None:
    hook = await made(rest, ann)
    delivery = hook.signed(an_event())
    await changed(rest, ann, hook, {"active": False})

    assert await code(hook, delivery) == (403, "not_allowed")

    await changed(rest, ann, replace(hook, etag='"2"'), {"active": True})
    assert await begun(hook, delivery)


async def test_who_may_not_call_the_tool_any_more_is_refused_without_a_word_about_them(
    platform: Platform,
) -> None:
    rules = PolicyFile.model_validate({"tools": {"read_once": {"roles": ["lead"]}}})
    services = replace(platform.services, policy=Policy(lambda: rules, platform.services.roles))
    runs = build_runs(services, platform.temporal, platform.registry)
    async with serving(replace(platform, services=services, runs=runs)) as rest:
        ann = await rest.person("alice", "Ann Archer")
        await give_role(services, ann.id, "lead")
        hook = await made(rest, ann)
        await take_role(services, ann.id, "lead")
        answer = await delivered(hook, hook.signed(an_event()))

    (line,) = await platform.trail("webhook.refused")
    assert answer.status_code == 403
    assert not {"Ann", "lead", "read_once"} & set(answer.json()["detail"].split())
    assert "the policy asks for the role lead" in line["message"]


async def stored(hook: Hook, principal: Principal, event: str, platform: Platform) -> Identity:
    """What a gateway leaves that dies before it starts the run of an event."""
    actor = Actor("webhook", hook.id, "Disputes")
    call = digest_call("read_once", {"account_id": NORTHWIND})
    identity = Identity.for_run(
        principal, actor, "webhook", run_id=f"read_once-{event}", tool_name="read_once", call_digest=call
    )
    row = build_run_row(identity, idempotency_key=f"webhook:{hook.id}:{event}")
    called = AuditEvent(kind="tool.called", identity=identity, run_id=identity.run_id)
    await platform.services.trail.append_event(called, row)
    return identity


async def test_a_delivery_that_was_stored_and_not_started_is_started_when_it_comes_again(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    event = an_event()
    identity = await stored(hook, ann, event, platform)

    assert await begun(hook, hook.signed(event)) == identity.run_id

    assert isinstance(await platform.outcome(identity.run_id), Finished)


async def test_after_a_change_of_the_mapping_an_event_that_ran_does_not_run_again_and_one_that_did_not_is_told(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    ran, left = an_event(), an_event()
    run = await begun(hook, hook.signed(ran))
    await platform.outcome(run)
    await stored(hook, ann, left, platform)
    label = {"label": {"constant": "again"}}
    await changed(rest, ann, hook, {"mapping": {"arguments": {**READING["arguments"], **label}}})

    assert await begun(hook, hook.signed(ran)) == run
    assert await code(hook, hook.signed(left)) == (422, "delivery_unfit")

    (line,) = await platform.trail("webhook.refused")
    assert line["error"] == "key_reused"


async def test_while_temporal_is_away_the_sender_is_told_to_come_again_and_then_the_run_begins(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    delivery = hook.signed(an_event())
    async with severed(platform) as temporal:
        runs = build_runs(platform.services, temporal, platform.registry)
        async with serving(replace(platform, runs=runs)) as away:
            there = replace(hook, url=f"{away.url}/hooks/{hook.id}")
            assert await code(there, delivery) == (503, "temporal_unreachable")

    run = await begun(hook, delivery)

    assert isinstance(await platform.outcome(run), Finished)
    assert [line["run_id"] for line in await platform.trail("tool.called")] == [run]
    assert await platform.trail("webhook.refused") == []


async def test_a_body_beyond_one_mebibyte_is_not_read(rest: Rest, ann: Principal) -> None:
    hook = await made(rest, ann)
    large = hook.signed(an_event(), {**SAID, "more": "x" * 1024 * 1024})

    assert (await delivered(hook, large)).status_code == 413


async def a_service(platform: Platform, subject: str) -> Principal:
    row = PrincipalRow(
        id=f"service-{subject}",
        issuer="urn:services",
        subject=subject,
        name="Ticket desk",
        kind="service",
        created_at=platform.opened,
    )
    async with platform.services.database.open_write_session() as session:
        session.add(row)
    found = await platform.services.principals.find_principal(row.id)
    assert found is not None
    return found


async def test_an_administrator_has_a_webhook_act_as_a_service_and_others_never_see_it(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    chief = await rest.person("chief", "Chief")
    await give_role(platform.services, chief.id, ADMINISTRATOR_ROLE)
    desk = await a_service(platform, "alice")
    await platform.grant("crm", desk)

    hook = await made(rest, chief, principal_id=desk.id)
    run = await begun(hook, hook.signed(an_event()))

    assert isinstance(await platform.outcome(run), Finished)
    (called,) = await platform.trail("tool.called", run)
    (created,) = await platform.trail("webhook.created")
    assert (called["principal"]["id"], called["principal"]["kind"]) == (desk.id, "service")
    assert (created["principal"]["id"], created["object_id"]) == (chief.id, hook.id)
    async with rest.calling_as(ann) as client:
        assert (await client.get(f"/webhooks/{hook.id}")).status_code == 404
        assert (await client.get("/webhooks")).json()["items"] == []
    async with rest.calling_as(chief) as client:
        assert [each["id"] for each in (await client.get("/webhooks")).json()["items"]] == [hook.id]


async def test_a_webhook_acts_as_nobody_who_did_not_declare_themself(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    chief = await rest.person("chief", "Chief")
    await give_role(platform.services, chief.id, ADMINISTRATOR_ROLE)
    desk = await a_service(platform, "desk")
    new = {"name": "n", "tool": "read_once", "scheme": "standard", "mapping": READING}

    async with rest.calling_as(ann) as client:
        as_chief = await client.post("/webhooks", json={**new, "principal_id": chief.id})
        as_desk = await client.post("/webhooks", json={**new, "principal_id": desk.id})
    async with rest.calling_as(chief) as client:
        as_ann = await client.post("/webhooks", json={**new, "principal_id": ann.id})

    assert [answer.status_code for answer in (as_chief, as_desk, as_ann)] == [403, 403, 422]
    assert await platform.trail("webhook.created") == []


async def test_an_api_token_makes_no_webhook_that_would_outlive_it(rest: Rest, ann: Principal) -> None:
    new = {"name": "n", "tool": "read_once", "scheme": "standard", "mapping": READING}
    async with rest.calling_as(ann) as client:
        token = await client.post("/tokens", json={"name": "for reports"})
        assert token.status_code == 201, token.text
        client.headers["Authorization"] = f"Bearer {token.json()['token']}"

        assert (await client.post("/webhooks", json=new)).status_code == 403


async def test_a_webhook_that_cannot_work_is_not_made(rest: Rest, ann: Principal) -> None:
    new = {"name": "n", "tool": "read_once", "scheme": "standard", "mapping": READING}
    async with rest.calling_as(ann) as client:

        async def told(**changes: Any) -> tuple[int, str]:
            answer = await client.post("/webhooks", json={**new, **changes})
            return answer.status_code, answer.json()["detail"]

        unmapped = await told(mapping={"arguments": {"account": {"pointer": "/a"}}})
        no_pointer = await told(mapping={"arguments": {"account_id": {"pointer": "a"}}})
        no_tool = await told(tool="nothing")
        short = await told(secret="short-secret")

    assert unmapped[0] == 422
    assert "the tool has no argument 'account'; the argument 'account_id' comes from nowhere" in unmapped[1]
    assert no_pointer[0] == 422
    assert "not a JSON pointer" in no_pointer[1]
    assert no_tool[0] == 404
    assert short[0] == 422
    assert "short-secret" not in short[1]


async def test_a_change_takes_the_version_that_was_read(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    path = f"/webhooks/{hook.id}"
    async with rest.calling_as(ann) as client:
        read = await client.get(path)
        blind = await client.patch(path, json={"name": "New"})
        first = await client.patch(path, json={"name": "New"}, headers={"If-Match": read.headers["etag"]})
        second = await client.patch(path, json={"name": "Newer"}, headers={"If-Match": hook.etag})
        kept = await client.delete(path, headers={"If-Match": hook.etag})
        gone = await client.delete(path, headers={"If-Match": first.headers["etag"]})

    assert read.json() == {name: value for name, value in hook.shown.items() if name != "secret"}
    statuses = [each.status_code for each in (blind, first, second, kept, gone)]
    assert statuses == [428, 200, 412, 412, 204]
    assert first.json()["name"] == "New"
    assert await code(hook, hook.signed(an_event())) == (404, "webhook_unknown")
    kinds = ("webhook.created", "webhook.changed", "webhook.deleted")
    assert [line["object_id"] for kind in kinds for line in await platform.trail(kind)] == [hook.id] * 3


async def test_a_new_secret_is_good_at_once_and_the_old_one_for_as_long_as_said(
    rest: Rest, ann: Principal
) -> None:
    old = await made(rest, ann, secret=None)

    async def rotated(etag: str, overlap: int) -> tuple[str, str]:
        async with rest.calling_as(ann) as client:
            answer = await client.post(
                f"/webhooks/{old.id}/secret", json={"overlap_seconds": overlap}, headers={"If-Match": etag}
            )
        assert answer.status_code == 200, answer.text
        return answer.json()["secret"], answer.headers["etag"]

    secret, etag = await rotated(old.etag, 3600)
    new = replace(old, secret=secret)
    assert await begun(new, new.signed(an_event()))
    assert await begun(old, old.signed(an_event()))

    secret, _ = await rotated(etag, 0)
    newest = replace(old, secret=secret)
    assert await begun(newest, newest.signed(an_event()))
    assert await code(new, new.signed(an_event())) == (401, "delivery_refused")
    assert await code(old, old.signed(an_event())) == (401, "delivery_refused")


async def test_stripe_is_told_the_address_first_and_gives_its_secret_then(rest: Rest, ann: Principal) -> None:
    hook = await made(rest, ann, "stripe", secret=None)
    delivery = stripe(STRIPE, an_event(), SAID, now())
    assert hook.shown["secret"] is None
    assert await code(hook, delivery) == (401, "delivery_refused")

    path, match = f"/webhooks/{hook.id}/secret", {"If-Match": hook.etag}
    async with rest.calling_as(ann) as client:
        made_here = await client.post(path, json={}, headers=match)
        given = await client.post(path, json={"secret": STRIPE}, headers=match)

    assert (made_here.status_code, given.status_code) == (422, 200)
    assert given.json()["secret"] is None
    assert await begun(hook, delivery)


async def test_a_row_that_was_given_another_principal_takes_no_delivery(
    rest: Rest, ann: Principal, platform: Platform
) -> None:
    hook = await made(rest, ann)
    async with platform.services.database.open_write_session() as session:
        connection = await session.connection()
        await connection.exec_driver_sql(f"UPDATE webhook SET principal_id = '{platform.bob.id}'")

    answer = await delivered(hook, hook.signed(an_event()))

    assert (answer.status_code, answer.json()["type"]) == (500, "urn:byline:error:vault_seal_broken")
    assert ann.id not in answer.text
    assert await platform.trail("tool.called") == []


async def test_no_secret_lies_open_anywhere(
    rest: Rest, ann: Principal, platform: Platform, capfd: pytest.CaptureFixture[str]
) -> None:
    hooks = [await made(rest, ann, scheme) for scheme in SENDERS] + [await made(rest, ann, secret=None)]
    for hook in hooks:
        await begun(hook, hook.signed(an_event()))
        await delivered(hook, replace(hook.signed(an_event()), headers={}))
        await delivered(hook, hook.signed(an_event(), {"secret": hook.secret}))
    async with rest.calling_as(ann) as client:
        shown = (await client.get("/webhooks")).text
    trail = json.dumps([line.event for line in await platform.services.trail.find_lines(limit=None)])
    database = Path(platform.settings.database.url.removeprefix("sqlite+aiosqlite:///"))
    stored = database.read_bytes() + database.with_name(f"{database.name}-wal").read_bytes()
    logged = "".join(capfd.readouterr())

    for hook in hooks:
        secret = hook.secret.removeprefix("whsec_")
        assert secret.encode() not in stored
        assert all(secret not in text for text in (shown, trail, logged))
