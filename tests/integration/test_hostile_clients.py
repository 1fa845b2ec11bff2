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
from tests.e2e.rounds import ENVELOPE, VERSION, answer
from tests.gateways import ByHand, Gateway, gateway_process, routed
from tests.platform import CONTOSO, NORTHWIND, Platform, open_platform, until
from tests.sandbox import Running

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARRIVAL, BODY, CONNECTIONS, REQUESTS, SESSIONS, OF_ONE = 2.0, 1_000_000, 200, 8, 12, 4
MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, upstreams: Mapping[str, Running]
) -> AsyncIterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    async with open_platform(folder, temporal_address, upstreams) as platform, platform.working():
        yield platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(shared: Platform, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
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
    async with gateway_process(shared, log, **environment) as running:
        yield running
        told = log.read_text()
    assert "Traceback" not in told, told


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mallory(gateway: Gateway) -> AsyncIterator[ByHand]:
    async with gateway.mcp("mallory") as by_hand:
        yield by_hand


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(gateway: Gateway) -> AsyncIterator[ByHand]:
    async with gateway.mcp("alice") as by_hand:
        yield by_hand


async def works(somebody: ByHand) -> bool:
    """Whether an honest call of this person is served, and a session that they open."""
    listed = await somebody.modern("tools/list")
    session = await somebody.open_session()
    also_listed = await somebody.legacy(session, "tools/list")
    return bool(answer(listed)["result"]["tools"]) and bool(answer(also_listed)["result"]["tools"])


def code(response: httpx2.Response) -> int:
    """The code of a JSON-RPC error, which holds nothing of how the gateway is made."""
    told = answer(response)
    assert told["jsonrpc"] == "2.0"
    assert set(told["error"]) <= {"code", "message", "data"}
    for inner in ("Traceback", "pydantic", "sqlalchemy", "site-packages"):
        assert inner not in response.text
    return int(told["error"]["code"])


def request(members: str) -> bytes:
    """A request with these members, well-formed or not."""
    return f'{{"jsonrpc": "2.0", {members}}}'.encode()


def nested(levels: int) -> bytes:
    return request(f'"id": 1, "method": "tools/list", "params": {{"x": {"[" * levels}{"]" * levels}}}')


NO_MESSAGES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", PARSE_ERROR),
    "half of it": (b'{"jsonrpc": "2.0", "id": 1', PARSE_ERROR),
    "two of it": (b"{} {}", PARSE_ERROR),
    "bytes that are no UTF-8": (
        request('"id": 1, "method": "\xff"').replace(b"\xc3\xbf", b"\xff"),
        PARSE_ERROR,
    ),
    "UTF-16": ('{"jsonrpc": "2.0", "id": 1, "method": "ping"}'.encode("utf-16"), PARSE_ERROR),
    "half a surrogate pair": (request('"id": "\\ud800", "method": "ping"'), PARSE_ERROR),
    "a bare NUL": (request('"id": "\x00", "method": "ping"'), PARSE_ERROR),
    "NaN": (request('"id": 1, "method": "ping", "params": {"x": NaN}'), PARSE_ERROR),
    "Infinity": (request('"id": 1, "method": "ping", "params": {"x": -Infinity}'), PARSE_ERROR),
    "a float beyond any": (request('"id": 1, "method": "ping", "params": {"x": 1e999}'), PARSE_ERROR),
    "an integer beyond any": (request(f'"id": {"9" * 400}, "method": "ping"'), PARSE_ERROR),
    "an integer beyond Python": (request(f'"id": {"9" * 9_000}, "method": "ping"'), PARSE_ERROR),
    "nesting": (nested(300), PARSE_ERROR),
    "nesting without end": (nested(200_000), PARSE_ERROR),
    "values without end": (
        request(f'"id": 1, "method": "ping", "params": {{"x": [{"0," * MAX_JSON_VALUES}0]}}'),
        INVALID_REQUEST,
    ),
    "a key twice": (request('"id": 1, "method": "ping", "method": "tools/list"'), INVALID_REQUEST),
    "a key twice, deep inside": (
        request('"id": 1, "method": "ping", "params": {"a": [{"b": 1, "b": 2}]}'),
        INVALID_REQUEST,
    ),
    "a batch": (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', INVALID_REQUEST),
    "an empty batch": (b"[]", INVALID_REQUEST),
    "a number": (b"5", INVALID_REQUEST),
    "another JSON-RPC": (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', INVALID_REQUEST),
    "an id of null": (request('"id": null, "method": "ping"'), INVALID_REQUEST),
    "an id of truth": (request('"id": true, "method": "ping"'), INVALID_REQUEST),
    "a broken id": (request('"id": 1.5, "method": "ping"'), INVALID_REQUEST),
    "a list for an id": (request('"id": [1], "method": "ping"'), INVALID_REQUEST),
    "an object for an id": (request('"id": {}, "method": "ping"'), INVALID_REQUEST),
    "a number for a method": (request('"id": 1, "method": 5'), INVALID_REQUEST),
    "a list of params": (request('"id": 1, "method": "ping", "params": [1]'), INVALID_REQUEST),
    "neither method nor result": (request('"id": 1'), INVALID_REQUEST),
    "both result and error": (
        request('"id": 1, "result": {}, "error": {"code": 1, "message": ""}'),
        INVALID_REQUEST,
    ),
}


@pytest.mark.parametrize(("body", "expected"), NO_MESSAGES.values(), ids=NO_MESSAGES)
async def test_what_is_no_message_is_refused_alike_by_every_protocol_version(
    mallory: ByHand, body: bytes, expected: int
) -> None:
    session = await mallory.open_session()
    answers = [
        await mallory.post(body, routed("ping")),
        await mallory.post(body, mallory.within(session)),
        await mallory.post(body, {}),
    ]

    assert [(each.status_code, code(each)) for each in answers] == [(400, expected)] * 3
    assert answer(await mallory.legacy(session, "ping"))["result"] == {}


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
    mallory: ByHand, shared: Platform, headers: dict[str, str]
) -> None:
    before = await shared.trail("tool.called")
    params = {"name": "read_once", "arguments": {"account_id": NORTHWIND}, "_meta": ENVELOPE}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    told = {**routed("tools/call", params), **headers}

    refused = [
        await mallory.post(body, told),
        await mallory.post(body, {name: value for name, value in told.items() if name not in headers}),
    ]

    assert [(each.status_code, code(each)) for each in refused] == [(400, HEADER_MISMATCH)] * 2
    assert await shared.trail("tool.called") == before


@pytest.mark.parametrize(
    ("name", "values", "expected"),
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
    mallory: ByHand, name: str, values: tuple[str, ...], expected: int
) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}}
    others = [(known, value) for known, value in routed("tools/list").items() if known != name]
    refused = await mallory.post(body, [*others, *((name, value) for value in values)])

    assert (refused.status_code, code(refused)) == (400, expected)


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
    mallory: ByHand, headers: dict[str, str], status: int
) -> None:
    session = await mallory.open_session()
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}}
    older = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}

    assert (await mallory.post(body, {**routed("tools/list"), **headers})).status_code == status
    assert (await mallory.post(older, {**mallory.within(session), **headers})).status_code == status
    async with mallory.stream(session, **headers) as stream:
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
    mallory: ByHand, shared: Platform, params: dict[str, Any]
) -> None:
    before = await shared.trail("tool.called")
    session = await mallory.open_session()

    refused = [
        await mallory.modern("tools/call", params),
        await mallory.legacy(session, "tools/call", params),
    ]

    # No header can name a tool whose name is no string.
    assert code(refused[0]) in {INVALID_PARAMS, HEADER_MISMATCH}
    assert refused[0].status_code == 400
    assert code(refused[1]) == INVALID_PARAMS
    assert await shared.trail("tool.called") == before


