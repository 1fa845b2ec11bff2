"""Holds tools and actions to what they declare, whichever package the code lies in that an action is started from."""

from pathlib import Path

import pytest

from engine.runs.outcome import Failed, Finished
from engine.runs.runs import build_runs
from engine.tools.needs import ConnectionNeed
from engine.tools.registry import Registry
from tests.support.platform import DISPUTE, MODULES, Platform

SUBJECT = "Renamed by the steps of others"
COMMENT = {"ticket_id": DISPUTE, "text": SUBJECT}


@pytest.fixture
async def borrowing(idle_platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform with offers of a second package, whose steps lie in the package of the tests."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "fixtures" / "second_package")
    idle_platform.registry = Registry((*MODULES, "borrowed_steps"))
    idle_platform.runs = build_runs(idle_platform.services, idle_platform.temporal, idle_platform.registry)
    await idle_platform.give_grant("support", idle_platform.alice)
    return idle_platform


async def refused(platform: Platform, offer: str, arguments: dict[str, object]) -> str:
    """The message with which a run of this offer is refused: once, on record, and with no request."""
    async with platform.run_worker(), platform.run_wake_up_delivery():
        run = await platform.start_run(offer, arguments, platform.alice)
        outcome = await platform.wait_for_outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == "read_only_violated"
    (event,) = await platform.list_trail_events("action.refused", run)
    assert (event["error"], event["message"]) == ("read_only_violated", outcome.message)
    assert (event["principal"]["name"], event["attempt"]) == ("Alice Liddell", 1)
    assert event["chain"] == [f"{offer}:{run}"]
    assert await platform.list_trail_events("action.intended", run) == []
    assert platform.list_requests("support") == []
    return outcome.message


@pytest.mark.parametrize(
    ("offer", "arguments"),
    [
        ("borrow_quietly", COMMENT),
        ("borrow_for_a_letter", {"ticket_id": str(DISPUTE), "text": SUBJECT}),
    ],
)
async def test_an_action_that_may_write_is_refused_where_a_tool_or_prompt_only_reads(
    borrowing: Platform, offer: str, arguments: dict[str, object]
) -> None:
    message = await refused(borrowing, offer, arguments)

    assert f"'{offer}' only reads" in message
    assert "'tests.rename_ticket' may write" in message


async def test_a_request_that_may_change_something_is_refused_where_its_action_only_reads(
    borrowing: Platform,
) -> None:
    message = await refused(borrowing, "rename_in_secret", COMMENT)

    assert "'tests.write_in_secret' says reads_only=True" in message
    (event,) = await borrowing.list_trail_events("action.refused")
    assert (event["method"], event["resource"]) == ("PUT", f"/api/v2/tickets/{DISPUTE}.json")
    assert (event["connection"], event["record_id"]) == ("support", f"ticket/{DISPUTE}")


async def test_a_request_on_which_nothing_depends_is_refused_without_failing_its_action(
    borrowing: Platform,
) -> None:
    async with borrowing.run_worker(), borrowing.run_wake_up_delivery():
        run = await borrowing.start_run("rename_in_secret", {**COMMENT, "is_told": True}, borrowing.alice)
        outcome = await borrowing.wait_for_outcome(run)

    assert isinstance(outcome, Finished)
    assert outcome.value["subject"] != SUBJECT
    assert [event["error"] for event in await borrowing.list_trail_events("action.refused", run)] == [
        "read_only_violated"
    ]
    assert [request["method"] for request in borrowing.list_requests("support")] == ["GET"]


async def test_a_connection_is_used_also_where_neither_code_nor_declaration_names_it(
    borrowing: Platform,
) -> None:
    async with borrowing.run_worker(), borrowing.run_wake_up_delivery():
        run = await borrowing.start_run("borrow_openly", COMMENT, borrowing.alice)
        outcome = await borrowing.wait_for_outcome(run)

    assert outcome == Finished({"subject": SUBJECT})
    assert borrowing.registry.needs["borrow_quietly"] == ()
    assert borrowing.registry.needs["borrow_openly"] == (
        ConnectionNeed("crm", ()),
        ConnectionNeed("support", ()),
    )
    assert borrowing.registry.may_use_connection("borrow_openly", "support")
