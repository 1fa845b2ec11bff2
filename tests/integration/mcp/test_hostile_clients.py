"""Clients that keep to no rules, at the door of a gateway process: each is told what is wrong, and costs little."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    PARSE_ERROR,
)

from engine.wire import OUTCOME_META
from gateway.mcp.exchange.client_abilities import TASKS_EXTENSION
from gateway.mcp.transport.messages import MAX_JSON_VALUES
from gateway.toolsets import SEARCH_PATH
from tests.support.gateway_processes import (
    GatewayProcess,
    RawMcpClient,
    build_routing_headers,
    run_gateway_process,
)
from tests.support.mcp_requests import ENVELOPE, VERSION, read_answer
from tests.support.platform import CONTOSO, NORTHWIND, Platform, open_platform, wait_until
from tests.support.sandbox_systems import SandboxProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARRIVAL, BODY, CONNECTIONS, REQUESTS, SESSIONS, OF_ONE = 2.0, 1_000_000, 200, 8, 12, 4
MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_platform(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, upstreams: Mapping[str, SandboxProcess]
) -> AsyncIterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    async with open_platform(folder, temporal_address, upstreams) as platform, platform.run_worker():
        yield platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    module_platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayProcess]:
    limits = {
        "ARRIVAL": ARRIVAL,
        "BODY": BODY,
        "CONNECTIONS": CONNECTIONS,
        "REQUESTS_PER_PRINCIPAL": REQUESTS,
        "SESSIONS": SESSIONS,
        "SESSIONS_PER_PRINCIPAL": OF_ONE,
    }
    environment = {f"BYLINE_GATEWAY__LIMITS__{name}": str(most) for name, most in limits.items()}
    environment |= {"BYLINE_GATEWAY__ANSWER_WITHIN": "1", "BYLINE_GATEWAY__HOLD_WITHIN": "1"}
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    async with run_gateway_process(module_platform, log, **environment) as running:
        yield running
        log_text = log.read_text()
    assert "Traceback" not in log_text, log_text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mallory(gateway: GatewayProcess) -> AsyncIterator[RawMcpClient]:
    async with gateway.connect_mcp("mallory") as by_hand:
        yield by_hand


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(gateway: GatewayProcess) -> AsyncIterator[RawMcpClient]:
    async with gateway.connect_mcp("alice") as by_hand:
        yield by_hand


async def answers_a_listing(somebody: RawMcpClient) -> bool:
    """Whether an honest call of this person is served, and a session that they open."""
    listing = await somebody.send_modern("tools/list")
    session = await somebody.open_session()
    also_listed = await somebody.send_legacy(session, "tools/list")
    return bool(read_answer(listing)["result"]["tools"]) and bool(read_answer(also_listed)["result"]["tools"])


def read_error_code(response: httpx2.Response) -> int:
    """The code of a JSON-RPC error, which holds nothing of how the gateway is made."""
    message = read_answer(response)
    assert message["jsonrpc"] == "2.0"
    assert set(message["error"]) <= {"code", "message", "data"}
    for inner in ("Traceback", "pydantic", "sqlalchemy", "site-packages"):
        assert inner not in response.text
    return int(message["error"]["code"])


def build_request(members: str) -> bytes:
    """A request with these members, well-formed or not."""
    return f'{{"jsonrpc": "2.0", {members}}}'.encode()


def nest_arrays(levels: int) -> bytes:
    return build_request(f'"id": 1, "method": "tools/list", "params": {{"x": {"[" * levels}{"]" * levels}}}')


NO_MESSAGES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", PARSE_ERROR),
    "half of it": (b'{"jsonrpc": "2.0", "id": 1', PARSE_ERROR),
    "two of it": (b"{} {}", PARSE_ERROR),
    "bytes that are no UTF-8": (
        build_request('"id": 1, "method": "\xff"').replace(b"\xc3\xbf", b"\xff"),
        PARSE_ERROR,
    ),
    "UTF-16": ('{"jsonrpc": "2.0", "id": 1, "method": "ping"}'.encode("utf-16"), PARSE_ERROR),
    "half a surrogate pair": (build_request('"id": "\\ud800", "method": "ping"'), PARSE_ERROR),
    "a bare NUL": (build_request('"id": "\x00", "method": "ping"'), PARSE_ERROR),
    "NaN": (build_request('"id": 1, "method": "ping", "params": {"x": NaN}'), PARSE_ERROR),
    "Infinity": (build_request('"id": 1, "method": "ping", "params": {"x": -Infinity}'), PARSE_ERROR),
    "a float beyond any": (build_request('"id": 1, "method": "ping", "params": {"x": 1e999}'), PARSE_ERROR),
    "an integer beyond any": (build_request(f'"id": {"9" * 400}, "method": "ping"'), PARSE_ERROR),
    "an integer beyond Python": (build_request(f'"id": {"9" * 9_000}, "method": "ping"'), PARSE_ERROR),
    "nesting": (nest_arrays(300), PARSE_ERROR),
    "nesting without end": (nest_arrays(200_000), PARSE_ERROR),
    "values without end": (
        build_request(f'"id": 1, "method": "ping", "params": {{"x": [{"0," * MAX_JSON_VALUES}0]}}'),
        INVALID_REQUEST,
    ),
    "a key twice": (build_request('"id": 1, "method": "ping", "method": "tools/list"'), INVALID_REQUEST),
    "a key twice, deep inside": (
        build_request('"id": 1, "method": "ping", "params": {"a": [{"b": 1, "b": 2}]}'),
        INVALID_REQUEST,
    ),
    "a batch": (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', INVALID_REQUEST),
    "an empty batch": (b"[]", INVALID_REQUEST),
    "a number": (b"5", INVALID_REQUEST),
    "another JSON-RPC": (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', INVALID_REQUEST),
    "an id of null": (build_request('"id": null, "method": "ping"'), INVALID_REQUEST),
    "an id of truth": (build_request('"id": true, "method": "ping"'), INVALID_REQUEST),
    "a broken id": (build_request('"id": 1.5, "method": "ping"'), INVALID_REQUEST),
    "a list for an id": (build_request('"id": [1], "method": "ping"'), INVALID_REQUEST),
    "an object for an id": (build_request('"id": {}, "method": "ping"'), INVALID_REQUEST),
    "a number for a method": (build_request('"id": 1, "method": 5'), INVALID_REQUEST),
    "a list of params": (build_request('"id": 1, "method": "ping", "params": [1]'), INVALID_REQUEST),
    "neither method nor result": (build_request('"id": 1'), INVALID_REQUEST),
    "both result and error": (
        build_request('"id": 1, "result": {}, "error": {"code": 1, "message": ""}'),
        INVALID_REQUEST,
    ),
}


@pytest.mark.parametrize(("body", "expected_status"), NO_MESSAGES.values(), ids=NO_MESSAGES)
async def test_what_is_no_message_is_refused_alike_by_every_protocol_version(
    mallory: RawMcpClient, body: bytes, expected_status: int
) -> None:
    session = await mallory.open_session()
    answers = [
        await mallory.post(body, build_routing_headers("ping")),
        await mallory.post(body, mallory.session_headers(session)),
        await mallory.post(body, {}),
    ]

    assert [(response.status_code, read_error_code(response)) for response in answers] == [
        (400, expected_status)
    ] * 3
    assert read_answer(await mallory.send_legacy(session, "ping"))["result"] == {}


@pytest.mark.parametrize(
    "headers",
    {
        "the method of another": {"Mcp-Method": "tools/list"},
        "no method": {"Mcp-Method": ""},
        "the name of another tool": {"Mcp-Name": "think_better_of_it"},
        "no name": {"Mcp-Name": ""},
        "a name that cannot be read": {"Mcp-Name": "=?base64?%%%?="},
        "an older protocol": {"MCP-Protocol-Version": "2025-11-25"},
        "a protocol yet to come": {"MCP-Protocol-Version": "2031-01-01"},
    }.values(),
    ids=str,
)
async def test_headers_that_say_other_than_the_body_are_refused(
    mallory: RawMcpClient, module_platform: Platform, headers: dict[str, str]
) -> None:
    before = await module_platform.list_trail_events("tool.called")
    params = {"name": "read_once", "arguments": {"account_id": NORTHWIND}, "_meta": ENVELOPE}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    routing_headers = {**build_routing_headers("tools/call", params), **headers}

    refusals = [
        await mallory.post(body, routing_headers),
        await mallory.post(
            body, {name: value for name, value in routing_headers.items() if name not in headers}
        ),
    ]

    assert [(response.status_code, read_error_code(response)) for response in refusals] == [
        (400, HEADER_MISMATCH)
    ] * 2
    assert await module_platform.list_trail_events("tool.called") == before


@pytest.mark.parametrize(
    ("name", "values", "expected_status"),
    [
        ("MCP-Protocol-Version", (VERSION, "2025-11-25"), HEADER_MISMATCH),
        ("Mcp-Method", ("tools/list", "tools/call"), HEADER_MISMATCH),
        ("Mcp-Name", ("a", "b"), HEADER_MISMATCH),
        ("Mcp-Session-Id", ("a", "b"), INVALID_REQUEST),
        ("Authorization", ("Basic YTpi",), INVALID_REQUEST),
        ("Origin", ("http://evil.example", "http://evil.example"), INVALID_REQUEST),
        ("Content-Type", ("text/plain",), INVALID_REQUEST),
    ],
)
async def test_a_header_that_is_there_twice_is_refused_whichever_copy_is_right(
    mallory: RawMcpClient, name: str, values: tuple[str, ...], expected_status: int
) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}}
    others = [
        (header_name, value)
        for header_name, value in build_routing_headers("tools/list").items()
        if header_name != name
    ]
    refusal = await mallory.post(body, [*others, *((name, value) for value in values)])

    assert (refusal.status_code, read_error_code(refusal)) == (400, expected_status)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_a_page_of_another_origin_reaches_nothing_under_whatever_name(
    mallory: RawMcpClient, headers: dict[str, str], status: int
) -> None:
    session = await mallory.open_session()
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}}
    older = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}

    assert (
        await mallory.post(body, {**build_routing_headers("tools/list"), **headers})
    ).status_code == status
    assert (await mallory.post(older, {**mallory.session_headers(session), **headers})).status_code == status
    async with mallory.open_stream(session, **headers) as stream:
        assert stream.status_code == status


@pytest.mark.parametrize(
    "params",
    [
        {"name": 5, "arguments": {}},
        {"name": None, "arguments": {}},
        {"name": ["read_once"], "arguments": {}},
        {"arguments": {}},
        {"name": "read_once", "arguments": [NORTHWIND]},
        {"name": "read_once", "arguments": "x"},
        {"name": "read_once", "arguments": 5},
        {"name": "no_such_tool\x00", "arguments": {}},
        {"name": "read_once", "arguments": {"account_id": NORTHWIND}, "_meta": 5},
    ],
    ids=str,
)
async def test_a_call_of_the_wrong_shape_starts_nothing(
    mallory: RawMcpClient, module_platform: Platform, params: dict[str, Any]
) -> None:
    before = await module_platform.list_trail_events("tool.called")
    session = await mallory.open_session()

    refusals = [
        await mallory.send_modern("tools/call", params),
        await mallory.send_legacy(session, "tools/call", params),
    ]

    # No header can name a tool whose name is no string.
    assert read_error_code(refusals[0]) in {INVALID_PARAMS, HEADER_MISMATCH}
    assert refusals[0].status_code == 400
    assert read_error_code(refusals[1]) == INVALID_PARAMS
    assert await module_platform.list_trail_events("tool.called") == before


@pytest.mark.parametrize(
    "account",
    [5, None, True, [], {"a": {}}, 10**300],
    ids=["number", "null", "truth", "list", "object", "huge"],
)
async def test_invalid_arguments_are_reported_to_the_model_and_start_nothing(
    mallory: RawMcpClient, module_platform: Platform, account: object
) -> None:
    before = await module_platform.list_trail_events("tool.called")
    session = await mallory.open_session()
    arguments = {"account_id": account}

    responses = [
        await mallory.call_tool("read_once", arguments),
        await mallory.send_legacy(session, "tools/call", {"name": "read_once", "arguments": arguments}),
    ]

    for response in responses:
        result = read_answer(response)["result"]
        assert result["isError"]
        assert result["_meta"][OUTCOME_META]["error"] == "arguments_invalid"
    assert await module_platform.list_trail_events("tool.called") == before


@pytest.mark.parametrize(
    "method", ["nope", "", "tools/call/", "initialize/x", "rpc.discover", "x" * 10_000, "\x00"]
)
async def test_an_unknown_method_is_not_found(mallory: RawMcpClient, method: str) -> None:
    session = await mallory.open_session()
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": ENVELOPE}}
    modern = await mallory.post(
        body, build_routing_headers(method if method.isprintable() and len(method) < 100 else "x")
    )
    legacy = await mallory.send_legacy(session, method)

    assert (modern.status_code, read_error_code(modern)) in {(404, METHOD_NOT_FOUND), (400, HEADER_MISMATCH)}
    assert read_error_code(legacy) == METHOD_NOT_FOUND


@pytest.mark.parametrize(
    "message",
    [
        {"id": 77, "result": {}},
        {"id": 77, "error": {"code": 1, "message": "x"}},
        {"method": "notifications/cancelled", "params": {"requestId": 77}},
        {"method": "notifications/cancelled", "params": {"requestId": [77]}},
        {"method": "notifications/progress", "params": {"progressToken": {}, "progress": "x"}},
        {"method": "notifications/initialized", "params": {"x": 1}},
        {"method": "nobody/knows"},
    ],
    ids=str,
)
async def test_answers_and_notifications_out_of_nowhere_change_nothing(
    mallory: RawMcpClient, message: dict[str, Any]
) -> None:
    session = await mallory.open_session()
    body = {"jsonrpc": "2.0", **message}

    older = await mallory.post(body, mallory.session_headers(session))
    newer = await mallory.post(body, {"MCP-Protocol-Version": VERSION})

    assert (older.status_code, older.content) == (202, b"")
    # The modern protocol has no request of a server that a client could answer.
    assert newer.status_code == (202 if "method" in message else 400)
    assert read_answer(await mallory.send_legacy(session, "ping"))["result"] == {}


async def test_what_is_somebody_elses_is_unknown_in_the_words_for_what_never_was(
    alice: RawMcpClient, mallory: RawMcpClient
) -> None:
    arguments = {"account_id": CONTOSO, "label": "hers"}
    state = read_answer(await alice.call_tool("read_once", arguments))["result"]["requestState"]
    session = await alice.open_session()
    waits = await alice.send_legacy(session, "tools/call", {"name": "read_once", "arguments": arguments})
    run = read_answer(waits)["result"]["_meta"][OUTCOME_META]["run_id"]

    never = read_answer(await mallory.call_tool("byline_collect", {"run_id": "read_once-never"}))["result"]
    hers = read_answer(await mallory.call_tool("byline_collect", {"run_id": run}))["result"]
    assert json.dumps(hers).replace(run, "read_once-never") == json.dumps(never)

    unknown = await mallory.send_legacy("0" * 32, "tools/list")
    not_his = await mallory.send_legacy(session, "tools/list")
    deletion = await mallory.http.delete(
        mallory.url, headers={**mallory.usual_headers, **mallory.session_headers(session)}
    )
    assert (
        (not_his.status_code, not_his.content)
        == (unknown.status_code, unknown.content)
        == (404, deletion.content)
    )

    altered_state = state[:-4] + ("AAAA" if state[-4:] != "AAAA" else "BBBB")
    refusals = [
        await mallory.call_tool("read_once", arguments, requestState=state),
        await alice.call_tool("read_once", arguments, requestState=altered_state),
        await alice.call_tool("read_once", {**arguments, "label": "other"}, requestState=state),
        await alice.call_tool("think_better_of_it", arguments, requestState=state),
        await alice.call_tool("read_once", arguments, requestState=5),
        await alice.call_tool("read_once", arguments, requestState="\x00"),
    ]
    assert [(response.status_code, read_error_code(response)) for response in refusals] == [
        (400, INVALID_PARAMS)
    ] * 6
    assert read_answer(await alice.send_legacy(session, "ping"))["result"] == {}


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_a_task_of_somebody_else_is_unknown_and_goes_on(
    alice: RawMcpClient, mallory: RawMcpClient, method: str
) -> None:
    meta = {**ENVELOPE, CLIENT_CAPABILITIES_META_KEY: {"extensions": {TASKS_EXTENSION: {}}}}
    arguments = {"account_id": CONTOSO, "label": method}
    created_task = read_answer(await alice.call_tool("read_once", arguments, _meta=meta))["result"]
    task = {"taskId": created_task["taskId"], "_meta": meta}
    never = {"taskId": "read_once-never", "_meta": meta}

    hers, none = [await mallory.send_modern(method, task_id) for task_id in (task, never)]
    unfit: tuple[object, ...] = (5, None, [], "\x00")
    odd = [await mallory.send_modern(method, {"taskId": task_id, "_meta": meta}) for task_id in unfit]
    undeclared_response = await mallory.send_modern(method, {"taskId": created_task["taskId"]})
    mine = read_answer(await alice.send_modern("tasks/get", task))["result"]

    assert created_task["resultType"] == "task"
    assert hers.status_code == none.status_code == 400
    assert hers.text.replace(created_task["taskId"], "read_once-never") == none.text
    assert [read_error_code(task_id) for task_id in (hers, *odd)] == [INVALID_PARAMS] * 5
    assert read_error_code(undeclared_response) == MISSING_REQUIRED_CLIENT_CAPABILITY
    assert mine["status"] in {"working", "input_required"}


async def test_of_requests_with_one_id_each_is_answered(mallory: RawMcpClient) -> None:
    session = await mallory.open_session()
    call = {"name": "read_when_told", "arguments": {"account_id": NORTHWIND}}
    answers = await asyncio.gather(
        *(
            mallory.send_legacy(session, "tools/call", call, number=7),
            mallory.send_legacy(session, "ping", number=7),
        ),
        *(
            mallory.send_legacy(session, "ping", number="7"),
            mallory.send_legacy(session, "ping", number="_GET_stream"),
        ),
    )

    *served_responses, refusal = answers
    assert sorted(str(read_answer(response)["id"]) for response in served_responses) == ["7", "7", "7"]
    assert read_error_code(refusal) == INVALID_REQUEST


async def test_a_stream_cannot_be_resumed_and_is_a_new_one(mallory: RawMcpClient) -> None:
    session = await mallory.open_session()
    async with mallory.open_stream(session, Last_Event_ID="5") as stream:
        assert stream.status_code == 200
        assert stream.headers["Content-Type"].startswith("text/event-stream")


async def test_thousands_of_sessions_keep_nobody_from_one(
    alice: RawMcpClient, mallory: RawMcpClient, gateway: GatewayProcess
) -> None:
    hers = await alice.open_session()
    first = await mallory.open_session()
    await asyncio.gather(*(mallory.open_session() for _ in range(OF_ONE)))
    before = gateway.read_memory_bytes()
    for _ in range(60):
        await asyncio.gather(*(mallory.open_session() for _ in range(OF_ONE)))
    last = await mallory.open_session()

    assert gateway.read_memory_bytes() - before < 6 * MIB
    assert (await mallory.send_legacy(first, "ping")).status_code == 404
    assert read_answer(await mallory.send_legacy(last, "ping"))["result"] == {}
    assert read_answer(await alice.send_legacy(hers, "ping"))["result"] == {}
    assert await answers_a_listing(alice)


async def test_sessions_at_all_endpoints_count_together(
    mallory: RawMcpClient, gateway: GatewayProcess
) -> None:
    first = await mallory.open_session()
    async with gateway.connect_mcp("mallory", SEARCH_PATH) as searching:
        others = [await searching.open_session() for _ in range(OF_ONE)]
        newest = await searching.send_legacy(others[-1], "ping")

    assert (await mallory.send_legacy(first, "ping")).status_code == 404
    assert read_answer(newest)["result"] == {}


async def test_of_all_sessions_together_the_one_that_was_silent_longest_ends_for_a_new_one(
    alice: RawMcpClient, gateway: GatewayProcess
) -> None:
    async with AsyncExitStack() as people:
        crowd = [
            await people.enter_async_context(gateway.connect_mcp(f"one-of-many-{number}"))
            for number in range(SESSIONS)
        ]
        hers = await alice.open_session()
        sessions = [await somebody.open_session() for somebody in crowd[: SESSIONS - 1]]
        ping_response = await alice.send_legacy(hers, "ping")
        newest = await crowd[-1].open_session()

        assert read_answer(ping_response)["result"] == {}
        assert (await crowd[0].send_legacy(sessions[0], "ping")).status_code == 404
        assert read_answer(await crowd[1].send_legacy(sessions[1], "ping"))["result"] == {}
        assert read_answer(await crowd[-1].send_legacy(newest, "ping"))["result"] == {}
        assert read_answer(await alice.send_legacy(hers, "ping"))["result"] == {}


async def test_requests_beyond_what_one_person_may_have_at_once_wait_for_their_own(
    alice: RawMcpClient, mallory: RawMcpClient
) -> None:
    async with AsyncExitStack() as streams:
        session = [await mallory.open_session() for _ in range(OF_ONE)]
        calls = [
            asyncio.create_task(
                mallory.call_tool("read_when_told", {"account_id": NORTHWIND, "label": str(number)})
            )
            for number in range(REQUESTS - OF_ONE)
        ]
        for session_id in session:
            stream = await streams.enter_async_context(mallory.open_stream(session_id))
            assert stream.status_code == 200

        async def has_no_room() -> bool:
            return (await mallory.send_modern("tools/list")).status_code == 429

        await wait_until(has_no_room)
        assert await answers_a_listing(alice)
        await asyncio.gather(*calls)
    assert await answers_a_listing(mallory)


async def test_a_body_beyond_the_limit_is_not_taken(mallory: RawMcpClient, gateway: GatewayProcess) -> None:
    before = gateway.read_memory_bytes()

    async def without_end() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    large = await mallory.post(b" " * (BODY + 1), build_routing_headers("ping"))
    hook = await mallory.http.post(f"{gateway.url}/hooks/nobody", content=b" " * (BODY + 1))
    api = await mallory.http.post(f"{gateway.url}/api/v1/tools/read_once/runs", content=b" " * (BODY + 1))
    # Whoever goes on to send after the answer may find the connection reset before they read it.
    with suppress(httpx2.ReadError, httpx2.WriteError):
        assert (await mallory.post(without_end(), build_routing_headers("ping"))).status_code == 413

    assert (large.status_code, read_error_code(large)) == (413, INVALID_REQUEST)
    assert hook.status_code == 413
    assert (api.status_code, api.json()["type"]) == (413, "urn:byline:error:body_too_large")
    assert gateway.read_memory_bytes() - before < 16 * MIB
    assert await answers_a_listing(mallory)


async def test_who_is_not_known_has_no_body_read(gateway: GatewayProcess) -> None:
    async with open_connection(gateway) as (reader, writer):
        writer.write(
            build_head(gateway, "POST", "/mcp", "Content-Length: 900000", "Content-Type: application/json")
        )
        status_line = await reader.readuntil(b"\r\n")

    assert status_line.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "path", ["/mcp", "/api/v1/tools/read_once/runs", "/sign-in", "/token", "/hooks/nobody"]
)
async def test_a_body_that_does_not_arrive_in_time_is_not_waited_for(
    mallory: RawMcpClient, gateway: GatewayProcess, path: str
) -> None:
    async with open_connection(gateway) as (reader, writer):
        token = f"Authorization: Bearer {mallory.token}"
        kind = (
            "application/json" if path in {"/mcp", "/api/v1/tools/read_once/runs"} else FORM["Content-Type"]
        )
        length = (
            "Content-Length: 100",
            f"Content-Type: {kind}",
            "Accept: application/json, text/event-stream",
        )
        writer.write(build_head(gateway, "POST", path, token, *length))
        response_bytes = await send_slowly(reader, writer)

    status = int(response_bytes.split(b" ")[1])
    # A form of no session is turned away unread; what is left of it is not waited for either.
    assert status == (408 if path != "/sign-in" else 403)


@pytest.mark.parametrize("head_start", [b"", b"GET /healthz HTTP/1.1\r\n"], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_arrive_in_time_is_not_waited_for(
    gateway: GatewayProcess, head_start: bytes
) -> None:
    async with open_connection(gateway) as (reader, writer):
        writer.write(head_start)
        response_bytes = await (send_slowly(reader, writer) if head_start else reader.read())

    assert response_bytes.split(b"\r\n")[0] == (b"HTTP/1.1 408 Request Timeout" if head_start else b"")


async def test_a_client_that_keeps_a_connection_and_drips_its_next_request_is_cut_off(
    gateway: GatewayProcess,
) -> None:
    async with open_connection(gateway) as (reader, writer):
        writer.write(build_head(gateway, "GET", "/healthz"))
        first = await reader.readuntil(b"}")
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        second = await send_slowly(reader, writer)

    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 408")


async def test_a_client_that_does_not_read_what_it_asked_for_is_cut_off(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.setblocking(False)
        bytes_sent = 0

        async def is_cut_off() -> bool:
            nonlocal bytes_sent
            try:
                while True:
                    bytes_sent += connection.send(build_head(gateway, "GET", "/static/byline.css"))
            except BlockingIOError:
                return False
            except OSError:
                return True

        await wait_until(is_cut_off)
    assert bytes_sent > 0


async def test_connections_that_say_nothing_keep_people_out_for_moments_at_most(
    alice: RawMcpClient, gateway: GatewayProcess
) -> None:
    before = gateway.read_memory_bytes()
    async with AsyncExitStack() as crowd:
        for _ in range(CONNECTIONS):
            await crowd.enter_async_context(open_connection(gateway))

        async def is_served() -> bool:
            async with gateway.connect_mcp("alice") as anew:
                return (await anew.send_modern("tools/list")).status_code == 200

        await wait_until(is_served)
        assert gateway.read_memory_bytes() - before < 16 * MIB
    assert await answers_a_listing(alice)


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@asynccontextmanager
async def open_connection(
    gateway: GatewayProcess,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the gateway, without any HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def build_head(gateway: GatewayProcess, method: str, path: str, *headers: str) -> bytes:
    host = gateway.url.removeprefix("http://")
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


async def send_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """All that is answered to somebody who sends a byte now and then, until the connection is closed."""
    response_task = asyncio.create_task(reader.read())
    async with asyncio.timeout(30):
        while not response_task.done():
            writer.write(b"x")
            await asyncio.wait([response_task], timeout=0.2)
    return response_task.result()
