"""Calls a tool through an MCP client of another implementation, as a process; it opens no link that it is given."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from tests.support.foreign.node import NODE, SCRIPTS

ANSWER_WITHIN = 120.0
INSPECTOR = SCRIPTS / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"

Decision = Literal["accept", "decline", "cancel"]
Event = Mapping[str, Any]


class Implementation(StrEnum):
    """A client, by the script that drives it and, where there are several, by the package."""

    CLIENT_2 = "call-tool.mjs"
    CLIENT_2_WITH_TASKS = "call-tool-as-task.mjs"
    SDK_1 = "call-tool-with-sdk.mjs @modelcontextprotocol/sdk"
    SDK_OF_2025_06_18 = "call-tool-with-sdk.mjs sdk-of-2025-06-18"
    SDK_OF_2025_03_26 = "call-tool-with-sdk.mjs sdk-of-2025-03-26"


@dataclass(frozen=True)
class ToolCall:
    """A call under way, by the events that its client tells, to be heard in the order in which they happen."""

    hear: Callable[[], Awaitable[Event]]

    async def read_protocol(self) -> str:
        """The protocol version that client and server agreed on."""
        return str(await self._read_field("protocol"))

    async def read_link(self) -> str:
        """The next address that the client is asked to open; it goes on as its person decided before."""
        return str(await self._read_field("open"))

    async def read_result(self) -> dict[str, Any]:
        """The tool's result, as the client understood it."""
        result: dict[str, Any] = await self._read_field("result")
        return result

    async def wait_for_end(self) -> Event:
        """How the call ends, whatever the client is asked until then: with a `result`, or with the client's `error`."""
        while True:
            event = await self.read_next_event()
            if not event or {"result", "error"} & event.keys():
                return event

    async def read_next_event(self) -> Event:
        """Whatever happens next after client and server agreed on a version; nothing after the end."""
        event = await self._read_event()
        return event if "protocol" not in event else await self._read_event()

    async def _read_field(self, what: str) -> Any:
        event = await (self._read_event() if what == "protocol" else self.read_next_event())
        if what not in event:
            raise AssertionError(f"The MCP client was to say {what!r} and said {event or 'no more'}")
        return event[what]

    async def _read_event(self) -> Event:
        async with asyncio.timeout(ANSWER_WITHIN):
            return await self.hear()


@asynccontextmanager
async def tool_call(
    url: str,
    token: str,
    tool: str,
    arguments: Mapping[str, Any],
    *,
    elicitation: bool,
    by: Implementation = Implementation.CLIENT_2,
    decision: Decision = "accept",
    patience: float = ANSWER_WITHIN,
) -> AsyncIterator[ToolCall]:
    """Call the tool with a client that can be asked to open links or, without elicitation, cannot.

    `patience` is how many seconds the client waits for the answer to one request.
    """
    script, *package = by.split()
    request = {
        "url": url,
        "token": token,
        "tool": tool,
        "arguments": arguments,
        "elicitation": elicitation,
        "decision": decision,
        "patience": round(patience * 1000),
    }
    async with _program(SCRIPTS / script, json.dumps(request), *package) as process:

        async def line() -> Event:
            assert process.stdout is not None
            output_line = await process.stdout.readline()
            return dict(json.loads(output_line)) if output_line else {}

        yield ToolCall(line)


@asynccontextmanager
async def inspector_call(
    url: str, token: str, tool: str, arguments: Mapping[str, Any], *, patience: float = ANSWER_WITHIN
) -> AsyncIterator[ToolCall]:
    """Call the tool with the Inspector's command line, which can ask nobody anything and tells the result alone.

    It knows no patience of its own: whoever started it ends it.
    """
    options = ("--tool-name", tool, "--tool-args-json", json.dumps(arguments))
    async with _inspector(url, token, "tools/call", *options) as process:

        async def end() -> Event:
            try:
                output, complaints = await asyncio.wait_for(process.communicate(), patience)
            except TimeoutError:
                return {"error": "it took too long"}
            return {"result": json.loads(output)["result"]} if output else {"error": complaints.decode()}

        yield ToolCall(end)


async def inspector_protocol(url: str, token: str) -> str:
    """The protocol version that the Inspector's command line and the server agree on."""
    async with _inspector(url, token, "initialize") as process:
        output, _ = await process.communicate()
    return str(json.loads(output)["result"]["protocolVersion"])


def _inspector(
    url: str, token: str, method: str, *more: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    signed_in = ("--transport", "http", "--header", f"Authorization: Bearer {token}")
    return _program(INSPECTOR, "--cli", url, *signed_in, "--format", "json", "--method", method, *more)


@asynccontextmanager
async def _program(script: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command: Sequence[str | Path] = (NODE, script, *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
