"""Holds a builder's workbench to running tools as Byline does, whatever they need on the way."""

from pathlib import Path

import httpx2
import pytest

from byline.testing import Failed, Finished, PendingWaits, Running, Workbench, workbench
from engine.errors import ArgumentsInvalid
from tests.support.platform import CONNECTIONS, NORTHWIND, wait_until

CLOCK = """
import time
from dataclasses import dataclass

from temporalio import workflow

from engine.sdk import tool

with workflow.unsafe.imports_passed_through():
    from activities.salesforce import Account


@dataclass
class Time:
    seconds: float


@tool(title="Tell the time")
@workflow.defn(name="tell_time")
class TellTime:
    @workflow.run
    async def run(self) -> Time:
        return Time(time.time())
"""
ADDRESSES = {f"{name}_URL": f"https://{name.lower()}.example.com" for name in ("CRM", "BILLING", "SUPPORT")}


async def test_a_builder_tries_tools_that_act_refuse_fail_and_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYLINE_WAIT_LIMIT", "this is no time")
    asked_urls: list[httpx2.URL] = []

    def crm(request: httpx2.Request) -> httpx2.Response:
        asked_urls.append(request.url)
        assert request.headers["Authorization"].startswith("Bearer ")
        if NORTHWIND not in request.url.path:
            return httpx2.Response(403)
        account = {"Id": NORTHWIND, "Name": "Northwind", "Billing_Customer_Id__c": None}
        return httpx2.Response(200, json=account)

    async with workbench(
        "activities",
        "tests.fixtures.tools.account_reads",
        "tests.fixtures.tools.questions",
        connections=CONNECTIONS,
        environment=ADDRESSES,
        upstream=crm,
    ) as bench:
        read = await bench.call("read_once", {"account_id": NORTHWIND})
        refusal = await bench.call("read_once", {"account_id": "001D000000IqhSLIAZ"})
        with pytest.raises(ArgumentsInvalid):
            await bench.call("read_once", {"account": NORTHWIND})
        choosing = await bench.call("choose_account", {"name": "North"})
        assert isinstance(choosing, PendingWaits)
        choice_result = await bench.answer(choosing.questions[0], {"account": "Northwind"})
        refunding = await bench.call("refund", {"amount": 5, "to": "Northwind"})
        assert isinstance(refunding, PendingWaits)
        refund_result = await bench.answer(refunding.questions[0], {})
        trail = await bench.trail()

    assert isinstance(read, Finished)
    assert read.value["name"] == "Northwind"
    assert isinstance(refusal, Failed)
    assert refusal.code == "permission_denied"
    assert isinstance(choice_result, Finished)
    assert choice_result.value["account"] == "Northwind"
    assert refund_result == Finished({"approved_by": "Bob Baker"})
    assert [line["verdict"] for line in trail] == ["allowed", "denied"]
    assert {url.host for url in asked_urls} == {"crm.example.com"}


async def test_a_tool_that_reads_the_clock_is_found_though_its_actions_are_outside_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clocks.py").write_text(CLOCK)
    monkeypatch.syspath_prepend(tmp_path)

    async with workbench(
        "clocks",
        connections=CONNECTIONS,
        environment=ADDRESSES,
        upstream=lambda _: httpx2.Response(500),
    ) as bench:
        assert isinstance(await bench.call("tell_time", {}, within=0.1), Running)
        await wait_until(
            lambda: _is_refused(bench, "Cannot access time.time.__call__ from inside a workflow")
        )


async def _is_refused(bench: Workbench, words: str) -> bool:
    (called_event,) = await bench.trail("tool.called")
    history = await bench.temporal.get_workflow_handle(called_event["run_id"]).fetch_history()
    return any(
        words in event.workflow_task_failed_event_attributes.failure.message for event in history.events
    )