@pytest.mark.parametrize(
    "account",
    [5, None, True, [], {"a": {}}, 10**300],
    ids=["number", "null", "truth", "list", "object", "huge"],
)
async def test_arguments_that_do_not_fit_are_told_to_the_model_and_start_nothing(
    mallory: ByHand, shared: Platform, account: object
) -> None:
    before = await shared.trail("tool.called")
    session = await mallory.open_session()
    arguments = {"account_id": account}

    told = [
        await mallory.call("read_once", arguments),
        await mallory.legacy(session, "tools/call", {"name": "read_once", "arguments": arguments}),
    ]

    for each in told:
        result = answer(each)["result"]
        assert result["isError"]
        assert result["_meta"][OUTCOME_META]["error"] == "arguments_invalid"
    assert await shared.trail("tool.called") == before


@pytest.mark.parametrize(
    "method", ["nope", "", "tools/call/", "initialize/x", "rpc.discover", "x" * 10_000, "\x00"]
)
async def test_an_unknown_method_is_not_found(mallory: ByHand, method: str) -> None:
    session = await mallory.open_session()
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": ENVELOPE}}
    modern = await mallory.post(body, routed(method if method.isprintable() and len(method) < 100 else "x"))
    legacy = await mallory.legacy(session, method)

    assert (modern.status_code, code(modern)) in {(404, METHOD_NOT_FOUND), (400, HEADER_MISMATCH)}
    assert code(legacy) == METHOD_NOT_FOUND


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
    mallory: ByHand, message: dict[str, Any]
) -> None:
    session = await mallory.open_session()
    body = {"jsonrpc": "2.0", **message}

    older = await mallory.post(body, mallory.within(session))
    newer = await mallory.post(body, {"MCP-Protocol-Version": VERSION})

    assert (older.status_code, older.content) == (202, b"")
    # The modern protocol has no request of a server that a client could answer.
    assert newer.status_code == (202 if "method" in message else 400)
    assert answer(await mallory.legacy(session, "ping"))["result"] == {}


