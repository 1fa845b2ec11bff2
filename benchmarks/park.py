"""Measures a thousand parked runs: the memory of each, and the time until all have finished after the consents."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from benchmarks.arms import Arms, fresh_arms
from benchmarks.figures import Section, goal
from benchmarks.interleaving import run_for_each
from benchmarks.machine import resident_kilobytes
from benchmarks.people import BenchmarkPeople, BenchmarkPerson, open_people
from benchmarks.plain import PlainParked, Work
from benchmarks.wake import Waiters, WaitingRun, wait_until_parked

_RUNS = 1000
_WARM_UP = 50
_AT_ONCE = 40
_GOAL = 1.2


@dataclass
class ParkFigures:
    """The figures of one arm: KiB for a run by process, and seconds until all are parked, answered and done."""

    memory_kilobytes: Mapping[str, float]
    parking: float
    answering: float
    draining: float


async def measure() -> Section:
    """Measure each arm on a new server."""
    raw = await _raw()
    byline, one_principal = await _byline()
    return _section(raw, byline, one_principal)


async def _raw() -> ParkFigures:
    async with fresh_arms() as arms:
        worker = await arms.plain_worker()
        pids = {"worker": worker.pid, **arms.pids("temporal")}
        warm = await _park_raw(arms, _WARM_UP)
        await _wake_raw(arms, warm)
        await _all_arrived(arms, warm)
        before = _read_memory(pids)
        began = time.monotonic()
        names = await _park_raw(arms, _RUNS)
        parking = time.monotonic() - began
        memory_kilobytes = _more(before, _read_memory(pids), _RUNS)
        began = time.monotonic()
        await _wake_raw(arms, names)
        answering = time.monotonic() - began
        await _all_arrived(arms, names)
        return ParkFigures(memory_kilobytes, parking, answering, time.monotonic() - began)


async def _park_raw(arms: Arms, runs: int) -> list[str]:
    names = [str(uuid.uuid4()) for _ in range(runs)]

    async def park(name: str) -> None:
        work = Work(name, 1)
        await arms.temporal.start_workflow(PlainParked.run, work, id=name, task_queue="plain")
        await wait_until_parked(arms, name)

    await run_for_each(names, park, at_once=_AT_ONCE)
    return names


async def _wake_raw(arms: Arms, names: list[str]) -> None:
    async def wake(name: str) -> None:
        await arms.temporal.get_workflow_handle(name).signal(PlainParked.wake)

    await run_for_each(names, wake, at_once=_AT_ONCE)


async def _byline() -> tuple[ParkFigures, ParkFigures]:
    async with AsyncExitStack() as exit_stack:
        arms = await exit_stack.enter_async_context(fresh_arms())
        await arms.byline()
        people = await exit_stack.enter_async_context(open_people(arms.stack))
        waiters = Waiters(arms, people, arms.stack.mcp_url)
        warm = await _park(waiters, people, _WARM_UP)
        await _one_consent_each(waiters, warm)
        await _all_arrived(arms, [waiter.name for waiter in warm])
        pids = arms.pids("worker", "gateway", "temporal")

        async def measure_arm(principal: BenchmarkPerson | None) -> ParkFigures:
            before, began = _read_memory(pids), time.monotonic()
            waiting = await _park(waiters, people, _RUNS, principal)
            parking, memory_kilobytes = time.monotonic() - began, _more(before, _read_memory(pids), _RUNS)
            began = time.monotonic()
            await _one_consent_each(waiters, waiting)
            answering = time.monotonic() - began
            await _all_arrived(arms, [waiter.name for waiter in waiting])
            return ParkFigures(memory_kilobytes, parking, answering, time.monotonic() - began)

        return await measure_arm(None), await measure_arm(await people.add_person())


async def _park(
    waiters: Waiters, people: BenchmarkPeople, runs: int, principal: BenchmarkPerson | None = None
) -> list[WaitingRun]:
    waiting: list[WaitingRun] = []
    persons = [principal] * runs if principal else [await people.add_person() for _ in range(runs)]

    async def park(person: BenchmarkPerson) -> None:
        waiting.append(await waiters.park(person))

    await run_for_each(persons, park, at_once=_AT_ONCE)
    return waiting


async def _one_consent_each(waiters: Waiters, waiting: list[WaitingRun]) -> None:
    """Let every person consent once, for all of their waiting runs."""
    await run_for_each(
        {waiter.link: waiter for waiter in waiting}.values(), waiters.consent, at_once=_AT_ONCE
    )


async def _all_arrived(arms: Arms, names: list[str]) -> None:
    await asyncio.gather(*(arms.arrivals(name) for name in names))


def _read_memory(pids: Mapping[str, int]) -> dict[str, int]:
    return {name: resident_kilobytes(pid) for name, pid in pids.items()}


def _more(before: Mapping[str, int], after: Mapping[str, int], runs: int) -> dict[str, float]:
    return {name: (after[name] - before[name]) / runs for name in after}


def _section(raw: ParkFigures, byline: ParkFigures, one_principal: ParkFigures) -> Section:
    section = Section(f"{_RUNS:,} parked runs")
    section.table(
        [
            "",
            "worker KB a run",
            "gateway KB a run",
            "server KB a run",
            "all parked s",
            "all answered s",
            "all done s",
            "× raw",
        ],
        [
            [
                name,
                figures.memory_kilobytes["worker"],
                figures.memory_kilobytes.get("gateway", "–"),
                figures.memory_kilobytes["temporal"],
                figures.parking,
                figures.answering,
                figures.draining,
                figures.draining / raw.draining,
            ]
            for name, figures in (
                ("raw Temporal, one signal each", raw),
                (f"Byline, {_RUNS:,} people with one consent each", byline),
                (f"Byline, one person with {_RUNS:,} waiting runs, one consent", one_principal),
            )
        ],
    )
    ratio = (byline.memory_kilobytes["worker"] + byline.memory_kilobytes["gateway"]) / raw.memory_kilobytes[
        "worker"
    ]
    section.say(
        goal(
            ratio, _GOAL, f"For a parked run, worker and gateway use {ratio:.2f} × the memory of a raw worker"
        )
    )
    drain = one_principal.draining / raw.draining
    section.say(
        goal(drain, _GOAL, f"The {_RUNS:,} runs of one consent are done in {drain:.2f} × raw Temporal's time")
    )
    section.say(
        f"Raw Temporal has nothing like the callbacks, code exchanges and grants of {_RUNS:,} consents; "
        f"after the last callback is answered, all runs are done in {byline.draining - byline.answering:.1f} s."
    )
    return section
