"""Two gateways behind a proxy, on one database, keyring and Temporal: what one begins, the other goes on with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from engine.wire import OUTCOME_META
from examples.chat import open_chat
from tests.e2e.installation import (
    TIMEOUT_SECONDS,
    TOOL,
    Installation,
    collect_outcome,
    next_link,
    read_result,
)
from tests.support.foreign.process import free_port
from tests.support.gateway_processes import RawMcpClient, read_messages, start_gateway
from tests.support.mcp_requests import call_tool, read_answer
from tests.support.reverse_proxy import Proxy, run_proxy

GUARDED_TOOL = "resolve_billing_dispute"


@dataclass
class GatewayPair:
    """Two gateways that people and clients reach under one address, each in turn."""

    installation: Installation
    proxy: Proxy
    log: Path
    _processes: dict[int, tuple[AsyncExitStack, asyncio.subprocess.Process]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """What an MCP client is given."""
        return self.installation.stack.mcp_url

    async def start(self, place: int) -> None:
        """Start the gateway at this place, where it does not run."""
        if place in self._processes:
            return
        environment = {
            **self.installation.stack.build_environment("gateway"),
            "BYLINE_GATEWAY__PUBLIC_URL": self.installation.stack.gateway_url,
            "BYLINE_GATEWAY__PORT": str(self.proxy.gateways[place]),
            "BYLINE_GATEWAY__HOLD_WITHIN": "4",
            "BYLINE_POLICY_FILE": str(self.log.with_name("policy.yml")),
        }
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(start_gateway(environment, self.log))
            self._processes[place] = stack.pop_all(), process

    async def kill(self, place: int) -> None:
        """End a gateway by SIGKILL."""
        stack, process = self._processes.pop(place)
        process.kill()
        await process.wait()
        await stack.aclose()

    async def close(self) -> None:
        """End both."""
        for place in list(self._processes):
            await self.kill(place)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_pair(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[GatewayPair]:
    proxy = Proxy([free_port(), free_port()])
    folder = tmp_path_factory.mktemp("gateways")
    pair = GatewayPair(installation, proxy, folder / "gateways.log")
    (folder / "policy.yml").write_text(f"tools: {{{GUARDED_TOOL}: {{roles: [finance]}}}}")
    await installation.stack.stop_service("gateway")
    try:
        async with run_proxy(proxy, int(installation.stack.variables["GATEWAY_PORT"])):
            yield pair
            await pair.close()
    finally:
        await installation.restart("gateway")


@pytest_asyncio.fixture(loop_scope="session")
async def pair(module_pair: GatewayPair) -> GatewayPair:
    """Both at work, and a proxy that takes them in turn."""
    await asyncio.gather(module_pair.start(0), module_pair.start(1))
    module_pair.proxy.sticky, module_pair.proxy.only = False, None
    module_pair.proxy.served_counts.clear()
    return module_pair


async def test_people_and_modern_clients_need_no_gateway_of_their_own(
    pair: GatewayPair, installation: Installation
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    async with open_chat(alice, pair.url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": "anywhere"}))
        page = await installation.consent(alice, await next_link(alice), "alice")
        alice.has_signed_in.set()

    assert "Kinto is connected" in page.text
    assert read_result(calling.result()) == {"record": record, "notes": ["anywhere"]}
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1
    assert min(pair.proxy.served_counts[0], pair.proxy.served_counts[1]) > 5


async def test_a_call_begun_at_one_gateway_goes_on_at_the_other(
    pair: GatewayPair, installation: Installation
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    token = await installation.issue_token(alice)
    arguments = {"record": record, "note": "once"}
    pair.proxy.only = 0
    first = read_answer(await call_tool(pair.url, token, TOOL, arguments))["result"]
    (question,) = first["inputRequests"]
    pair.proxy.only = 1
    await installation.consent(alice, first["inputRequests"][question]["params"]["url"], "alice")
    acceptance = {"requestState": first["requestState"], "inputResponses": {question: {"action": "accept"}}}

    second = read_answer(await call_tool(pair.url, token, TOOL, arguments, **acceptance))["result"]

    assert second["structuredContent"]["notes"] == ["once"]
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


@pytest.mark.parametrize("carries", ["the state of its call", "nothing but the same call"])
async def test_when_a_gateway_is_killed_in_a_call_the_next_try_attaches_to_its_run_at_the_other(
    pair: GatewayPair, installation: Installation, carries: str
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    token = await installation.issue_token(alice)
    arguments = {"record": record, "note": "survives"}
    pair.proxy.only = 0
    first = read_answer(await call_tool(pair.url, token, TOOL, arguments))["result"]
    (question,) = first["inputRequests"]
    acceptance = {"requestState": first["requestState"], "inputResponses": {question: {"action": "accept"}}}
    again: dict[str, Any] = acceptance if carries == "the state of its call" else {}
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(call_tool(pair.url, token, TOOL, arguments, **acceptance))
        async with asyncio.timeout(30):
            while not pair.proxy.under_way:
                await asyncio.sleep(0.01)
        await pair.kill(0)
    pair.proxy.only = None
    await installation.consent(alice, first["inputRequests"][question]["params"]["url"], "alice")

    result = read_answer(await call_tool(pair.url, token, TOOL, arguments, **again))["result"]

    assert waiting.result().status_code == 502
    assert result["structuredContent"]["notes"] == ["survives"]
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


async def test_sessions_of_older_protocols_work_where_the_proxy_routes_by_their_header(
    pair: GatewayPair, installation: Installation
) -> None:
    pair.proxy.sticky = True
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    await installation.issue_token(alice)
    before = dict(pair.proxy.served_counts)
    async with AsyncExitStack() as clients:
        several = [
            await clients.enter_async_context(open_chat(alice, pair.url, elicitation=False, mode="legacy"))
            for _ in range(4)
        ]
        tool_lists = [await client.list_tools() for client in several]
        waits = read_result(await several[0].call_tool(TOOL, {"record": record, "note": "older"}))
        await installation.consent(alice, waits["links"][0]["url"], "alice")
        collected_outcome = await collect_outcome(several[1], waits["run_id"])

    assert [TOOL in {tool.name for tool in client.tools} for client in tool_lists] == [True] * 4
    assert collected_outcome == {"record": record, "notes": ["older"]}
    assert installation.list_authors(record) == ["alice"]
    assert all(pair.proxy.served_counts[place] > before.get(place, 0) for place in (0, 1))


async def test_a_session_that_no_gateway_knows_is_begun_anew_and_finds_its_run(
    pair: GatewayPair, installation: Installation
) -> None:
    pair.proxy.sticky = True
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    token = await installation.issue_token(alice)
    call = {"name": TOOL, "arguments": {"record": record, "note": "once"}}
    async with httpx2.AsyncClient(timeout=60) as http:
        by_hand = RawMcpClient(http, pair.url, token)
        pair.proxy.only = 0
        session = await by_hand.open_session()
        waits = read_answer(await by_hand.send_legacy(session, "tools/call", call))["result"]["_meta"][
            OUTCOME_META
        ]
        await pair.kill(0)
        pair.proxy.only = None
        lost_response = await by_hand.send_legacy(session, "tools/call", call)
        anew = await by_hand.open_session()
        also_waits = read_answer(await by_hand.send_legacy(anew, "tools/call", call))["result"]["_meta"][
            OUTCOME_META
        ]
        await installation.consent(alice, waits["links"][0]["url"], "alice")
        result = read_answer(await by_hand.send_legacy(anew, "tools/call", call))["result"][
            "structuredContent"
        ]

    assert lost_response.status_code == 404
    assert also_waits["run_id"] == waits["run_id"]
    assert result["notes"] == ["once"]
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


async def test_whoever_listens_hears_of_a_role_that_another_process_gives_or_takes_at_whichever_gateway(
    pair: GatewayPair, installation: Installation
) -> None:
    pair.proxy.sticky = True
    alice = await installation.add_newcomer("alice")
    token = await installation.issue_token(alice)
    name = f"Alice {alice.username[-6:]}"
    changed_method = "notifications/tools/list_changed"
    async with AsyncExitStack() as open_:
        by_hand = RawMcpClient(
            await open_.enter_async_context(httpx2.AsyncClient(timeout=60)), pair.url, token
        )
        streams = []
        for place in (0, 1):
            pair.proxy.only = place
            streams.append(await open_.enter_async_context(by_hand.open_listener()))
            session = await by_hand.open_session()
            streams.append(read_messages(await open_.enter_async_context(by_hand.open_stream(session))))

        async def hear() -> list[str]:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return [(await anext(stream))["method"] for stream in streams]

        await installation.run_byline("people", "give-role", name, "finance")
        given_notice = await hear()
        tool_names = [
            tool["name"] for tool in read_answer(await by_hand.send_modern("tools/list"))["result"]["tools"]
        ]
        await installation.run_byline("people", "take-role", name, "finance")
        taken_notice = await hear()
        left = [
            tool["name"] for tool in read_answer(await by_hand.send_modern("tools/list"))["result"]["tools"]
        ]

    assert given_notice == taken_notice == [changed_method] * 4
    assert (GUARDED_TOOL in tool_names, GUARDED_TOOL in left) == (True, False)
