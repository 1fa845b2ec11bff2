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
from examples.chat import chat
from tests.e2e.rounds import answer, call_tool
from tests.e2e.world import PATIENCE, TOOL, World, link, outcome, said
from tests.foreign.process import free_port
from tests.gateways import ByHand, messages, started
from tests.proxy import Proxy, proxied

GUARDED = "resolve_billing_dispute"


@dataclass
class Pair:
    """Two gateways that people and clients reach under one address, each in turn."""

    world: World
    proxy: Proxy
    log: Path
    _processes: dict[int, tuple[AsyncExitStack, asyncio.subprocess.Process]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """What an MCP client is given."""
        return self.world.stack.mcp_url

    async def start(self, place: int) -> None:
        """Start the gateway at this place, where it does not run."""
        if place in self._processes:
            return
        environment = {
            **self.world.stack.build_environment("gateway"),
            "BYLINE_GATEWAY__PUBLIC_URL": self.world.stack.gateway_url,
            "BYLINE_GATEWAY__PORT": str(self.proxy.gateways[place]),
            "BYLINE_GATEWAY__HOLD_WITHIN": "4",
            "BYLINE_POLICY_FILE": str(self.log.with_name("policy.yml")),
        }
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(started(environment, self.log))
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
async def shared(world: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    proxy = Proxy([free_port(), free_port()])
    folder = tmp_path_factory.mktemp("gateways")
    pair = Pair(world, proxy, folder / "gateways.log")
    (folder / "policy.yml").write_text(f"tools: {{{GUARDED}: {{roles: [finance]}}}}")
    await world.stack.stop_service("gateway")
    try:
        async with proxied(proxy, int(world.stack.variables["GATEWAY_PORT"])):
            yield pair
            await pair.close()
    finally:
        await world.restart("gateway")


@pytest_asyncio.fixture(loop_scope="session")
async def pair(shared: Pair) -> Pair:
    """Both at work, and a proxy that takes them in turn."""
    await asyncio.gather(shared.start(0), shared.start(1))
    shared.proxy.sticky, shared.proxy.only = False, None
    shared.proxy.served.clear()
    return shared


async def test_people_and_modern_clients_need_no_gateway_of_their_own(pair: Pair, world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    async with chat(alice, pair.url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": "anywhere"}))
        page = await world.consent(alice, await link(alice), "alice")
        alice.has_signed_in.set()

    assert "Kinto is connected" in page.text
    assert said(calling.result()) == {"record": record, "notes": ["anywhere"]}
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1
    assert min(pair.proxy.served[0], pair.proxy.served[1]) > 5


async def test_a_call_begun_at_one_gateway_goes_on_at_the_other(pair: Pair, world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    token = await world.token(alice)
    arguments = {"record": record, "note": "once"}
    pair.proxy.only = 0
    first = answer(await call_tool(pair.url, token, TOOL, arguments))["result"]
    (question,) = first["inputRequests"]
    pair.proxy.only = 1
    await world.consent(alice, first["inputRequests"][question]["params"]["url"], "alice")
    accepted = {"requestState": first["requestState"], "inputResponses": {question: {"action": "accept"}}}

    second = answer(await call_tool(pair.url, token, TOOL, arguments, **accepted))["result"]

    assert second["structuredContent"]["notes"] == ["once"]
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


@pytest.mark.parametrize("carries", ["the state of its call", "nothing but the same call"])
async def test_when_a_gateway_is_killed_in_a_call_the_next_try_attaches_to_its_run_at_the_other(
    pair: Pair, world: World, carries: str
) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    token = await world.token(alice)
    arguments = {"record": record, "note": "survives"}
    pair.proxy.only = 0
    first = answer(await call_tool(pair.url, token, TOOL, arguments))["result"]
    (question,) = first["inputRequests"]
    accepted = {"requestState": first["requestState"], "inputResponses": {question: {"action": "accept"}}}
    again: dict[str, Any] = accepted if carries == "the state of its call" else {}
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(call_tool(pair.url, token, TOOL, arguments, **accepted))
        async with asyncio.timeout(30):
            while not pair.proxy.under_way:
                await asyncio.sleep(0.01)
        await pair.kill(0)
    pair.proxy.only = None
    await world.consent(alice, first["inputRequests"][question]["params"]["url"], "alice")

    result = answer(await call_tool(pair.url, token, TOOL, arguments, **again))["result"]

    assert waiting.result().status_code == 502
    assert result["structuredContent"]["notes"] == ["survives"]
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


async def test_sessions_of_older_protocols_work_where_the_proxy_goes_by_their_header(
    pair: Pair, world: World
) -> None:
    pair.proxy.sticky = True
    alice, record = await world.newcomer("alice"), world.record()
    await world.token(alice)
    before = dict(pair.proxy.served)
    async with AsyncExitStack() as clients:
        several = [
            await clients.enter_async_context(chat(alice, pair.url, elicitation=False, mode="legacy"))
            for _ in range(4)
        ]
        listed = [await each.list_tools() for each in several]
        waits = said(await several[0].call_tool(TOOL, {"record": record, "note": "older"}))
        await world.consent(alice, waits["links"][0]["url"], "alice")
        collected = await outcome(several[1], waits["run_id"])

    assert [TOOL in {tool.name for tool in each.tools} for each in listed] == [True] * 4
    assert collected == {"record": record, "notes": ["older"]}
    assert world.authors(record) == ["alice"]
    assert all(pair.proxy.served[place] > before.get(place, 0) for place in (0, 1))


async def test_a_session_that_no_gateway_knows_is_begun_anew_and_finds_its_run(
    pair: Pair, world: World
) -> None:
    pair.proxy.sticky = True
    alice, record = await world.newcomer("alice"), world.record()
    token = await world.token(alice)
    call = {"name": TOOL, "arguments": {"record": record, "note": "once"}}
    async with httpx2.AsyncClient(timeout=60) as http:
        by_hand = ByHand(http, pair.url, token)
        pair.proxy.only = 0
        session = await by_hand.open_session()
        waits = answer(await by_hand.legacy(session, "tools/call", call))["result"]["_meta"][OUTCOME_META]
        await pair.kill(0)
        pair.proxy.only = None
        lost = await by_hand.legacy(session, "tools/call", call)
        anew = await by_hand.open_session()
        also_waits = answer(await by_hand.legacy(anew, "tools/call", call))["result"]["_meta"][OUTCOME_META]
        await world.consent(alice, waits["links"][0]["url"], "alice")
        result = answer(await by_hand.legacy(anew, "tools/call", call))["result"]["structuredContent"]

    assert lost.status_code == 404
    assert also_waits["run_id"] == waits["run_id"]
    assert result["notes"] == ["once"]
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


async def test_whoever_listens_hears_of_a_role_that_another_process_gives_or_takes_at_whichever_gateway(
    pair: Pair, world: World
) -> None:
    pair.proxy.sticky = True
    alice = await world.newcomer("alice")
    token = await world.token(alice)
    name = f"Alice {alice.username[-6:]}"
    changed = "notifications/tools/list_changed"
    async with AsyncExitStack() as open_:
        by_hand = ByHand(await open_.enter_async_context(httpx2.AsyncClient(timeout=60)), pair.url, token)
        streams = []
        for place in (0, 1):
            pair.proxy.only = place
            streams.append(await open_.enter_async_context(by_hand.listening()))
            session = await by_hand.open_session()
            streams.append(messages(await open_.enter_async_context(by_hand.stream(session))))

        async def hear() -> list[str]:
            async with asyncio.timeout(PATIENCE):
                return [(await anext(stream))["method"] for stream in streams]

        await world.byline("people", "give-role", name, "finance")
        given = await hear()
        listed = [tool["name"] for tool in answer(await by_hand.modern("tools/list"))["result"]["tools"]]
        await world.byline("people", "take-role", name, "finance")
        taken = await hear()
        left = [tool["name"] for tool in answer(await by_hand.modern("tools/list"))["result"]["tools"]]

    assert given == taken == [changed] * 4
    assert (GUARDED in listed, GUARDED in left) == (True, False)
