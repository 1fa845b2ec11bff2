"""Takes stock MCP clients of every kind through every wait, and counts what their calls began and what they did."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from sqlmodel import select
from temporalio.client import WorkflowExecutionStatus

from engine.db.tables import RunRow
from engine.identity.model import digest_call
from engine.wire import OUTCOME_META
from examples.chat import Person
from tests.e2e.conversation import ChatClient, Conversation, conversing
from tests.e2e.errands import running_errands
from tests.e2e.world import World
from tests.foreign.mcp_client import Implementation, inspector_call, inspector_protocol, tool_call
from tests.foreign.python_clients import fastmcp_call, python_call

CLIENTS = {
    "2026-07-28 with URL elicitation: mcp": ChatClient(
        "2026-07-28", partial(python_call, mode="auto"), prompts=True
    ),
    "2026-07-28 with URL elicitation: TypeScript client": ChatClient(
        "2026-07-28", partial(tool_call, elicitation=True, by=Implementation.CLIENT_2), prompts=True
    ),
    "2026-07-28 without: fastmcp": ChatClient("2026-07-28", fastmcp_call),
    "2026-07-28 with tasks: TypeScript ext-tasks": ChatClient(
        "2026-07-28",
        partial(tool_call, elicitation=True, by=Implementation.CLIENT_2_WITH_TASKS),
        prompts=True,
        tasks=True,
    ),
    "2025-11-25 with URL elicitation: TypeScript SDK": ChatClient(
        "2025-11-25", partial(tool_call, elicitation=True, by=Implementation.SDK_1), prompts=True
    ),
    "2025-11-25 with URL elicitation: mcp": ChatClient(
        "2025-11-25", partial(python_call, mode="legacy"), prompts=True
    ),
    "2025-11-25 without: Inspector": ChatClient("2025-11-25", inspector_call, tells_version=False),
    "2025-06-18: TypeScript SDK": ChatClient(
        "2025-06-18", partial(tool_call, elicitation=False, by=Implementation.SDK_OF_2025_06_18)
    ),
    "2025-03-26: TypeScript SDK": ChatClient(
        "2025-03-26", partial(tool_call, elicitation=False, by=Implementation.SDK_OF_2025_03_26)
    ),
}
GATHER_WITHIN = 100.0
IMPATIENCE = 0.8


@dataclass
class Seat:
    """One person at one client, who has connected nothing yet."""

    world: World
    client: ChatClient
    who: Person
    token: str
    at_browser: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Cell:
    """One call of the tool at one seat."""

    seat: Seat
    chat: Conversation
    everybody: asyncio.Barrier
    tool: str = "note"
    on: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)

    async def ask(self, on: Sequence[str], then: Sequence[str] = (), **how: Any) -> None:
        """Have the model call the tool for the first time."""
        self.on = [*on, *then]
        self.arguments = {"text": f"note {secrets.token_hex(6)}", "on": [*on], "then": [*then]}
        await self.again(**how)

    async def again(self, **how: Any) -> None:
        """Have the model make the same call."""
        await self.chat.call(self.tool, self.arguments, **how)

    async def sign_in(self, *links: str) -> None:
        """Open the links, and let Byline in at each."""
        async with self.seat.at_browser:
            for link in links:
                page = await self.seat.world.consent(self.seat.who, link, "alice")
                assert "is connected" in page.text

    async def decline(self, link: str) -> None:
        """Open the link and say no."""
        async with self.seat.at_browser:
            await (await self.seat.who.open(link)).form(submit="Decline")

    async def runs(self) -> Sequence[str]:
        """The runs that serve this call."""
        digest = digest_call(self.tool, self.arguments)
        async with self.seat.world.database.open_read_session() as session:
            return (await session.exec(select(RunRow.id).where(RunRow.call == digest))).all()

    async def with_everybody(self, *steps: Callable[[], Awaitable[None]]) -> None:
        """Once every client has come as far as this, have one of them take these steps, and go on after them."""
        async with asyncio.timeout(GATHER_WITHIN):
            if await self.everybody.wait() == 0:
                for step in steps:
                    await step()
            await self.everybody.wait()

    def notes(self) -> dict[str, int]:
        """How many notes of this call each of its systems has."""
        paths = {system: f"/buckets/errands/collections/{system}" for system in self.on}
        records = self.seat.world.kinto.records
        return {system: len(records(path, text=self.arguments["text"])) for system, path in paths.items()}

    async def is_done(self) -> None:
        """See that the outcome is the value, and that all was done once by one run."""
        result = await self.chat.outcome()
        assert result.get("structuredContent") == {"on": self.on}, result
        assert not result.get("isError")
        assert self.notes() == dict.fromkeys(self.on, 1)
        assert len(await self.runs()) == 1

    async def is_not_done(self, error: str) -> None:
        """See that the outcome is this error, and that nothing was done by one run."""
        result = await self.chat.outcome()
        assert result["isError"], result
        assert result["_meta"][OUTCOME_META]["error"] == error
        assert result["content"][0]["text"].startswith(f"{error}: ")
        assert self.notes() == dict.fromkeys(self.on, 0)
        assert len(await self.runs()) == 1


async def two_in_turn(cell: Cell) -> None:
    await cell.ask(["drive"], ["mail"])
    for _ in range(2):
        await cell.sign_in(*await cell.chat.links(1))
    await cell.is_done()


async def three_at_once(cell: Cell) -> None:
    await cell.ask(["board", "chat", "wiki"])
    # All three are asked for before the first of them is answered.
    await cell.sign_in(*await cell.chat.links(3))
    await cell.is_done()


async def declined(cell: Cell) -> None:
    await cell.ask(["forum"], **_decision(cell, "decline"))
    (link,) = await cell.chat.links(1)
    if not cell.seat.client.prompts:
        await cell.decline(link)
    await cell.is_not_done("authorization_denied")


async def put_off(cell: Cell) -> None:
    await cell.ask(["blog"], **_decision(cell, "cancel"))
    links = await cell.chat.links(1)
    if cell.seat.client.prompts and not cell.seat.client.tasks:
        assert cell.chat.waits((await cell.chat.end())["result"]) == links
    await cell.sign_in(*links)
    await cell.is_done()


async def expired(cell: Cell) -> None:
    await cell.ask(["fleeting"])
    await cell.chat.links(1)
    await cell.is_not_done("authorization_expired")


async def slower_than_client_and_rounds(cell: Cell) -> None:
    await cell.ask(["shop"])
    links = await cell.chat.links(1)
    await cell.again(patience=IMPATIENCE)
    gave_up = await cell.chat.end()
    await cell.again()
    if cell.seat.client.tasks:
        # A task has all the time in the world.
        assert await cell.chat.links(1) == links
    else:
        assert cell.chat.waits((await cell.chat.end())["result"]) == links
    await cell.sign_in(*links)
    await cell.is_done()
    if cell.seat.client.prompts:
        assert "error" in gave_up, gave_up
    else:
        # It is told the link as soon as the run waits, and on a quick machine it has that before it gives up.
        assert "error" in gave_up or cell.chat.waits(gave_up["result"]) == links, gave_up


async def gone_and_back(cell: Cell) -> None:
    await cell.ask(["desk"])
    links = await cell.chat.links(1)
    await cell.chat.leave()
    await cell.sign_in(*links)
    await cell.again()
    await cell.is_done()


async def gateway_killed(cell: Cell) -> None:
    await cell.ask(["bank"])
    links = await cell.chat.links(1)
    if not cell.seat.client.prompts:
        await cell.chat.collect()
    world = cell.seat.world
    await cell.with_everybody(partial(world.stack.kill_service, "gateway"), partial(world.restart, "gateway"))
    await cell.sign_in(*links)
    await cell.again()
    await cell.is_done()


async def gateway_stopped_under_a_tool_that_wants_to_be_cancelled(cell: Cell) -> None:
    cell.tool, world = "note_when_told", cell.seat.world
    await cell.ask([])
    async with asyncio.timeout(GATHER_WITHIN):
        while not (runs := await cell.runs()):
            await asyncio.sleep(0.1)
    await cell.with_everybody(partial(world.stack.stop_service, "gateway"), partial(world.restart, "gateway"))
    run = (await world.temporal()).get_workflow_handle(runs[0])
    assert (await run.describe()).status == WorkflowExecutionStatus.RUNNING
    await cell.again()
    await run.signal("word")
    await cell.is_done()


SCENARIOS: list[Callable[[Cell], Awaitable[None]]] = [
    slower_than_client_and_rounds,
    two_in_turn,
    three_at_once,
    declined,
    put_off,
    expired,
    gone_and_back,
    gateway_killed,
    gateway_stopped_under_a_tool_that_wants_to_be_cancelled,
]


def _decision(cell: Cell, decision: str) -> Mapping[str, str]:
    return {"decision": decision} if cell.seat.client.prompts else {}


class Matrix:
    """Every seat, and what happens there: one scenario goes on at all of them at the same time."""

    def __init__(self, world: World, seats: Mapping[str, Seat]) -> None:
        self.seats = seats
        self._world = world
        self._cells: dict[Callable[[Cell], Awaitable[None]], dict[str, asyncio.Task[None]]] = {}

    async def cell(self, scenario: Callable[[Cell], Awaitable[None]], client: str) -> None:
        """Return once the scenario has ended well at this client; it begins at all of them with the first one."""
        if scenario not in self._cells:
            everybody = asyncio.Barrier(len(self.seats))
            self._cells[scenario] = {
                name: asyncio.create_task(self._play(scenario, seat, everybody))
                for name, seat in self.seats.items()
            }
        await self._cells[scenario][client]

    async def _play(
        self, scenario: Callable[[Cell], Awaitable[None]], seat: Seat, everybody: asyncio.Barrier
    ) -> None:
        try:
            async with conversing(seat.client, self._world.stack.mcp_url, seat.token) as chat:
                await scenario(Cell(seat, chat, everybody))
        except BaseException:
            await everybody.abort()
            raise

    async def close(self) -> None:
        """End what still goes on."""
        under_way = [task for cells in self._cells.values() for task in cells.values() if not task.done()]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def matrix(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Matrix]:
    async with running_errands(tmp_path_factory.mktemp("errands")) as world, AsyncExitStack() as stack:

        async def seat(client: ChatClient) -> Seat:
            who = await world.newcomer("alice")
            return Seat(world, client, who, await world.token(who))

        seats = dict(zip(CLIENTS, await asyncio.gather(*map(seat, CLIENTS.values())), strict=True))
        played = Matrix(world, seats)
        stack.push_async_callback(played.close)
        yield played


@pytest.mark.parametrize("client", CLIENTS)
async def test_each_client_speaks_the_version_that_it_stands_for(matrix: Matrix, client: str) -> None:
    seat = matrix.seats[client]
    url = seat.world.stack.mcp_url
    if seat.client.tells_version:
        async with seat.client.begin(url, seat.token, "byline_collect", {"run_id": "none"}) as call:
            protocol = await call.protocol()
    else:
        protocol = await inspector_protocol(url, seat.token)

    assert protocol == seat.client.protocol


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_run_ends_once_and_its_caller_learns_how(
    matrix: Matrix, scenario: Callable[[Cell], Awaitable[None]], client: str
) -> None:
    await matrix.cell(scenario, client)