async def test_what_is_somebody_elses_is_unknown_in_the_words_for_what_never_was(
    alice: ByHand, mallory: ByHand
) -> None:
    arguments = {"account_id": CONTOSO, "label": "hers"}
    state = answer(await alice.call("read_once", arguments))["result"]["requestState"]
    session = await alice.open_session()
    waits = await alice.legacy(session, "tools/call", {"name": "read_once", "arguments": arguments})
    run = answer(waits)["result"]["_meta"][OUTCOME_META]["run_id"]

    never = answer(await mallory.call("byline_collect", {"run_id": "read_once-never"}))["result"]
    hers = answer(await mallory.call("byline_collect", {"run_id": run}))["result"]
    assert json.dumps(hers).replace(run, "read_once-never") == json.dumps(never)

    unknown = await mallory.legacy("0" * 32, "tools/list")
    not_his = await mallory.legacy(session, "tools/list")
    ended = await mallory.http.delete(mallory.url, headers={**mallory.usual, **mallory.within(session)})
    assert (
        (not_his.status_code, not_his.content)
        == (unknown.status_code, unknown.content)
        == (404, ended.content)
    )

    altered = state[:-4] + ("AAAA" if state[-4:] != "AAAA" else "BBBB")
    refused = [
        await mallory.call("read_once", arguments, requestState=state),
        await alice.call("read_once", arguments, requestState=altered),
        await alice.call("read_once", {**arguments, "label": "other"}, requestState=state),
        await alice.call("think_better_of_it", arguments, requestState=state),
        await alice.call("read_once", arguments, requestState=5),
        await alice.call("read_once", arguments, requestState="\x00"),
    ]
    assert [(each.status_code, code(each)) for each in refused] == [(400, INVALID_PARAMS)] * 6
    assert answer(await alice.legacy(session, "ping"))["result"] == {}


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_a_task_of_somebody_else_is_unknown_and_goes_on(
    alice: ByHand, mallory: ByHand, method: str
) -> None:
    meta = {**ENVELOPE, CLIENT_CAPABILITIES_META_KEY: {"extensions": {TASKS_EXTENSION: {}}}}
    arguments = {"account_id": CONTOSO, "label": method}
    begun = answer(await alice.call("read_once", arguments, _meta=meta))["result"]
    task = {"taskId": begun["taskId"], "_meta": meta}
    never = {"taskId": "read_once-never", "_meta": meta}

    hers, none = [await mallory.modern(method, each) for each in (task, never)]
    unfit: tuple[object, ...] = (5, None, [], "\x00")
    odd = [await mallory.modern(method, {"taskId": each, "_meta": meta}) for each in unfit]
    undeclared = await mallory.modern(method, {"taskId": begun["taskId"]})
    mine = answer(await alice.modern("tasks/get", task))["result"]

    assert begun["resultType"] == "task"
    assert hers.status_code == none.status_code == 400
    assert hers.text.replace(begun["taskId"], "read_once-never") == none.text
    assert [code(each) for each in (hers, *odd)] == [INVALID_PARAMS] * 5
    assert code(undeclared) == MISSING_REQUIRED_CLIENT_CAPABILITY
    assert mine["status"] in {"working", "input_required"}


