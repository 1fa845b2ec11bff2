"""Measures the time from a consent's callback to the run's upstream request, also after the worker was killed."""

import asyncio
import os
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from signal import SIGKILL

from benchmarks.arms import Arms, fresh_arms
from benchmarks.figures import Samples, Section, goal
from benchmarks.mcp_clients import connections, lean
from benchmarks.people import BenchmarkPeople, BenchmarkPerson, ConsentTimes, open_people
from benchmarks.plain import PlainParked, Work

_ROUNDS = 40
_RUNS_OF_THE_DEAD = 5
_GOAL = 1.5
_GOAL_AFTER_SIGKILL = 2.0


@dataclass
class WaitingRun:
    """A run that waits for a person."""

    name: str
    person: BenchmarkPerson
    link: str


class Waiters:
    """Parks runs on Byline, each of a different person, and wakes them."""

    def __init__(self, arms: Arms, people: BenchmarkPeople, http_url: str) -> None:
        self._arms = arms
        self._people = people
        self._url = http_url

    async def park(self, person: BenchmarkPerson | None = None) -> WaitingRun:
        """Start a run, and return once it has told its caller that it waits."""
        person = person or await self._people.add_person()
        name = str(uuid.uuid4())
        async with connections() as http:
            run_result = await lean(http, self._url, person.token)("writes", {"name": name, "writes": 1})
        return WaitingRun(name, person, run_result["links"][0]["url"])

    async def consent(self, waiting: WaitingRun) -> ConsentTimes:
        """Consent as the person."""
        return await self._people.consent(waiting.person, waiting.link)

    async def wake(self, waiting: WaitingRun) -> tuple[ConsentTimes, float]:
        """Consent, and return the callback and when the upstream was written to."""
        consent_times = await self.consent(waiting)
        (acted_at,) = await self._arms.arrivals(waiting.name)
        return consent_times, acted_at


@dataclass
class _WakeTimes:
    completion: Samples = field(default_factory=Samples)
    plain_write: Samples = field(default_factory=Samples)
    from_answer: Samples = field(default_factory=Samples)
    from_sending: Samples = field(default_factory=Samples)


async def measure() -> Section:
    """Wake a parked run of each kind in every round, on one server."""
    wake_times = _WakeTimes()
    async with AsyncExitStack() as exit_stack:
        arms = await exit_stack.enter_async_context(fresh_arms())
        await arms.byline()
        await arms.plain_worker()
        people = await exit_stack.enter_async_context(open_people(arms.stack))
        waiters = Waiters(arms, people, arms.stack.mcp_url)
        for _ in range(5):
            await _round(arms, waiters, _WakeTimes())
        for _ in range(_ROUNDS):
            await _round(arms, waiters, wake_times)
        after_kill = await _after_sigkill(arms, waiters)
        restart_seconds = await _measure_restart(arms, waiters)
    return _section(wake_times, after_kill, restart_seconds)


async def _round(arms: Arms, waiters: Waiters, wake_times: _WakeTimes) -> None:
    for writes, samples in ((0, wake_times.completion), (1, wake_times.plain_write)):
        name = str(uuid.uuid4())
        run = await arms.temporal.start_workflow(
            PlainParked.run, Work(name, writes), id=name, task_queue="plain"
        )
        await wait_until_parked(arms, name)
        began = time.monotonic()
        await run.signal(PlainParked.wake)
        await run.result()
        acted_at = (await arms.arrivals(name))[0] if writes else time.monotonic()
        samples.add(acted_at - began)
    consent_times, acted_at = await waiters.wake(await waiters.park())
    wake_times.from_answer.add(acted_at - consent_times.answered_at)
    wake_times.from_sending.add(acted_at - consent_times.sent_at)


async def wait_until_parked(arms: Arms, workflow_id: str) -> None:
    """Return once a raw run has completed its first workflow task and has none in progress."""
    run = arms.temporal.get_workflow_handle(workflow_id)
    while True:
        description = (await run.describe()).raw_description
        if description.workflow_execution_info.history_length >= 4 and not description.HasField(
            "pending_workflow_task"
        ):
            return
        await asyncio.sleep(0.01)


async def _after_sigkill(arms: Arms, waiters: Waiters) -> float:
    """Return the seconds of the slowest of some runs whose worker was killed, after another worker has started."""
    waiting = [await waiters.park() for _ in range(_RUNS_OF_THE_DEAD)]
    await arms.stack.kill_service("worker")
    await arms.stack.start_service("worker")
    await arms.stack.wait_until_ready("worker")
    wake_results = await asyncio.gather(*(waiters.wake(waiting_run) for waiting_run in waiting))
    return max(acted_at - consent_times.answered_at for consent_times, acted_at in wake_results)


async def _measure_restart(arms: Arms, waiters: Waiters) -> float:
    """Return the seconds after a consent just after the only worker was killed, which the stack restarts."""
    waiting = await waiters.park()
    os.kill(arms.stack.find_pid("worker"), SIGKILL)
    consent_times, acted_at = await waiters.wake(waiting)
    return acted_at - consent_times.answered_at


def _section(wake_times: _WakeTimes, after_kill: float, restart_seconds: float) -> Section:
    section = Section("Waking a parked run")
    reference = wake_times.completion
    section.table(
        ["", "n", "p50 ms", "p95 ms", "× raw p50", "× raw p95"],
        [
            [
                name,
                len(samples),
                samples.p50,
                samples.p95,
                samples.p50 / reference.p50,
                samples.p95 / reference.p95,
            ]
            for name, samples in (
                ("raw Temporal: signal to completion", wake_times.completion),
                ("raw Temporal: signal to a plain activity's request", wake_times.plain_write),
                ("Byline: callback answered to the action's request", wake_times.from_answer),
                ("Byline: callback sent to the action's request", wake_times.from_sending),
            )
        ],
    )
    ratio = wake_times.from_answer.p95 / reference.p95
    section.say(goal(ratio, _GOAL, f"The run acts within {ratio:.2f} × raw Temporal's p95 after the consent"))
    section.say(
        goal(
            after_kill,
            _GOAL_AFTER_SIGKILL,
            f"After their worker was killed and another one started, the slowest of {_RUNS_OF_THE_DEAD} runs acts "
            f"{after_kill:.2f} s after its callback",
        )
    )
    section.say(
        "If the only worker is killed just before the callback and the stack restarts it, the run acts after "
        f"{restart_seconds:.2f} s, most of them the start of a Python process."
    )
    return section
