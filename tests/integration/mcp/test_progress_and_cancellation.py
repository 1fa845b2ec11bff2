"""Holds what MCP clients hear of a run while it goes on, and what becomes of it when they stop listening."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.context import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import (
    LOG_LEVEL_META_KEY,
    ElicitRequestParams,
    ElicitResult,
    LoggingLevel,
    LoggingMessageNotificationParams,
)
from temporalio.client import WorkflowExecutionStatus

from engine.identity.model import Principal
from engine.runs.outcome import RUN_CANCELLED, Failed, Finished
from tests.fixtures.tools.long_runs import BEGUN_LABELS, CANCELLED_LABELS
from tests.support.api_server import serve_api
from tests.support.platform import NORTHWIND, Platform, wait_until

Mode = Literal["auto", "legacy"]
MODES: list[Mode] = ["auto", "legacy"]
READING = {"account_id": NORTHWIND}


@asynccontextmanager
async def open_chat(
    platform: Platform, mode: Mode, **options: Any
) -> AsyncIterator[tuple[Client, Principal]]:
    """A client of Alice's, who agrees to open every link."""

    async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        del context, params
        return ElicitResult(action="accept")

    async with serve_api(platform, mcp=True) as api_server:
        alice = await api_server.add_person("alice", "Alice")
        headers = {"Authorization": f"Bearer {await api_server.issue_token(alice, '/mcp')}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(
                streamable_http_client(f"{api_server.url}/mcp", http_client=http),
                mode=mode,
                elicitation_callback=elicit,
                **options,
            ) as client,
        ):
            yield client, alice


async def wait_until_begun(platform: Platform, count: int = 1) -> str:
    """The last of this many runs, once it goes on."""

    async def goes_on() -> bool:
        called_events = await platform.list_trail_events("tool.called")
        return (
            len(called_events) == count
            and await platform.runs.workflows.describe_workflow(called_events[-1]["run_id"]) is not None
        )

    await wait_until(goes_on)
    return str((await platform.list_trail_events("tool.called"))[-1]["run_id"])


async def cancel_call(calling: "asyncio.Task[Any]") -> None:
    """Have the client cancel a call, and return once it has."""
    calling.cancel()
    await asyncio.wait({calling})
    assert calling.cancelled()


async def wait_until_told(heard_messages: list[Any], count: int) -> None:
    async def enough() -> bool:
        return len(heard_messages) >= count

    await wait_until(enough)


@pytest.mark.parametrize("mode", MODES)
async def test_each_step_of_a_run_is_reported_before_the_result_by_numbers_that_grow(
    platform: Platform, mode: Mode
) -> None:
    heard_messages: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard_messages.append((progress, total, message))

    async with open_chat(platform, mode) as (client, alice):
        calling = asyncio.create_task(client.call_tool("read_in_steps", READING, progress_callback=hear))
        await wait_until_told(heard_messages, 1)
        run = await wait_until_begun(platform)
        await platform.temporal.get_workflow_handle(run).signal("word")
        await wait_until_told(heard_messages, 4)
        await platform.consent((await platform.wait_for_requests(run))[0], alice)
        result = await calling
        at_the_end = list(heard_messages)

    assert not result.is_error
    numbers = [number for number, _, _ in at_the_end]
    assert numbers == sorted(set(numbers))
    assert [(total, message) for _, total, message in at_the_end] == [
        (10, "Beginning"),
        (None, "read_once"),
        (None, "salesforce.read_account"),
        (None, "Waiting for Alice to consent on crm"),
        (None, "salesforce.read_account"),
        (10, "Almost there"),
        (None, "salesforce.read_account"),
    ]
    assert numbers[0] == 1
    assert (9, 10, "Almost there") in at_the_end
    assert heard_messages == at_the_end


@pytest.mark.parametrize("mode", MODES)
async def test_log_messages_come_from_the_level_on_that_the_client_asks_for_and_not_before(
    platform: Platform, mode: Mode
) -> None:
    heard_messages: list[tuple[str, Any]] = []

    async def hear(message: LoggingMessageNotificationParams) -> None:
        heard_messages.append((message.level, message.data))

    async def read(client: Client, count: int, level: LoggingLevel | None) -> list[tuple[str, Any]]:
        heard_messages.clear()
        meta: Any = {}
        if level is not None and mode == "legacy":
            with pytest.warns(MCPDeprecationWarning):
                await client.session.set_logging_level(level)
        elif level is not None:
            meta = {LOG_LEVEL_META_KEY: level}
        arguments = {**READING, "label": str(count)}
        calling = asyncio.create_task(client.call_tool("read_in_steps", arguments, meta=meta))
        run = await wait_until_begun(platform, count)
        await platform.temporal.get_workflow_handle(run).signal("word")
        assert not (await calling).is_error
        return list(heard_messages)

    async with open_chat(platform, mode, logging_callback=hear) as (client, alice):
        await platform.give_grant("crm", alice)
        silent = await read(client, 1, None)
        own = await read(client, 2, "info")
        all_of_it = await read(client, 3, "debug")
        errors = await read(client, 4, "error")

    assert silent == errors == []
    assert own == [("info", "Beginning"), ("info", "Almost there")]
    assert all_of_it == [
        ("info", "Beginning"),
        ("debug", "read_once"),
        ("debug", "salesforce.read_account"),
        ("info", "Almost there"),
        ("debug", "salesforce.read_account"),
    ]


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_is_cancelled_goes_on_and_the_same_call_gets_its_outcome(
    platform: Platform, mode: Mode
) -> None:
    async with open_chat(platform, mode) as (client, alice):
        await platform.give_grant("crm", alice)
        calling = asyncio.create_task(client.call_tool("read_when_told", {**READING, "label": mode}))
        run = await wait_until_begun(platform)
        await cancel_call(calling)
        impatient = asyncio.create_task(
            client.call_tool("read_when_told", {**READING, "label": mode}, read_timeout_seconds=0.3)
        )
        await asyncio.wait({impatient})
        going_on = (await platform.temporal.get_workflow_handle(run).describe()).status
        await platform.temporal.get_workflow_handle(run).signal("word")
        outcome = await platform.wait_for_outcome(run)
        again = await client.call_tool("read_when_told", {**READING, "label": mode})

    assert isinstance(impatient.exception(), MCPError)
    assert going_on == WorkflowExecutionStatus.RUNNING
    assert outcome == Finished(again.structured_content)
    assert len(await platform.list_trail_events("tool.called")) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_that_wants_to_be_cancelled_is_down_to_its_actions(
    platform: Platform, mode: Mode
) -> None:
    label = f"{mode}-{platform.settings.temporal.task_queue}"
    async with open_chat(platform, mode) as (client, alice):
        await platform.give_grant("crm", alice)
        calling = asyncio.create_task(client.call_tool("keep_at_it_while_called", {"label": label}))

        async def has_begun() -> bool:
            return label in BEGUN_LABELS

        await wait_until(has_begun)
        (event,) = await platform.list_trail_events("tool.called")
        await cancel_call(calling)
        outcome = await platform.wait_for_outcome(event["run_id"])

    assert outcome == Failed(RUN_CANCELLED, "The run was cancelled.")
    assert label in CANCELLED_LABELS
    (stopped_event,) = await platform.list_trail_events("run.cancelled")
    assert (stopped_event["principal"]["name"], stopped_event["message"]) == (
        "Alice",
        "The client cancelled the call.",
    )
