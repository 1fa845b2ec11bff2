"""Calls a tool through an MCP client of another implementation, as a process; it opens no link that it is given."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.foreign.node import NODE, SCRIPTS

ANSWER_WITHIN = 120.0


class Implementation(StrEnum):
    """A client, by the script that drives it."""

    CLIENT_2 = "call-tool.mjs"
    SDK_1 = "call-tool-with-sdk.mjs"


@dataclass(frozen=True)
class ToolCall:
    """A call under way; what the client says is to be read in the order in which it happens."""

    process: asyncio.subprocess.Process

    async def protocol(self) -> str:
        """The protocol version that client and server agreed on."""
        return str(await self._said("protocol"))

    async def link(self) -> str:
        """The next address that the client is asked to open; it goes on as if the person had agreed to."""
        return str(await self._said("open"))

    async def result(self) -> dict[str, Any]:
        """The tool's result, as the client understood it."""
        result: dict[str, Any] = await self._said("result")
        return result

    async def _said(self, what: str) -> Any:
        assert self.process.stdout is not None
        async with asyncio.timeout(ANSWER_WITHIN):
            line = await self.process.stdout.readline()
        said = json.loads(line) if line else {}
        if what not in said:
            raise AssertionError(f"The MCP client was to say {what!r} and said {said or 'no more'}")
        return said[what]


@asynccontextmanager
async def tool_call(
    url: str,
    token: str,
    tool: str,
    arguments: Mapping[str, Any],
    *,
    elicitation: bool,
    by: Implementation = Implementation.CLIENT_2,
) -> AsyncIterator[ToolCall]:
    """Call the tool with a client that can be asked to open links or, without elicitation, cannot."""
    asked = {"url": url, "token": token, "tool": tool, "arguments": arguments, "elicitation": elicitation}
    process = await asyncio.create_subprocess_exec(
        NODE, SCRIPTS / by, json.dumps(asked), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield ToolCall(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
