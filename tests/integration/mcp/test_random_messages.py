"""Messages at random, well-formed and not, at a gateway process: none breaks it, and none learns what it should not."""

import asyncio
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.oauth.tokens import UpstreamTokens
from gateway.toolsets import MCP_PATH
from tests.support.gateway_processes import (
    INITIALIZE,
    LEGACY,
    GatewayProcess,
    RawMcpClient,
    run_gateway_process,
)
from tests.support.mcp_requests import ENVELOPE, VERSION, read_answer
from tests.support.platform import NORTHWIND, Platform

SECONDS, EXAMPLES = 15.0, 500
MIB = 1024 * 1024

METHODS: Final = (
    *("initialize", "ping", "tools/list", "tools/call", "prompts/list", "prompts/get", "resources/list"),
    *("resources/read", "resources/subscribe", "resources/templates/list", "completion/complete"),
    *(
        "logging/setLevel",
        "server/discover",
        "subscriptions/listen",
        "tasks/get",
        "tasks/update",
        "tasks/cancel",
    ),
    *("tasks/list", "tasks/result", "elicitation/create", "sampling/createMessage", "roots/list"),
    *("notifications/initialized", "notifications/cancelled", "notifications/progress"),
    *("notifications/roots/list_changed", "notifications/tasks/status"),
)
NAMES: Final = ("read_once", "think_better_of_it", "byline_collect", "no_such_tool", "")
KEYS: Final = (
    *(
        "name",
        "arguments",
        "_meta",
        "cursor",
        "uri",
        "requestId",
        "progressToken",
        "progress",
        "taskId",
        "level",
    ),
    *(
        "requestState",
        "inputResponses",
        "protocolVersion",
        "capabilities",
        "clientInfo",
        "ref",
        "argument",
        "task",
    ),
    *("account_id", "run_id", "notifications", "filter", *ENVELOPE),
)
VERSIONS: Final = (VERSION, LEGACY, "2025-06-18", "2025-03-26", "2024-11-05", "1900-01-01", "")

# What a number, a word or a nesting can be that programs have tripped over.
odd: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        10**400,
        1e308,
        "",
        "\x00",
        "\u202e",
        "𝕊" * 50,
        "x" * 5_000,
        [],
        {},
        [[[]]],
    ]
)
scalars = st.one_of(
    odd, st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([*NAMES, *VERSIONS])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
sensible: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {},
        {"name": "read_once", "arguments": {"account_id": NORTHWIND}},
        {"name": "byline_collect", "arguments": {"run_id": "read_once-never"}},
        {"name": "read_once", "arguments": {"account_id": NORTHWIND}, "requestState": "invented"},
        {"taskId": "read_once-never"},
        {"notifications": {"toolsListChanged": True}},
        dict(INITIALIZE),
    ]
)
params = st.one_of(
    sensible,
    st.builds(
        lambda fields, more: {**fields, **more},
        sensible,
        st.dictionaries(st.sampled_from(KEYS), values, max_size=3),
    ),
    values,
)


