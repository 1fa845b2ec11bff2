import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import httpx2
import pydantic_core

from engine.policy.policy import PolicyFile, ToolPolicy
from gateway.toolsets import MCP_PATH
from tests.support.api_server import serve_api
from tests.support.gateway_processes import RawMcpClient
from tests.support.mcp_requests import read_answer
from tests.support.platform import Platform

MARK = "no-such-account-of-anybody"
# A token without a scope that some tool takes makes the door look at what is called.
POLICY = PolicyFile(tools={"refund": ToolPolicy(scope="billing")})


@contextmanager
def listing_parsers_of(mark: str) -> Iterator[list[str]]:
    """List the modules that parse JSON text with this mark in it, one entry a parse."""
    parsers: list[str] = []

    def note_parser(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is json.JSONDecoder.decode.__code__:
            if mark in frame.f_locals["s"]:
                caller: FrameType | None = frame.f_back
                while caller is not None and caller.f_globals["__name__"].startswith("json"):
                    caller = caller.f_back
                assert caller is not None
                parsers.append(caller.f_globals["__name__"])
        # What it parses cannot be seen, and so each of its calls counts.
        elif event == "c_call" and argument is pydantic_core.from_json:
            parsers.append(frame.f_globals["__name__"])

    sys.setprofile(note_parser)
    try:
        yield parsers
    finally:
        sys.setprofile(None)


async def test_the_body_of_a_call_is_parsed_once_here_in_every_protocol_version(
    idle_platform: Platform,
) -> None:
    call = {"name": "read_once", "arguments": {"account": MARK}}
    async with (
        serve_api(idle_platform, mcp=True, policy=POLICY) as rest,
        httpx2.AsyncClient(timeout=60) as http,
    ):
        alice = await rest.add_person("alice", "Alice")
        by_hand = RawMcpClient(http, f"{rest.url}{MCP_PATH}", await rest.issue_token(alice, MCP_PATH))
        session = await by_hand.open_session()
        with listing_parsers_of(MARK) as modern_parsers:
            modern = await by_hand.send_modern("tools/call", call)
        with listing_parsers_of(MARK) as legacy_parsers:
            legacy = await by_hand.send_legacy(session, "tools/call", call)

    assert [read_answer(response)["result"]["isError"] for response in (modern, legacy)] == [True, True]
    for parsers in (modern_parsers, legacy_parsers):
        ours = [module for module in parsers if module.startswith(("engine.", "gateway."))]
        assert ours == ["gateway.mcp.transport.messages"]
        assert len([module for module in parsers if module.startswith("mcp.")]) == 1
