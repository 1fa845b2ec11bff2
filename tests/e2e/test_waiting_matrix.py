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
from tests.e2e.conversation import ChatClient, Conversation, open_conversation
from tests.e2e.installation import Installation
from tests.e2e.many_systems import run_errands_installation
from tests.support.foreign.mcp_client import Implementation, inspector_call, inspector_protocol, tool_call
from tests.support.foreign.python_clients import fastmcp_call, python_call

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
class ClientSeat:
    """One person at one client, who has connected nothing yet."""

    installation: Installation
    client: ChatClient
    who: Person
    token: str
    at_browser: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class MatrixCell:
    """One call of the tool at one seat."""

    seat: ClientSeat
    chat: Conversation
    everybody: asyncio.Barrier
    tool: str = "note"
    on: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)

    async def ask(self, on: Sequence[str], then: Sequence[str] = (), **how: Any) -> None:
        """Have the model call the tool for the first time."""
        self.on = [*on, *then]
        self.arguments = {"text": f"note {secrets.token_hex(6)}", "on": [*on], "then": [*then]}
        await self.repeat(**how)

    async def repeat(self, **how: Any) -> None:
        """Have the model make the same call."""
        await self.chat.call(self.tool, self.arguments, **how)

    async def sign_in(self, *links: str) -> None:
        """Open the links, and let Byline in at each."""
        async with self.seat.at_browser:
            for link in links:
                page = await self.seat.installation.consent(self.seat.who, link, "alice")
                assert "is connected" in page.text

    async def decline(self, link: str) -> None:
        """Open the link and say no."""
        async with self.seat.at_browser:
            await (await self.seat.who.open(link)).form(submit="Decline")

    async def list_runs(self) -> Sequence[str]:
        """The runs that serve this call."""
        digest = digest_call(self.tool, self.arguments)
        async with self.seat.installation.database.open_read_session() as session:
            return (await session.exec(select(RunRow.id).where(RunRow.call == digest))).all()

    async def run_once_for_everybody(self, *steps: Callable[[], Awaitable[None]]) -> None:
        """Once every client has come as far as this, have one of them take these steps, and go on after them."""
        async with asyncio.timeout(GATHER_WITHIN):
            if await self.everybody.wait() == 0:
                for step in steps:
                    await step()
            await self.everybody.wait()

    def count_notes(self) -> dict[str, int]:
        """How many notes of this call each of its systems has."""
        paths = {system: f"/buckets/errands/collections/{system}" for system in self.on}
        records = self.seat.installation.kinto.list_records
        return {system: len(records(path, text=self.arguments["text"])) for system, path in paths.items()}

    async def check_done(self) -> None:
        """See that the outcome is the value, and that all was done once by one run."""
        result = await self.chat.wait_for_outcome()
        assert result.get("structuredContent") == {"on": self.on}, result
        assert not result.get("isError")
        assert self.count_notes() == dict.fromkeys(self.on, 1)
        assert len(await self.list_runs()) == 1

    async def check_not_done(self, error: str) -> None:
        """See that the outcome is this error, and that nothing was done by one run."""
        result = await self.chat.wait_for_outcome()
        assert result["isError"], result
        assert result["_meta"][OUTCOME_META]["error"] == error
        assert result["content"][0]["text"].startswith(f"{error}: ")
        assert self.count_notes() == dict.fromkeys(self.on, 0)
        assert len(await self.list_runs()) == 1


async def play_two_in_turn(cell: MatrixCell) -> None:
    await cell.ask(["drive"], ["mail"])
    for _ in range(2):
        await cell.sign_in(*await cell.chat.wait_for_links(1))
    await cell.check_done()


async def play_three_at_once(cell: MatrixCell) -> None:
    await cell.ask(["board", "chat", "wiki"])
    # All three are asked for before the first of them is answered.
    await cell.sign_in(*await cell.chat.wait_for_links(3))
    await cell.check_done()


async def play_declined(cell: MatrixCell) -> None:
    await cell.ask(["forum"], **_build_decision(cell, "decline"))
    (link,) = await cell.chat.wait_for_links(1)
    if not cell.seat.client.prompts:
        await cell.decline(link)
    await cell.check_not_done("authorization_denied")


async def play_put_off(cell: MatrixCell) -> None:
    await cell.ask(["blog"], **_build_decision(cell, "cancel"))
    links = await cell.chat.wait_for_links(1)
    if cell.seat.client.prompts and not cell.seat.client.tasks:
        assert cell.chat.read_waiting_links((await cell.chat.wait_for_end())["result"]) == links
    await cell.sign_in(*links)
    await cell.check_done()


async def play_expired(cell: MatrixCell) -> None:
    await cell.ask(["fleeting"])
    await cell.chat.wait_for_links(1)
    await cell.check_not_done("authorization_expired")