async def test_of_requests_with_one_id_each_is_answered(mallory: ByHand) -> None:
    session = await mallory.open_session()
    call = {"name": "read_when_told", "arguments": {"account_id": NORTHWIND}}
    answers = await asyncio.gather(
        *(mallory.legacy(session, "tools/call", call, number=7), mallory.legacy(session, "ping", number=7)),
        *(mallory.legacy(session, "ping", number="7"), mallory.legacy(session, "ping", number="_GET_stream")),
    )

    *served, refused = answers
    assert sorted(str(answer(each)["id"]) for each in served) == ["7", "7", "7"]
    assert code(refused) == INVALID_REQUEST


async def test_a_stream_cannot_be_resumed_and_is_a_new_one(mallory: ByHand) -> None:
    session = await mallory.open_session()
    async with mallory.stream(session, Last_Event_ID="5") as stream:
        assert stream.status_code == 200
        assert stream.headers["Content-Type"].startswith("text/event-stream")


async def test_thousands_of_sessions_keep_nobody_from_one(
    alice: ByHand, mallory: ByHand, gateway: Gateway
) -> None:
    hers = await alice.open_session()
    first = await mallory.open_session()
    await asyncio.gather(*(mallory.open_session() for _ in range(OF_ONE)))
    before = gateway.memory()
    for _ in range(60):
        await asyncio.gather(*(mallory.open_session() for _ in range(OF_ONE)))
    last = await mallory.open_session()

    assert gateway.memory() - before < 6 * MIB
    assert (await mallory.legacy(first, "ping")).status_code == 404
    assert answer(await mallory.legacy(last, "ping"))["result"] == {}
    assert answer(await alice.legacy(hers, "ping"))["result"] == {}
    assert await works(alice)


async def test_sessions_at_all_endpoints_count_together(mallory: ByHand, gateway: Gateway) -> None:
    first = await mallory.open_session()
    async with gateway.mcp("mallory", SEARCH_PATH) as searching:
        others = [await searching.open_session() for _ in range(OF_ONE)]
        newest = await searching.legacy(others[-1], "ping")

    assert (await mallory.legacy(first, "ping")).status_code == 404
    assert answer(newest)["result"] == {}


async def test_of_all_sessions_together_the_one_that_was_silent_longest_ends_for_a_new_one(
    alice: ByHand, gateway: Gateway
) -> None:
    async with AsyncExitStack() as people:
        crowd = [
            await people.enter_async_context(gateway.mcp(f"one-of-many-{each}")) for each in range(SESSIONS)
        ]
        hers = await alice.open_session()
        opened = [await somebody.open_session() for somebody in crowd[: SESSIONS - 1]]
        kept = await alice.legacy(hers, "ping")
        newest = await crowd[-1].open_session()

        assert answer(kept)["result"] == {}
        assert (await crowd[0].legacy(opened[0], "ping")).status_code == 404
        assert answer(await crowd[1].legacy(opened[1], "ping"))["result"] == {}
        assert answer(await crowd[-1].legacy(newest, "ping"))["result"] == {}
        assert answer(await alice.legacy(hers, "ping"))["result"] == {}


async def test_requests_beyond_what_one_person_may_have_at_once_wait_for_their_own(
    alice: ByHand, mallory: ByHand
) -> None:
    async with AsyncExitStack() as streams:
        session = [await mallory.open_session() for _ in range(OF_ONE)]
        calls = [
            asyncio.create_task(mallory.call("read_when_told", {"account_id": NORTHWIND, "label": str(each)}))
            for each in range(REQUESTS - OF_ONE)
        ]
        for each in session:
            stream = await streams.enter_async_context(mallory.stream(each))
            assert stream.status_code == 200

        async def has_no_room() -> bool:
            return (await mallory.modern("tools/list")).status_code == 429

        await until(has_no_room)
        assert await works(alice)
        await asyncio.gather(*calls)
    assert await works(mallory)


