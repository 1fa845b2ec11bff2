"""Measures arms in turns of short blocks, so that changes of the server and the machine affect all arms equally."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.figures import Samples
from benchmarks.machine import CpuMeter

T = TypeVar("T")


@dataclass
class Arm:
    """One of the compared ways to do the work, and its processes."""

    name: str
    work: Callable[[], Awaitable[object]]
    pids: Mapping[str, int]
    samples: Samples = field(default_factory=Samples)
    cpu: CpuMeter = field(init=False)

    def __post_init__(self) -> None:
        self.cpu = CpuMeter(self.pids)

    def cpu_each(self) -> dict[str, float]:
        """Return the processor time for one piece of work in milliseconds, by process."""
        return self.cpu.milliseconds_each(len(self.samples))


async def take_turns(arms: Iterable[Arm], *, rounds: int, block: int, warm_up: int = 10) -> None:
    """Warm up every arm. Then, in every round, let each arm do a block of work, one piece after the other."""
    arms = list(arms)
    for arm in arms:
        for _ in range(warm_up):
            await arm.work()
    for _ in range(rounds):
        for arm in arms:
            with arm.cpu:
                for _ in range(block):
                    began = time.perf_counter()
                    await arm.work()
                    arm.samples.add(time.perf_counter() - began)


async def run_for_each(items: Iterable[T], work: Callable[[T], Awaitable[object]], *, at_once: int) -> None:
    """Do the work for every item, with a limit on concurrent ones."""
    left = iter(items)

    async def next_ones() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(next_ones())
