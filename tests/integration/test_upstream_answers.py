"""Holds an action to what the upstream answers: what is asked again, what is retried, and what is never sent twice."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest

from engine.outgoing.client import OutgoingClient
from engine.runs.outcome import Failed, Finished
from engine.settings import OutgoingSettings
from tests.platform import DISPUTE, NORTHWIND, Platform, until

READ = {"account_id": NORTHWIND}
WRITE = {"ticket_id": DISPUTE, "text": "Looked into"}
PATIENCE = 1.0


@pytest.fixture
async def impatient(idle: Platform) -> AsyncIterator[Platform]:
    """A platform whose worker waits a second for an answer."""
    async with (
        httpx2.AsyncClient(timeout=PATIENCE, trust_env=False) as http,
        idle.working(http_client=http),
        idle.delivering(),
    ):
        yield idle


@pytest.fixture
async def careful(idle: Platform) -> AsyncIterator[Platform]:
    """A platform whose worker calls no private network, where the sandbox lies."""
    async with (
        OutgoingClient(OutgoingSettings(allow_http=True)) as outgoing,
        idle.working(http_client=outgoing.http_client),
        idle.delivering(),
    ):
        yield idle


def statuses(platform: Platform, system: str = "crm") -> list[int | None]:
    return [request["status"] for request in platform.requests(system)]


async def verdicts(platform: Platform, run: str) -> list[tuple[int, str]]:
    """What the trail says became of each request: the attempt and the verdict."""
    return [(event["attempt"], event["verdict"]) for event in await platform.trail("action.ended", run)]


def refreshes(platform: Platform) -> int:
    return sum(request["grant_type"] == "refresh_token" for request in platform.requests("crm", "token"))


async def test_a_token_that_the_upstream_refuses_is_renewed_once_and_the_request_repeated(
    platform: Platform,
) -> None:
    await platform.grant("crm", platform.alice)
    platform.systems["crm"].fault(status=401)

    run = await platform.start("read_once", READ, platform.alice)

    assert isinstance(await platform.outcome(run), Finished)
    assert statuses(platform) == [401, 200]
    assert refreshes(platform) == 1
    assert await verdicts(platform, run) == [(1, "unauthenticated"), (1, "allowed")]
    assert await platform.waiters(run) == []


async def test_an_upstream_inside_the_network_is_not_called_with_anybodys_token(
    careful: Platform,
) -> None:
    await careful.grant("crm", careful.alice)

    run = await careful.start("read_once", READ, careful.alice)

    outcome = await careful.outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == "connection_misconfigured"
    assert "BYLINE_OUTGOING__PRIVATE_HOSTS" in outcome.message
    assert careful.requests("crm") == []
    (ended,) = await careful.trail("action.ended", run)
    assert (ended["verdict"], ended["error"]) == ("unreachable", "address_refused")


async def test_a_grant_that_was_taken_back_upstream_is_asked_for_again(platform: Platform) -> None:
    tokens = await platform.grant("crm", platform.alice)
    crm = platform.systems["crm"]
    async with crm.client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=tokens.refresh_token)

    run = await platform.start("read_once", READ, platform.alice)
    (request,) = await platform.parked(run)
    assert statuses(platform) == [401]
    await platform.consent(request, platform.alice)

    assert isinstance(await platform.outcome(run), Finished)
    assert statuses(platform) == [401, 200]


async def test_an_upstream_that_refuses_the_renewed_token_too_is_signed_in_to_again(
    platform: Platform,
) -> None:
    await platform.grant("crm", platform.alice)
    platform.systems["crm"].fault(status=401, count=2)

    run = await platform.start("read_once", READ, platform.alice)
    (request,) = await platform.parked(run)
    await platform.consent(request, platform.alice)

    assert isinstance(await platform.outcome(run), Finished)
    assert statuses(platform) == [401, 401, 200]
    assert refreshes(platform) == 1


async def test_what_the_upstream_forbids_stays_forbidden_and_is_tried_once(platform: Platform) -> None:
    await platform.grant("crm", platform.bob)
    await platform.grant("crm", platform.alice)

    run = await platform.start("read_once", READ, platform.bob)

    account = platform.systems["crm"].account("bob")
    outcome = await platform.outcome(run)
    (request,) = platform.requests("crm")
    assert outcome == Failed("permission_denied", f"Acme CRM does not permit this to {account} (Bob Baker).")
    assert (request["status"], request["account"]) == (403, account)
    assert await verdicts(platform, run) == [(1, "denied")]


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        (400, "request_rejected", "rejected"),
        (404, "record_not_found", "not_found"),
        (409, "request_rejected", "rejected"),
        (410, "record_not_found", "not_found"),
        (422, "request_rejected", "rejected"),
    ],
)
async def test_what_the_upstream_calls_wrong_is_not_tried_again(
    platform: Platform, status: int, code: str, verdict: str
) -> None:
    await platform.grant("crm", platform.alice)
    platform.systems["crm"].fault(status=status)

    run = await platform.start("read_once", READ, platform.alice)

    outcome = await platform.outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == code
    assert statuses(platform) == [status]
    assert await verdicts(platform, run) == [(1, verdict)]


@pytest.mark.parametrize("status", [500, 503])
async def test_what_fails_upstream_is_tried_again(platform: Platform, status: int) -> None:
    await platform.grant("crm", platform.alice)
    platform.systems["crm"].fault(status=status)

    run = await platform.start("read_once", READ, platform.alice)

    assert isinstance(await platform.outcome(run), Finished)
    assert statuses(platform) == [status, 200]
    assert await verdicts(platform, run) == [(1, "failed"), (2, "allowed")]


async def test_an_upstream_that_asks_for_patience_gets_as_much_as_it_asks_for(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)
    platform.systems["crm"].fault(status=429, headers={"Retry-After": "3"})

    run = await platform.start("read_once", READ, platform.alice)

    assert isinstance(await platform.outcome(run), Finished)
    first, second = (datetime.fromisoformat(request["time"]) for request in platform.requests("crm"))
    assert statuses(platform) == [429, 200]
    assert second - first >= timedelta(seconds=3)
    assert await verdicts(platform, run) == [(1, "rate_limited"), (2, "allowed")]


async def test_a_write_that_is_tried_again_says_that_it_is_the_same_write(platform: Platform) -> None:
    await platform.grant("support", platform.alice)
    platform.systems["support"].fault(status=503)

    run = await platform.start("rename_ticket", WRITE, platform.alice)

    assert isinstance(await platform.outcome(run), Finished)
    keys = [request["idempotency_key"] for request in platform.requests("support")]
    assert statuses(platform, "support") == [503, 200]
    assert keys[0] == keys[1] is not None


async def test_a_write_whose_answer_is_late_is_sent_again_where_that_does_no_harm(
    impatient: Platform,
) -> None:
    await impatient.grant("support", impatient.alice)
    impatient.systems["support"].fault(hang_seconds=3 * PATIENCE, work_is_done=True)

    run = await impatient.start("rename_ticket", WRITE, impatient.alice)

    assert isinstance(await impatient.outcome(run), Finished)
    assert len(impatient.requests("support")) == 2
    assert await verdicts(impatient, run) == [(1, "no_answer"), (2, "allowed")]


async def test_a_write_whose_answer_is_late_is_left_to_people_where_a_second_would_do_harm(
    impatient: Platform,
) -> None:
    await impatient.grant("support", impatient.alice)
    impatient.systems["support"].fault(hang_seconds=3 * PATIENCE, work_is_done=True)

    run = await impatient.start("comment_on_ticket", WRITE, impatient.alice)

    await left_to_people(impatient, run)
    assert await verdicts(impatient, run) == [(1, "no_answer")]


async def test_a_write_whose_worker_was_killed_before_the_answer_is_not_sent_again(idle: Platform) -> None:
    await idle.grant("support", idle.alice)
    idle.systems["support"].fault(hang_seconds=10, work_is_done=True)

    async def has_left() -> bool:
        return len(idle.requests("support")) == 1

    async with idle.worker_process() as worker:
        run = await idle.start("comment_on_ticket", WRITE, idle.alice)
        await until(has_left)
        worker.kill()
        await worker.wait()

    async with idle.working():
        await left_to_people(idle, run)
    assert await verdicts(idle, run) == []


async def left_to_people(platform: Platform, run: str) -> None:
    outcome = await platform.outcome(run)
    requests: list[dict[str, Any]] = platform.requests("support")
    assert isinstance(outcome, Failed)
    assert outcome.code == "outcome_unknown"
    assert "look before you repeat it" in outcome.message
    assert len(requests) == 1
    assert len(await platform.trail("action.intended", run)) == 1