async def test_a_body_beyond_the_limit_is_not_taken(mallory: ByHand, gateway: Gateway) -> None:
    before = gateway.memory()

    async def without_end() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    large = await mallory.post(b" " * (BODY + 1), routed("ping"))
    hook = await mallory.http.post(f"{gateway.url}/hooks/nobody", content=b" " * (BODY + 1))
    api = await mallory.http.post(f"{gateway.url}/api/v1/tools/read_once/runs", content=b" " * (BODY + 1))
    # Whoever goes on to send after the answer may find the connection reset before they read it.
    with suppress(httpx2.ReadError, httpx2.WriteError):
        assert (await mallory.post(without_end(), routed("ping"))).status_code == 413

    assert (large.status_code, code(large)) == (413, INVALID_REQUEST)
    assert hook.status_code == 413
    assert (api.status_code, api.json()["type"]) == (413, "urn:byline:error:body_too_large")
    assert gateway.memory() - before < 16 * MIB
    assert await works(mallory)


async def test_who_is_not_known_has_no_body_read(gateway: Gateway) -> None:
    async with raw(gateway) as (reader, writer):
        writer.write(
            head(gateway, "POST", "/mcp", "Content-Length: 900000", "Content-Type: application/json")
        )
        answered = await reader.readuntil(b"\r\n")

    assert answered.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "path", ["/mcp", "/api/v1/tools/read_once/runs", "/sign-in", "/token", "/hooks/nobody"]
)
async def test_a_body_that_does_not_arrive_in_time_is_not_waited_for(
    mallory: ByHand, gateway: Gateway, path: str
) -> None:
    async with raw(gateway) as (reader, writer):
        token = f"Authorization: Bearer {mallory.token}"
        kind = (
            "application/json" if path in {"/mcp", "/api/v1/tools/read_once/runs"} else FORM["Content-Type"]
        )
        length = (
            "Content-Length: 100",
            f"Content-Type: {kind}",
            "Accept: application/json, text/event-stream",
        )
        writer.write(head(gateway, "POST", path, token, *length))
        answered = await dripping(reader, writer)

    status = int(answered.split(b" ")[1])
    # A form of no session is turned away unread; what is left of it is not waited for either.
    assert status == (408 if path != "/sign-in" else 403)


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\n"], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_arrive_in_time_is_not_waited_for(gateway: Gateway, begun: bytes) -> None:
    async with raw(gateway) as (reader, writer):
        writer.write(begun)
        answered = await (dripping(reader, writer) if begun else reader.read())

    assert answered.split(b"\r\n")[0] == (b"HTTP/1.1 408 Request Timeout" if begun else b"")


async def test_a_client_that_keeps_a_connection_and_drips_its_next_request_is_cut_off(
    gateway: Gateway,
) -> None:
    async with raw(gateway) as (reader, writer):
        writer.write(head(gateway, "GET", "/healthz"))
        first = await reader.readuntil(b"}")
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        second = await dripping(reader, writer)

    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 408")


async def test_a_client_that_does_not_read_what_it_asked_for_is_cut_off(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.setblocking(False)
        asked = 0

        async def is_cut_off() -> bool:
            nonlocal asked
            try:
                while True:
                    asked += connection.send(head(gateway, "GET", "/static/byline.css"))
            except BlockingIOError:
                return False
            except OSError:
                return True

        await until(is_cut_off)
    assert asked > 0


async def test_connections_that_say_nothing_keep_people_out_for_moments_at_most(
    alice: ByHand, gateway: Gateway
) -> None:
    before = gateway.memory()
    async with AsyncExitStack() as crowd:
        for _ in range(CONNECTIONS):
            await crowd.enter_async_context(raw(gateway))

        async def is_served() -> bool:
            async with gateway.mcp("alice") as anew:
                return (await anew.modern("tools/list")).status_code == 200

        await until(is_served)
        assert gateway.memory() - before < 16 * MIB
    assert await works(alice)


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@asynccontextmanager
async def raw(gateway: Gateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the gateway, without any HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(gateway: Gateway, method: str, path: str, *headers: str) -> bytes:
    host = gateway.url.removeprefix("http://")
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """All that is answered to somebody who sends a byte now and then, until the connection is closed."""
    answered = asyncio.create_task(reader.read())
    async with asyncio.timeout(30):
        while not answered.done():
            writer.write(b"x")
            await asyncio.wait([answered], timeout=0.2)
    return answered.result()
