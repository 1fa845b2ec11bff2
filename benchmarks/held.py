"""Measures the memory for a thousand callers whose runs wait, after they left, and for a second thousand."""

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack

import httpx2

from benchmarks.arms import Arms, fresh_arms
from benchmarks.figures import Section
from benchmarks.interleaving import run_for_each
from benchmarks.machine import resident_kilobytes
from benchmarks.mcp_clients import connections, waiting
from benchmarks.people import BenchmarkPeople, open_people

_CALLERS = 1000
_WARM_UP = 50
_AT_ONCE = 20
_PROCESSES = ("gateway", "worker", "temporal")
_SETTLED_AFTER_SECONDS = 5.0
_LONG = {
    "BYLINE_GATEWAY__ANSWER_WITHIN": "1800",
    "BYLINE_GATEWAY__HOLD_WITHIN": "1800",
    "BYLINE_GATEWAY__LIMITS__SESSIONS": "5000",
}

_MOMENTS = (
    "connection held",
    "the same runs, connections closed",
    "as many additional callers, connection held",
)

MemoryFigures = Mapping[str, Mapping[str, float]]


async def measure() -> Section:
    """Measure each protocol era on a new server."""
    section = Section(f"{_CALLERS:,} callers whose runs wait for a sign-in")
    eras = {"2026-07-28": await _era(legacy=False), "2025-11-25": await _era(legacy=True)}
    section.table(
        ["", *(f"{process} KB each" for process in _PROCESSES)],
        [
            [f"{era}: {what}", *(figures[process] for process in _PROCESSES)]
            for era, moments in eras.items()
            for what, figures in moments.items()
        ],
    )
    return section


async def _era(*, legacy: bool) -> MemoryFigures:
    async with AsyncExitStack() as arms_stack:
        arms = await arms_stack.enter_async_context(fresh_arms(settings=_LONG))
        await arms.byline()
        people = await arms_stack.enter_async_context(open_people(arms.stack))
        http = await arms_stack.enter_async_context(connections())
        async with AsyncExitStack() as warm:
            await _wait(warm, arms, people, http, _WARM_UP, legacy=legacy)
        before = _memory(arms)
        eras = []
        for _ in range(2):
            async with AsyncExitStack() as exit_stack:
                await _wait(exit_stack, arms, people, http, _CALLERS, legacy=legacy)
                eras.append(_more(before, _memory(arms)))
            await asyncio.sleep(_SETTLED_AFTER_SECONDS)
            eras.append(_more(before, _memory(arms)))
        return dict(zip(_MOMENTS, eras, strict=False))


async def _wait(
    exit_stack: AsyncExitStack,
    arms: Arms,
    people: BenchmarkPeople,
    http: httpx2.AsyncClient,
    callers: int,
    *,
    legacy: bool,
) -> None:
    async def wait(token: str) -> None:
        arguments = {"name": str(uuid.uuid4()), "writes": 1}
        call = waiting(http, arms.stack.mcp_url, token, "writes", arguments, legacy=legacy)
        await exit_stack.enter_async_context(call)

    await run_for_each([(await people.add_person()).token for _ in range(callers)], wait, at_once=_AT_ONCE)


def _memory(arms: Arms) -> dict[str, int]:
    return {name: resident_kilobytes(pid) for name, pid in arms.pids(*_PROCESSES).items()}


def _more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, float]:
    return {name: (after[name] - before[name]) / _CALLERS for name in after}
