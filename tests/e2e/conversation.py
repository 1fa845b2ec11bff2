"""A model that calls what it is told to call and a person who sees what they are shown, in one kind of chat client."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.foreign.mcp_client import ANSWER_WITHIN, Event, ToolCall

NOT_FINISHED = re.compile(
    r"NOT FINISHED: the run waits for the user to sign in\.\n"
    r"Show the user these links and ask them to open each one:\n"
    r"(?P<links>(?:- Sign in to \w+ so that this can go on in your name\. \S+\n)+)"
    r"The run goes on by itself as soon as they have signed in\.\n"
    r"Whatever else this tool may need can be connected as well, at \S+/connect/tools/\w+\n"
    r'Then call `(?P<tool>\w+)` with run_id "(?P<run_id>[\w-]+)" for the outcome, '
    r"or call this tool again with the same arguments: it is not started twice\."
    r'|NOT FINISHED: the run goes on\. Call `(?P<later>\w+)` with run_id "(?P<run>[\w-]+)" in a while '
    r"for the outcome\."
)


@dataclass(frozen=True)
class ChatClient:
    """A kind of client: its protocol version, and whether it shows links itself, follows tasks, and tells its version.

    `begin` opens a new session at a URL with a token, lists the tools, and calls one with arguments.
    """

    protocol: str
    begin: Callable[..., AbstractAsyncContextManager[ToolCall]]
    prompts: bool = False
    tasks: bool = False
    tells_version: bool = True


@dataclass
class Conversation:
    """What goes on in one chat; every call of a tool is a session of its own."""

    client: ChatClient
    url: str
    token: str
    _call: ToolCall | None = None
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)
    _next: tuple[str, dict[str, str]] | None = None

    async def call(self, tool: str, arguments: Mapping[str, Any], **how: Any) -> None:
        """Call a tool; a call that is under way is left."""
        await self.leave()
        self._next = None
        began = self.client.begin(self.url, self.token, tool, arguments, **how)
        self._call = await self._open.enter_async_context(began)

    async def leave(self) -> None:
        """End the client, whatever it is doing."""
        await self._open.aclose()

    async def wait_for_links(self, count: int, **how: Any) -> list[str]:
        """What the person is asked to open, all at once: by the client, or by the model that read it."""
        links: list[str] = []
        while len(links) < count:
            await self._follow(**how)
            event = await self._current_call.read_next_event()
            if self.client.prompts and "open" in event:
                links.append(event["open"])
            elif self.client.prompts:
                # A machine that is busy with other things may take longer than a call is held.
                self._note(event["result"])
            else:
                links = self.read_waiting_links(event["result"])
        assert len(links) == count, links
        return links

    def read_waiting_links(self, result: Mapping[str, Any]) -> list[str]:
        """The links in a result that says that its run waits, and what to call for the outcome is noted."""
        waiting_match = self._note(result)
        return [line.rsplit(" ", 1)[1] for line in (waiting_match["links"] or "").splitlines()]

    async def collect(self, **how: Any) -> None:
        """Call what the last result said to call next."""
        assert self._next is not None
        tool, arguments = self._next
        await self.call(tool, arguments, **how)

    async def wait_for_end(self) -> Event:
        """How the call that is under way ends, whatever its person is asked until then."""
        return await self._current_call.wait_for_end()

    async def wait_for_outcome(self) -> dict[str, Any]:
        """What the run ends with, asked for as often as the model is told to."""
        async with asyncio.timeout(ANSWER_WITHIN):
            while True:
                await self._follow()
                result = await self._current_call.read_result()
                if not NOT_FINISHED.fullmatch(_text(result)):
                    return result
                self._note(result)

    def _note(self, result: Mapping[str, Any]) -> re.Match[str]:
        """Note what a result that is not finished says to call next."""
        waiting_match = NOT_FINISHED.fullmatch(_text(result))
        assert waiting_match, result
        assert result["isError"]
        assert "structuredContent" not in result
        self._next = (
            waiting_match["tool"] or waiting_match["later"],
            {"run_id": waiting_match["run_id"] or waiting_match["run"]},
        )
        return waiting_match

    async def _follow(self, **how: Any) -> None:
        if self._next is not None:
            await self.collect(**how)

    @property
    def _current_call(self) -> ToolCall:
        assert self._call is not None
        return self._call


@asynccontextmanager
async def open_conversation(client: ChatClient, url: str, token: str) -> AsyncIterator[Conversation]:
    """A chat that ends with the block."""
    chat = Conversation(client, url, token)
    try:
        yield chat
    finally:
        await chat.leave()


def _text(result: Mapping[str, Any]) -> str:
    return "\n".join(block["text"] for block in result["content"])