async def play_slower_than_client_and_rounds(cell: MatrixCell) -> None:
    await cell.ask(["shop"])
    links = await cell.chat.wait_for_links(1)
    await cell.repeat(patience=IMPATIENCE)
    gave_up = await cell.chat.wait_for_end()
    await cell.repeat()
    if cell.seat.client.tasks:
        # A task has all the time in the world.
        assert await cell.chat.wait_for_links(1) == links
    else:
        assert cell.chat.read_waiting_links((await cell.chat.wait_for_end())["result"]) == links
    await cell.sign_in(*links)
    await cell.check_done()
    if cell.seat.client.prompts:
        assert "error" in gave_up, gave_up
    else:
        # It is told the link as soon as the run waits, and on a quick machine it has that before it gives up.
        assert "error" in gave_up or cell.chat.read_waiting_links(gave_up["result"]) == links, gave_up


async def play_gone_and_back(cell: MatrixCell) -> None:
    await cell.ask(["desk"])
    links = await cell.chat.wait_for_links(1)
    await cell.chat.leave()
    await cell.sign_in(*links)
    await cell.repeat()
    await cell.check_done()


async def play_gateway_killed(cell: MatrixCell) -> None:
    await cell.ask(["bank"])
    links = await cell.chat.wait_for_links(1)
    if not cell.seat.client.prompts:
        await cell.chat.collect()
    installation = cell.seat.installation
    await cell.run_once_for_everybody(
        partial(installation.stack.kill_service, "gateway"), partial(installation.restart, "gateway")
    )
    await cell.sign_in(*links)
    await cell.repeat()
    await cell.check_done()


async def play_gateway_stopped_under_a_tool_that_wants_to_be_cancelled(cell: MatrixCell) -> None:
    cell.tool, installation = "note_when_told", cell.seat.installation
    await cell.ask([])
    async with asyncio.timeout(GATHER_WITHIN):
        while not (runs := await cell.list_runs()):
            await asyncio.sleep(0.1)
    await cell.run_once_for_everybody(
        partial(installation.stack.stop_service, "gateway"), partial(installation.restart, "gateway")
    )
    run = (await installation.connect_temporal()).get_workflow_handle(runs[0])
    assert (await run.describe()).status == WorkflowExecutionStatus.RUNNING
    await cell.repeat()
    await run.signal("word")
    await cell.check_done()


SCENARIOS: list[Callable[[MatrixCell], Awaitable[None]]] = [
    play_slower_than_client_and_rounds,
    play_two_in_turn,
    play_three_at_once,
    play_declined,
    play_put_off,
    play_expired,
    play_gone_and_back,
    play_gateway_killed,
    play_gateway_stopped_under_a_tool_that_wants_to_be_cancelled,
]


def _build_decision(cell: MatrixCell, decision: str) -> Mapping[str, str]:
    return {"decision": decision} if cell.seat.client.prompts else {}


class ScenarioMatrix:
    """Every seat, and what happens there: one scenario goes on at all of them at the same time."""

    def __init__(self, installation: Installation, seats: Mapping[str, ClientSeat]) -> None:
        self.seats = seats
        self._world = installation
        self._cells: dict[Callable[[MatrixCell], Awaitable[None]], dict[str, asyncio.Task[None]]] = {}

    async def play_cell(self, scenario: Callable[[MatrixCell], Awaitable[None]], client: str) -> None:
        """Return once the scenario has ended well at this client; it begins at all of them with the first one."""
        if scenario not in self._cells:
            everybody = asyncio.Barrier(len(self.seats))
            self._cells[scenario] = {
                name: asyncio.create_task(self._play(scenario, seat, everybody))
                for name, seat in self.seats.items()
            }
        await self._cells[scenario][client]

    async def _play(
        self, scenario: Callable[[MatrixCell], Awaitable[None]], seat: ClientSeat, everybody: asyncio.Barrier
    ) -> None:
        try:
            async with open_conversation(seat.client, self._world.stack.mcp_url, seat.token) as chat:
                await scenario(MatrixCell(seat, chat, everybody))
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
async def matrix(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScenarioMatrix]:
    async with (
        run_errands_installation(tmp_path_factory.mktemp("errands")) as installation,
        AsyncExitStack() as stack,
    ):

        async def seat(client: ChatClient) -> ClientSeat:
            who = await installation.add_newcomer("alice")
            return ClientSeat(installation, client, who, await installation.issue_token(who))

        seats = dict(zip(CLIENTS, await asyncio.gather(*map(seat, CLIENTS.values())), strict=True))
        open_matrix = ScenarioMatrix(installation, seats)
        stack.push_async_callback(open_matrix.close)
        yield open_matrix


@pytest.mark.parametrize("client", CLIENTS)
async def test_each_client_speaks_the_version_that_it_stands_for(matrix: ScenarioMatrix, client: str) -> None:
    seat = matrix.seats[client]
    url = seat.installation.stack.mcp_url
    if seat.client.tells_version:
        async with seat.client.begin(url, seat.token, "byline_collect", {"run_id": "none"}) as call:
            protocol = await call.read_protocol()
    else:
        protocol = await inspector_protocol(url, seat.token)

    assert protocol == seat.client.protocol


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_run_ends_once_and_its_caller_learns_how(
    matrix: ScenarioMatrix, scenario: Callable[[MatrixCell], Awaitable[None]], client: str
) -> None:
    await matrix.play_cell(scenario, client)
