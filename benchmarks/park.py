"""Measures a thousand parked runs: the memory of each, and the time until all have finished after the consents."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from benchmarks.arms import Arms, fresh
from benchmarks.figures import Section, goal
from benchmarks.interleaving import each
from benchmarks.machine import resident_kilobytes
from benchmarks.people import People, Person, people_of
from benchmarks.plain import PlainParked, Work
from benchmarks.wake import Waiters, Waiting, parked

_RUNS = 1000
_WARM_UP = 50
_AT_ONCE = 40
_GOAL = 1.2


@dataclass
class Found:
    """The figures of one arm: KiB for a run by process, and seconds until all are parked, answered and done."""

    held: Mapping[str, float]
    parking: float
    answering: float
    draining: float


async def measure() -> Section:
    """Measure each arm on a new server."""
    raw = await _raw()
    byline, one_principal = await _byline()
    return _section(raw, byline, one_principal)


async def _raw() -> Found:
    async with fresh() as arms:
        worker = await arms.plain_worker()
        pids = {"worker": worker.pid, **arms.pids("temporal")}
        warm = await _park_raw(arms, _WARM_UP)
        await _wake_raw(arms, warm)
        await _all_arrived(arms, warm)
        before = _held(pids)
        began = time.monotonic()
        names = await _park_raw(arms, _RUNS)
        parking = time.monotonic() - began
        held = _more(before, _held(pids), _RUNS)
        began = time.monotonic()
        await _wake_raw(arms, names)
        answering = time.monotonic() - began
        await _all_arrived(arms, names)
        return Found(held, parking, answering, time.monotonic() - began)


async def _park_raw(arms: Arms, runs: int) -> list[str]:
    names = [str(uuid.uuid4()) for _ in range(runs)]

    async def park(name: str) -> None:
        work = Work(name, 1)
        await arms.temporal.start_workflow(PlainParked.run, work, id=name, task_queue="plain")
        await parked(arms, name)

    await each(names, park, at_once=_AT_ONCE)
    return names


async def _wake_raw(arms: Arms, names: list[str]) -> None:
    async def wake(name: str) -> None:
        await arms.temporal.get_workflow_handle(name).signal(PlainParked.wake)

    await each(names, wake, at_once=_AT_ONCE)


async def _byline() -> tuple[Found, Found]:
    async with AsyncExitStack() as opened:
        arms = await opened.enter_async_context(fresh())
        await arms.byline()
        people = await opened.enter_async_context(people_of(arms.stack))
        waiters = Waiters(arms, people, arms.stack.mcp_url)
        warm = await _park(waiters, people, _WARM_UP)
        await _one_consent_each(waiters, warm)
        await _all_arrived(arms, [waiter.name for waiter in warm])
        pids = arms.pids("worker", "gateway", "temporal")

        async def found(principal: Person | None) -> Found:
            before, began = _held(pids), time.monotonic()
            waiting = await _park(waiters, people, _RUNS, principal)
            parking, held = time.monotonic() - began, _more(before, _held(pids), _RUNS)
            began = time.monotonic()
            await _one_consent_each(waiters, waiting)
            answering = time.monotonic() - began
            await _all_arrived(arms, [waiter.name for waiter in waiting])
            return Found(held, parking, answering, time.monotonic() - began)

        return await found(None), await found(await people.new())


async def _park(
    waiters: Waiters, people: People, runs: int, principal: Person | None = None
) -> list[Waiting]:
    waiting: list[Waiting] = []
    persons = [principal] * runs if principal else [await people.new() for _ in range(runs)]

    async def park(person: Person) -> None:
        waiting.append(await waiters.park(person))

    await each(persons, park, at_once=_AT_ONCE)
    return waiting


async def _one_consent_each(waiters: Waiters, waiting: list[Waiting]) -> None:
    """Let every person consent once, for all of their waiting runs."""
    await each({waiter.link: waiter for waiter in waiting}.values(), waiters.consent, at_once=_AT_ONCE)


async def _all_arrived(arms: Arms, names: list[str]) -> None:
    await asyncio.gather(*(arms.arrivals(name) for name in names))


def _held(pids: Mapping[str, int]) -> dict[str, int]:
    return {name: resident_kilobytes(pid) for name, pid in pids.items()}


def _more(before: Mapping[str, int], after: Mapping[str, int], runs: int) -> dict[str, float]:
    return {name: (after[name] - before[name]) / runs for name in after}


def _section(raw: Found, byline: Found, one_principal: Found) -> Section:
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
                found.held["worker"],
                found.held.get("gateway", "–"),
                found.held["temporal"],
                found.parking,
                found.answering,
                found.draining,
                found.draining / raw.draining,
            ]
            for name, found in (
                ("raw Temporal, one signal each", raw),
                (f"Byline, {_RUNS:,} people with one consent each", byline),
                (f"Byline, one person with {_RUNS:,} waiting runs, one consent", one_principal),
            )
        ],
    )
    ratio = (byline.held["worker"] + byline.held["gateway"]) / raw.held["worker"]
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
