"""Holds an action to failing once and for good on an answer that does not fit, without quoting it."""

from engine.runs.outcome import Failed
from tests.support.platform import NORTHWIND, Platform


async def test_an_answer_that_does_not_fit_ends_the_run_at_once_and_is_not_quoted(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run("misread", {"account_id": NORTHWIND}, platform.alice)
    outcome = await platform.wait_for_outcome(run)

    assert outcome == Failed("ValidationError", "Ledger does not fit: balance: Field required.")
    assert len(platform.list_requests("crm")) == 1
