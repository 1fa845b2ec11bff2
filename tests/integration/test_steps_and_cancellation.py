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
from tests.platform import NORTHWIND, Platform, until
from tests.rest import serving
from tests.tools.lasting import BEGUN, CANCELLED

Mode = Literal["auto", "legacy"]
MODES: list[Mode] = ["auto", "legacy"]
READING = {"account_id": NORTHWIND}


@asynccontextmanager
async def chatting(platform: Platform, mode: Mode, **options: Any) -> AsyncIterator[tuple[Client, Principal]]:
    """A client of Alice's, who agrees to open every link."""

    async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        del context, params
        return ElicitResult(action="accept")

    async with serving(platform, mcp=True) as rest:
        alice = await rest.person("alice", "Alice")
        headers = {"Authorization": f"Bearer {await rest.token(alice, '/mcp')}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(
                streamable_http_client(f"{rest.url}/mcp", http_client=http),
                mode=mode,
                elicitation_callback=elicit,
                **options,
            ) as client,
        ):
            yield client, alice


async def begun(platform: Platform, count: int = 1) -> str:
    """The last of this many runs, once it goes on."""

    async def goes_on() -> bool:
        called = await platform.trail("tool.called")
        return (
            len(called) == count
            and await platform.runs.workflows.describe_workflow(called[-1]["run_id"]) is not None
        )

    await until(goes_on)
    return str((await platform.trail("tool.called"))[-1]["run_id"])


async def cancelled(calling: "asyncio.Task[Any]") -> None:
    """Have the client cancel a call, and return once it has."""
    calling.cancel()
    await asyncio.wait({calling})
    assert calling.cancelled()


async def has_told(heard: list[Any], count: int) -> None:
    async def enough() -> bool:
        return len(heard) >= count

    await until(enough)


@pytest.mark.parametrize("mode", MODES)
async def test_each_step_of_a_run_is_told_before_the_result_by_numbers_that_grow(
    platform: Platform, mode: Mode
) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with chatting(platform, mode) as (client, alice):
        calling = asyncio.create_task(client.call_tool("read_in_steps", READING, progress_callback=hear))
        await has_told(heard, 1)
        run = await begun(platform)
        await platform.temporal.get_workflow_handle(run).signal("word")
        await has_told(heard, 4)
        await platform.consent((await platform.asked(run))[0], alice)
        result = await calling
        at_the_end = list(heard)

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
    assert heard == at_the_end


@pytest.mark.parametrize("mode", MODES)
async def test_log_messages_come_from_the_level_on_that_the_client_asks_for_and_not_before(
    platform: Platform, mode: Mode
) -> None:
    heard: list[tuple[str, Any]] = []

    async def hear(message: LoggingMessageNotificationParams) -> None:
        heard.append((message.level, message.data))

    async def read(client: Client, count: int, level: LoggingLevel | None) -> list[tuple[str, Any]]:
        heard.clear()
        meta: Any = {}
        if level is not None and mode == "legacy":
            with pytest.warns(MCPDeprecationWarning):
                await client.session.set_logging_level(level)
        elif level is not None:
            meta = {LOG_LEVEL_META_KEY: level}
        arguments = {**READING, "label": str(count)}
        calling = asyncio.create_task(client.call_tool("read_in_steps", arguments, meta=meta))
        run = await begun(platform, count)
        await platform.temporal.get_workflow_handle(run).signal("word")
        assert not (await calling).is_error
        return list(heard)

    async with chatting(platform, mode, logging_callback=hear) as (client, alice):
        await platform.grant("crm", alice)
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
    async with chatting(platform, mode) as (client, alice):
        await platform.grant("crm", alice)
        calling = asyncio.create_task(client.call_tool("read_when_told", {**READING, "label": mode}))
        run = await begun(platform)
        await cancelled(calling)
        impatient = asyncio.create_task(
            client.call_tool("read_when_told", {**READING, "label": mode}, read_timeout_seconds=0.3)
        )
        await asyncio.wait({impatient})
        going_on = (await platform.temporal.get_workflow_handle(run).describe()).status
        await platform.temporal.get_workflow_handle(run).signal("word")
        ended = await platform.outcome(run)
        again = await client.call_tool("read_when_told", {**READING, "label": mode})

    assert isinstance(impatient.exception(), MCPError)
    assert going_on == WorkflowExecutionStatus.RUNNING
    assert ended == Finished(again.structured_content)
    assert len(await platform.trail("tool.called")) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_that_wants_to_be_cancelled_is_down_to_its_actions(
    platform: Platform, mode: Mode
) -> None:
    label = f"{mode}-{platform.settings.temporal.task_queue}"
    async with chatting(platform, mode) as (client, alice):
        await platform.grant("crm", alice)
        calling = asyncio.create_task(client.call_tool("keep_at_it_while_called", {"label": label}))

        async def has_begun() -> bool:
            return label in BEGUN

        await until(has_begun)
        (event,) = await platform.trail("tool.called")
        await cancelled(calling)
        ended = await platform.outcome(event["run_id"])

    assert ended == Failed(RUN_CANCELLED, "The run was cancelled.")
    assert label in CANCELLED
    (stopped,) = await platform.trail("run.cancelled")
    assert (stopped["principal"]["name"], stopped["message"]) == ("Alice", "The client cancelled the call.")
