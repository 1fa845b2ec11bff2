"""Measures what Byline adds to an action: the same write by Byline's action and by a plain activity."""

import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count, pairwise

from benchmarks.arms import Arms, fresh_arms
from benchmarks.figures import Samples, Section, goal
from benchmarks.interleaving import Arm, take_turns
from benchmarks.mcp_clients import Call, connections, lean
from benchmarks.people import open_people
from benchmarks.plain import Work

_ROUNDS = 25
_BLOCK = 1
_WRITES = 20
_GOAL_MS = 2.0
_PROCESSES = ("worker", "server", "upstream")


async def measure() -> Section:
    """Alternate runs of many writes. The time of a write is that from its arrival upstream to the next arrival."""
    async with AsyncExitStack() as exit_stack:
        arms = await exit_stack.enter_async_context(fresh_arms())
        await arms.byline()
        plain = await arms.plain_worker()
        people = await exit_stack.enter_async_context(open_people(arms.stack))
        http = await exit_stack.enter_async_context(connections())
        person = await people.add_person()
        call = lean(http, arms.stack.mcp_url, person.token)
        run_result = await call("writes", {"name": "first", "writes": 1})
        await people.consent(person, run_result["links"][0]["url"])
        await arms.arrivals("first")
        shared_arguments = {
            "server": arms.stack.find_pid("temporal"),
            "upstream": arms.upstream_pid,
            "client": os.getpid(),
        }
        byline, raw = Samples(), Samples()
        rows = [
            Arm("plain activity", _raw_run(arms, raw), {**shared_arguments, "worker": plain.pid}),
            Arm("Byline's action", _run(arms, call, byline), {**shared_arguments, **arms.pids("worker")}),
        ]
        await take_turns(rows, rounds=_ROUNDS, block=_BLOCK, warm_up=1)
    return _section(rows, [raw, byline])


def _run(arms: Arms, call: Call, periods: Samples) -> Callable[[], Awaitable[object]]:
    numbers = count()

    async def work() -> None:
        name = f"byline-{next(numbers)}"
        assert await call("writes", {"name": name, "writes": _WRITES}) == {"writes": _WRITES}
        periods.add(*await _periods(arms, name))

    return work


def _raw_run(arms: Arms, periods: Samples) -> Callable[[], Awaitable[object]]:
    numbers = count()

    async def work() -> None:
        name = f"plain-{next(numbers)}"
        await arms.temporal.execute_workflow(
            "plain_writes", Work(name, _WRITES), id=str(uuid.uuid4()), task_queue="plain"
        )
        periods.add(*await _periods(arms, name))

    return work


async def _periods(arms: Arms, name: str) -> list[float]:
    return [later - earlier for earlier, later in pairwise(await arms.arrivals(name, _WRITES))]


def _section(rows: list[Arm], periods: list[Samples]) -> Section:
    raw, byline = periods
    section = Section("Cost of an action")
    section.table(
        ["", "n", "p50 ms", "p95 ms", *(f"CPU ms {process}" for process in _PROCESSES)],
        [
            [
                arm.name,
                len(samples),
                samples.p50,
                samples.p95,
                *(arm.cpu_each()[process] / _WRITES for process in _PROCESSES),
            ]
            for arm, samples in zip(rows, periods, strict=True)
        ],
    )
    added_seconds = byline.p50 - raw.p50
    section.say(
        goal(
            added_seconds,
            _GOAL_MS,
            f"Identity, vault and audit add {added_seconds:.2f} ms to an action's p50",
        )
    )
    return section
