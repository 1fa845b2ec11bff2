"""Holds an action to what the upstream answers: what is asked again, what is retried, and what is never sent twice."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest

from engine.outgoing.client import OutgoingClient
from engine.runs.outcome import Failed, Finished
from engine.settings import OutgoingSettings
from tests.support.platform import DISPUTE, NORTHWIND, Platform, wait_until

READ = {"account_id": NORTHWIND}
WRITE = {"ticket_id": DISPUTE, "text": "Looked into"}
TIMEOUT_SECONDS = 1.0


@pytest.fixture
async def impatient_platform(idle_platform: Platform) -> AsyncIterator[Platform]:
    """A platform whose worker waits a second for an answer."""
    async with (
        httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as http,
        idle_platform.run_worker(http_client=http),
        idle_platform.run_wake_up_delivery(),
    ):
        yield idle_platform


@pytest.fixture
async def careful_platform(idle_platform: Platform) -> AsyncIterator[Platform]:
    """A platform whose worker calls no private network, where the sandbox lies."""
    async with (
        OutgoingClient(OutgoingSettings(allow_http=True)) as outgoing,
        idle_platform.run_worker(http_client=outgoing.http_client),
        idle_platform.run_wake_up_delivery(),
    ):
        yield idle_platform


def list_statuses(platform: Platform, system: str = "crm") -> list[int | None]:
    return [request["status"] for request in platform.list_requests(system)]


async def list_verdicts(platform: Platform, run: str) -> list[tuple[int, str]]:
    """What the trail says became of each request: the attempt and the verdict."""
    return [
        (event["attempt"], event["verdict"])
        for event in await platform.list_trail_events("action.ended", run)
    ]


def count_refreshes(platform: Platform) -> int:
    return sum(request["grant_type"] == "refresh_token" for request in platform.list_requests("crm", "token"))


async def test_a_token_that_the_upstream_refuses_is_renewed_once_and_the_request_repeated(
    platform: Platform,
) -> None:
    await platform.give_grant("crm", platform.alice)
    platform.systems["crm"].add_fault(status=401)

    run = await platform.start_run("read_once", READ, platform.alice)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert list_statuses(platform) == [401, 200]
    assert count_refreshes(platform) == 1
    assert await list_verdicts(platform, run) == [(1, "unauthenticated"), (1, "allowed")]
    assert await platform.list_waiters(run) == []


async def test_an_upstream_inside_the_network_is_not_called_with_anybodys_token(
    careful_platform: Platform,
) -> None:
    await careful_platform.give_grant("crm", careful_platform.alice)

    run = await careful_platform.start_run("read_once", READ, careful_platform.alice)

    outcome = await careful_platform.wait_for_outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == "connection_misconfigured"
    assert "BYLINE_OUTGOING__PRIVATE_HOSTS" in outcome.message
    assert careful_platform.list_requests("crm") == []
    (ended_event,) = await careful_platform.list_trail_events("action.ended", run)
    assert (ended_event["verdict"], ended_event["error"]) == ("unreachable", "address_refused")


async def test_a_grant_that_was_taken_back_upstream_is_asked_for_again(platform: Platform) -> None:
    tokens = await platform.give_grant("crm", platform.alice)
    crm = platform.systems["crm"]
    async with crm.build_client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=tokens.refresh_token)

    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    assert list_statuses(platform) == [401]
    await platform.consent(request, platform.alice)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert list_statuses(platform) == [401, 200]


async def test_an_upstream_that_refuses_the_renewed_token_too_is_signed_in_to_again(
    platform: Platform,
) -> None:
    await platform.give_grant("crm", platform.alice)
    platform.systems["crm"].add_fault(status=401, count=2)

    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    await platform.consent(request, platform.alice)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert list_statuses(platform) == [401, 401, 200]
    assert count_refreshes(platform) == 1


async def test_what_the_upstream_forbids_stays_forbidden_and_is_tried_once(platform: Platform) -> None:
    await platform.give_grant("crm", platform.bob)
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run("read_once", READ, platform.bob)

    account = platform.systems["crm"].find_account("bob")
    outcome = await platform.wait_for_outcome(run)
    (request,) = platform.list_requests("crm")
    assert outcome == Failed("permission_denied", f"Acme CRM does not permit this to {account} (Bob Baker).")
    assert (request["status"], request["account"]) == (403, account)
    assert await list_verdicts(platform, run) == [(1, "denied")]


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
    await platform.give_grant("crm", platform.alice)
    platform.systems["crm"].add_fault(status=status)

    run = await platform.start_run("read_once", READ, platform.alice)

    outcome = await platform.wait_for_outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == code
    assert list_statuses(platform) == [status]
    assert await list_verdicts(platform, run) == [(1, verdict)]


@pytest.mark.parametrize("status", [500, 503])
async def test_what_fails_upstream_is_tried_again(platform: Platform, status: int) -> None:
    await platform.give_grant("crm", platform.alice)
    platform.systems["crm"].add_fault(status=status)

    run = await platform.start_run("read_once", READ, platform.alice)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert list_statuses(platform) == [status, 200]
    assert await list_verdicts(platform, run) == [(1, "failed"), (2, "allowed")]


async def test_an_upstream_that_asks_for_patience_gets_as_much_as_it_asks_for(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)
    platform.systems["crm"].add_fault(status=429, headers={"Retry-After": "3"})

    run = await platform.start_run("read_once", READ, platform.alice)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    first, second = (datetime.fromisoformat(request["time"]) for request in platform.list_requests("crm"))
    assert list_statuses(platform) == [429, 200]
    assert second - first >= timedelta(seconds=3)
    assert await list_verdicts(platform, run) == [(1, "rate_limited"), (2, "allowed")]


async def test_a_write_that_is_tried_again_says_that_it_is_the_same_write(platform: Platform) -> None:
    await platform.give_grant("support", platform.alice)
    platform.systems["support"].add_fault(status=503)

    run = await platform.start_run("rename_ticket", WRITE, platform.alice)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    keys = [request["idempotency_key"] for request in platform.list_requests("support")]
    assert list_statuses(platform, "support") == [503, 200]
    assert keys[0] == keys[1] is not None


async def test_a_write_whose_answer_is_late_is_sent_again_where_that_does_no_harm(
    impatient_platform: Platform,
) -> None:
    await impatient_platform.give_grant("support", impatient_platform.alice)
    impatient_platform.systems["support"].add_fault(hang_seconds=3 * TIMEOUT_SECONDS, work_is_done=True)

    run = await impatient_platform.start_run("rename_ticket", WRITE, impatient_platform.alice)

    assert isinstance(await impatient_platform.wait_for_outcome(run), Finished)
    assert len(impatient_platform.list_requests("support")) == 2
    assert await list_verdicts(impatient_platform, run) == [(1, "no_answer"), (2, "allowed")]


async def test_a_write_whose_answer_is_late_is_left_to_people_where_a_second_would_do_harm(
    impatient_platform: Platform,
) -> None:
    await impatient_platform.give_grant("support", impatient_platform.alice)
    impatient_platform.systems["support"].add_fault(hang_seconds=3 * TIMEOUT_SECONDS, work_is_done=True)

    run = await impatient_platform.start_run("comment_on_ticket", WRITE, impatient_platform.alice)

    await check_left_to_people(impatient_platform, run)
    assert await list_verdicts(impatient_platform, run) == [(1, "no_answer")]


async def test_a_write_whose_worker_was_killed_before_the_answer_is_not_sent_again(
    idle_platform: Platform,
) -> None:
    await idle_platform.give_grant("support", idle_platform.alice)
    idle_platform.systems["support"].add_fault(hang_seconds=10, work_is_done=True)

    async def has_left() -> bool:
        return len(idle_platform.list_requests("support")) == 1

    async with idle_platform.run_worker_process() as worker:
        run = await idle_platform.start_run("comment_on_ticket", WRITE, idle_platform.alice)
        await wait_until(has_left)
        worker.kill()
        await worker.wait()

    async with idle_platform.run_worker():
        await check_left_to_people(idle_platform, run)
    assert await list_verdicts(idle_platform, run) == []


async def check_left_to_people(platform: Platform, run: str) -> None:
    outcome = await platform.wait_for_outcome(run)
    requests: list[dict[str, Any]] = platform.list_requests("support")
    assert isinstance(outcome, Failed)
    assert outcome.code == "outcome_unknown"
    assert "look before you repeat it" in outcome.message
    assert len(requests) == 1
    assert len(await platform.list_trail_events("action.intended", run)) == 1
