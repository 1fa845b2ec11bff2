"""Measures the memory for a thousand callers whose runs wait, after they left, and for a second thousand."""

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack

import httpx2

from benchmarks.arms import Arms, fresh
from benchmarks.figures import Section
from benchmarks.interleaving import each
from benchmarks.machine import resident_kilobytes
from benchmarks.mcp_clients import connections, waiting
from benchmarks.people import People, people_of

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

Found = Mapping[str, Mapping[str, float]]


async def measure() -> Section:
    """Measure each protocol era on a new server."""
    section = Section(f"{_CALLERS:,} callers whose runs wait for a sign-in")
    eras = {"2026-07-28": await _era(legacy=False), "2025-11-25": await _era(legacy=True)}
    section.table(
        ["", *(f"{process} KB each" for process in _PROCESSES)],
        [
            [f"{era}: {what}", *(found[process] for process in _PROCESSES)]
            for era, moments in eras.items()
            for what, found in moments.items()
        ],
    )
    return section


async def _era(*, legacy: bool) -> Found:
    async with AsyncExitStack() as opened:
        arms = await opened.enter_async_context(fresh(settings=_LONG))
        await arms.byline()
        people = await opened.enter_async_context(people_of(arms.stack))
        http = await opened.enter_async_context(connections())
        async with AsyncExitStack() as warm:
            await _wait(warm, arms, people, http, _WARM_UP, legacy=legacy)
        before = _memory(arms)
        found = []
        for _ in range(2):
            async with AsyncExitStack() as held:
                await _wait(held, arms, people, http, _CALLERS, legacy=legacy)
                found.append(_more(before, _memory(arms)))
            await asyncio.sleep(_SETTLED_AFTER_SECONDS)
            found.append(_more(before, _memory(arms)))
        return dict(zip(_MOMENTS, found, strict=False))


async def _wait(
    held: AsyncExitStack, arms: Arms, people: People, http: httpx2.AsyncClient, callers: int, *, legacy: bool
) -> None:
    async def wait(token: str) -> None:
        arguments = {"name": str(uuid.uuid4()), "writes": 1}
        call = waiting(http, arms.stack.mcp_url, token, "writes", arguments, legacy=legacy)
        await held.enter_async_context(call)

    await each([(await people.new()).token for _ in range(callers)], wait, at_once=_AT_ONCE)


def _memory(arms: Arms) -> dict[str, int]:
    return {name: resident_kilobytes(pid) for name, pid in arms.pids(*_PROCESSES).items()}


def _more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, float]:
    return {name: (after[name] - before[name]) / _CALLERS for name in after}
