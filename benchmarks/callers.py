"""Measures tools/call by 1, 10 and 50 concurrent callers in both protocol eras, a bare MCP server and raw Temporal."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from benchmarks.arms import fresh_arms
from benchmarks.call import noop, raw_noop
from benchmarks.figures import Samples, Section
from benchmarks.mcp_clients import connections, lean, session
from benchmarks.people import open_people

_AT_ONCE = (1, 10, 50)
_CALLS = 100
_ROUNDS = 3

Work = Callable[[], Awaitable[object]]


@dataclass
class _ParallelArm:
    name: str
    callers: Sequence[Work]
    samples: dict[int, Samples] = field(
        default_factory=lambda: {call_count: Samples() for call_count in _AT_ONCE}
    )
    seconds: dict[int, float] = field(default_factory=lambda: dict.fromkeys(_AT_ONCE, 0.0))

    async def call(self, at_once: int) -> None:
        """Make this many calls. Each caller makes one call after the other."""
        left = iter(range(_CALLS))
        samples = self.samples[at_once]

        async def calls(work: Work) -> None:
            for _ in left:
                began = time.perf_counter()
                await work()
                samples.add(time.perf_counter() - began)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for work in self.callers[:at_once]:
                group.create_task(calls(work))
        self.seconds[at_once] += time.perf_counter() - began


async def measure() -> Section:
    """Measure every arm in turns on one server, for every number of callers."""
    async with AsyncExitStack() as exit_stack:
        arms = await exit_stack.enter_async_context(fresh_arms())
        await arms.byline()
        await arms.plain_worker()
        bare = await arms.program("benchmarks.bare_mcp")
        people = await exit_stack.enter_async_context(open_people(arms.stack))
        http = await exit_stack.enter_async_context(connections())
        url, bare_url, most = arms.stack.mcp_url, f"http://127.0.0.1:{bare.ready_line}/mcp", max(_AT_ONCE)
        # Concurrent equal calls of one person attach to one run, so each caller is a different person.
        tokens = [(await people.add_person()).token for _ in range(most)]
        rows = [
            _ParallelArm("raw Temporal: start and result", [raw_noop(arms, "plain")] * most),
            _ParallelArm("Byline, 2026-07-28", [noop(lean(http, url, token)) for token in tokens]),
            _ParallelArm("Byline, 2025-11-25", [noop(await session(http, url, token)) for token in tokens]),
            _ParallelArm("bare MCP server, 2026-07-28", [noop(lean(http, bare_url)) for _ in tokens]),
            _ParallelArm(
                "bare MCP server, 2025-11-25", [noop(await session(http, bare_url)) for _ in tokens]
            ),
        ]
        for arm in rows:
            for work in arm.callers:
                await work()
        for _ in range(_ROUNDS):
            for at_once in _AT_ONCE:
                for arm in rows:
                    await arm.call(at_once)
    return _section(rows)


def _section(rows: Sequence[_ParallelArm]) -> Section:
    section = Section("Callers at once")
    for at_once in _AT_ONCE:
        raw = rows[0]
        section.table(
            [f"{at_once} at once", "n", "p50 ms", "p95 ms", "× raw p50", "calls/s", "× raw calls/s"],
            [
                [
                    arm.name,
                    len(arm.samples[at_once]),
                    arm.samples[at_once].p50,
                    arm.samples[at_once].p95,
                    arm.samples[at_once].p50 / raw.samples[at_once].p50,
                    len(arm.samples[at_once]) / arm.seconds[at_once],
                    raw.seconds[at_once] / arm.seconds[at_once],
                ]
                for arm in rows
            ],
        )
    return section
