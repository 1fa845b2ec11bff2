"""Measures a tools/call of a tool that does nothing, and start and result of the same workflow on raw Temporal."""

import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks.arms import Arms, fresh_arms
from benchmarks.figures import Section, goal
from benchmarks.interleaving import Arm, take_turns
from benchmarks.mcp_clients import Call, connections, lean, open_packaged_client
from benchmarks.people import open_people

_ROUNDS = 25
_BLOCK = 8
_GOAL = 1.25
_PROCESSES = ("client", "gateway", "worker", "server")


async def measure() -> Section:
    """Measure five arms in turns on one server."""
    async with AsyncExitStack() as exit_stack:
        arms = await exit_stack.enter_async_context(fresh_arms())
        await arms.byline()
        plain = await arms.plain_worker()
        bare = await arms.program("benchmarks.bare_mcp")
        people = await exit_stack.enter_async_context(open_people(arms.stack))
        token = (await people.add_person()).token
        http = await exit_stack.enter_async_context(connections())
        byline_url, bare_url = arms.stack.mcp_url, f"http://127.0.0.1:{bare.ready_line}/mcp"
        client, server = {"client": os.getpid()}, {"server": arms.stack.find_pid("temporal")}
        byline = {**client, **server, **arms.pids("gateway", "worker")}
        rows = [
            Arm(
                "raw Temporal: start and result",
                raw_noop(arms, "plain"),
                {**client, **server, "worker": plain.pid},
            ),
            Arm("Byline: tools/call", noop(lean(http, byline_url, token)), byline),
            Arm(
                "Byline: tools/call, the `mcp` package's client",
                noop(await exit_stack.enter_async_context(open_packaged_client(byline_url, token))),
                byline,
            ),
            Arm(
                "a bare server of the `mcp` package: trivial tool",
                noop(lean(http, bare_url)),
                {**client, "gateway": bare.pid},
            ),
            Arm(
                "the same, the `mcp` package's client",
                noop(await exit_stack.enter_async_context(open_packaged_client(bare_url))),
                {**client, "gateway": bare.pid},
            ),
        ]
        await take_turns(rows, rounds=_ROUNDS, block=_BLOCK)
    return _section(rows)


def noop(call: Call) -> Callable[[], Awaitable[object]]:
    """Call the tool that does nothing."""

    async def work() -> None:
        assert await call("noop", {}) == {"writes": 0}, "the tool did not answer"

    return work


def raw_noop(arms: Arms, queue: str) -> Callable[[], Awaitable[object]]:
    """Start the raw workflow that does nothing, and wait for its result."""

    async def work() -> None:
        await arms.temporal.execute_workflow("plain_noop", id=f"plain-{uuid.uuid4()}", task_queue=queue)

    return work


def _section(rows: list[Arm]) -> Section:
    raw, byline = rows[0].samples, rows[1].samples
    section = Section("tools/call of a no-op tool")
    section.table(
        ["", "n", "p50 ms", "p95 ms", "× raw p50", *(f"CPU ms {process}" for process in _PROCESSES)],
        [
            [
                arm.name,
                len(arm.samples),
                arm.samples.p50,
                arm.samples.p95,
                arm.samples.p50 / raw.p50,
                *(arm.cpu_each().get(process, "–") for process in _PROCESSES),
            ]
            for arm in rows
        ],
    )
    ratio = byline.p50 / raw.p50
    section.say(goal(ratio, _GOAL, f"A call takes {ratio:.2f} × raw Temporal's p50"))
    share = rows[4].samples.p50 - rows[3].samples.p50
    section.say(
        f"The protocol alone (a bare server and a lean client) is {rows[3].samples.p50:.1f} ms of a call, "
        f"and the `mcp` package's client adds {share:.1f} ms."
    )
    return section