@st.composite
def draw_bodies(draw: st.DrawFn, *, modern: bool) -> bytes:
    """A message, of which some are spoilt in their members and some in their bytes."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": draw(st.integers(0, 99) | st.text(max_size=5))}
    message["method"] = draw(st.sampled_from(METHODS) | st.text(max_size=12))
    message["params"] = draw(params)
    if modern and isinstance(message["params"], dict):
        message["params"] = {"_meta": ENVELOPE, **message["params"]}
    for member in draw(
        st.lists(st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error"]), max_size=2)
    ):
        message[member] = draw(values)
    for member in draw(st.sets(st.sampled_from(["jsonrpc", "id", "method", "params"]), max_size=1)):
        del message[member]
    whole: Any = draw(st.sampled_from([message, message, message, message, [message], [message, message]]))
    text = json.dumps(whole).encode()
    if draw(st.integers(0, 4)) == 0:
        start, until = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        text = text[:start] + draw(st.binary(max_size=8)) + text[until if until - start < 9 else start :]
    return text


@dataclass(frozen=True)
class FuzzRequest:
    """One request."""

    session: bool
    body: bytes
    headers: Mapping[str, bytes]


@st.composite
def draw_requests(draw: st.DrawFn) -> FuzzRequest:
    """A request of either era, some with headers that do not belong to it."""
    modern = draw(st.booleans())
    body = draw(draw_bodies(modern=modern))
    headers: dict[str, bytes] = {}
    if modern:
        try:
            message = json.loads(body)
            method, name = (
                message["method"].encode("ascii"),
                message["params"].get("name", "").encode("ascii"),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            method, name = b"tools/call", b"read_once"
        headers = {"MCP-Protocol-Version": VERSION.encode(), "Mcp-Method": method, "Mcp-Name": name}
    for header in draw(
        st.sets(
            st.sampled_from(["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name", "Mcp-Session-Id"]), max_size=1
        )
    ):
        headers[header] = draw(
            st.sampled_from([version.encode() for version in VERSIONS]) | st.binary(max_size=20)
        )
    usable = {name: bytes(byte for byte in value if 0x21 <= byte != 0x7F) for name, value in headers.items()}
    return FuzzRequest(not modern and draw(st.booleans()), body, usable)


async def test_nothing_that_is_sent_breaks_the_gateway_or_gets_a_secret_out_of_it(
    platform: Platform, tmp_path: Path
) -> None:
    log = tmp_path / "gateway.log"
    brief = {"BYLINE_GATEWAY__ANSWER_WITHIN": "0.1", "BYLINE_GATEWAY__HOLD_WITHIN": "0.1"}
    async with run_gateway_process(platform, log, **brief) as gateway:
        alice = await gateway.add_person("alice", "Alice")
        granted_tokens = await platform.give_grant("crm", alice)
        async with gateway.connect_mcp("alice") as by_hand:
            assert read_answer(await by_hand.call_tool("read_once", {"account_id": NORTHWIND}))["result"]
            session = await by_hand.open_session()
            secret = list_secrets(platform, granted_tokens, by_hand)
            before = gateway.read_memory_bytes()
            shot = await asyncio.to_thread(fire_requests, gateway, by_hand, session, secret)
            growth_bytes = gateway.read_memory_bytes() - before

            tool_listing = read_answer(await by_hand.send_modern("tools/list"))["result"]
            also_served = read_answer(await by_hand.send_legacy(await by_hand.open_session(), "tools/list"))[
                "result"
            ]
        assert gateway.process.returncode is None

    assert shot > 100
    assert growth_bytes < 32 * MIB
    assert tool_listing["tools"]
    assert also_served["tools"]
    log_text = log.read_text()
    assert "Traceback" not in log_text, log_text
    assert not [secret_text for secret_text in secret if secret_text in log_text]


def list_secrets(platform: Platform, granted_tokens: UpstreamTokens, by_hand: RawMcpClient) -> list[str]:
    """What no answer may hold."""
    keyring = platform.settings.vault.keyring_file
    assert keyring is not None
    candidates = [
        granted_tokens.access_token,
        granted_tokens.refresh_token,
        by_hand.token,
        *platform.environment.values(),
    ]
    keys = [candidate for candidate in keyring.read_text().split('"') if len(candidate) > 30]
    return [candidate for candidate in (*candidates, *keys) if candidate and not candidate.startswith("http")]


def fire_requests(gateway: GatewayProcess, by_hand: RawMcpClient, session: str, secret: list[str]) -> int:
    """Send requests for as long as there is time; how many there were."""
    shot_count, over = 0, time.monotonic() + SECONDS
    with httpx2.Client(timeout=30) as http:

        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(draw_requests())
        def hit(shot: FuzzRequest) -> None:
            nonlocal shot_count, over
            if time.monotonic() > over:
                return
            shot_count += 1
            within = by_hand.session_headers(session) if shot.session else {}
            usual = {name: value.encode() for name, value in {**by_hand.usual_headers, **within}.items()}
            headers = [(name.encode(), value) for name, value in {**usual, **shot.headers}.items()]
            with http.stream(
                "POST", f"{gateway.url}{MCP_PATH}", content=shot.body, headers=headers
            ) as response:
                content = first_message(response)
            try:
                check_response(response.status_code, content, shot.body, secret)
            except Exception:
                # What broke it is looked into for as long as that takes.
                over = math.inf
                raise

        hit()
    return shot_count


def first_message(response: httpx2.Response) -> bytes:
    """The body of an answer; of a stream, which may have no end, the first message."""
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        return response.read()
    content = b""
    for chunk in response.iter_bytes():
        content += chunk
        match = re.search(rb"^data: (.*)\r?\n", content, re.MULTILINE)
        if match is not None:
            return match[1]
    raise AssertionError("a stream ended without a message")


def check_response(status: int, content: bytes, body: bytes, secret: list[str]) -> None:
    """Whether an answer is as it should be: one JSON-RPC message that belongs to what was asked, and no secret."""
    assert status < 500
    assert not [secret_text for secret_text in secret if secret_text.encode() in content]
    if status == 202:
        assert content == b""
        return
    message = json.loads(content)
    assert message["jsonrpc"] == "2.0"
    assert ("method" in message) + ("result" in message) + ("error" in message) == 1
    if "error" in message:
        assert set(message["error"]) <= {"code", "message", "data"}
        assert isinstance(message["error"]["code"], int)
    if "method" not in message and message.get("id") is not None:
        assert message["id"] == json.loads(body)["id"]
