"""Measures the settings that matter, each against its alternatives, one at a time."""

import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory

from benchmarks.arms import Arms, fresh_arms
from benchmarks.call import noop, raw_noop
from benchmarks.figures import Section
from benchmarks.interleaving import Arm, take_turns
from benchmarks.mcp_clients import connections, lean
from benchmarks.people import open_people
from benchmarks.plain import PlainParked, Work
from benchmarks.plain_worker import Options
from benchmarks.wake import wait_until_parked
from gateway.dev.data_directory import COMPOSE_PATH

_ROUNDS = 12
_BLOCK = 5
_STEPS = 3
_GATEWAY_ON_ASYNCIO = """
import asyncio, os
from engine.settings import Settings
from gateway.server import serve_gateway
print("ready", flush=True)
asyncio.run(serve_gateway(Settings(), os.environ))
"""
_DYNAMIC_CONFIG = "--dynamic-config-value"
_COLUMNS = (
    "",
    "no-op p50 ms",
    "no-op p95 ms",
    f"{_STEPS} steps p50 ms",
    "CPU ms a no-op",
    f"CPU ms {_STEPS} steps",
)
_VARIANTS = {
    "as Byline runs (sandbox, uvloop, 1,000 cached, 5 fixed pollers)": Options(),
    "without the workflow sandbox": Options(sandbox=False),
    "asyncio's own loop": Options(uvloop=False),
    "no cached workflows": Options(cached_workflows=0),
    "autoscaling pollers": Options(autoscaling=True),
}


async def measure() -> Section:
    """Measure dynamic configuration, worker, gateway and sticky timeout."""
    section = Section("The settings")
    for part in (_dynamic_config, _worker, _gateway, _sticky_timeout):
        await part(section)
    return section


async def _dynamic_config(section: Section) -> None:
    async with AsyncExitStack() as exit_stack:
        folder = Path(exit_stack.enter_context(TemporaryDirectory()))
        bare = folder / COMPOSE_PATH.name
        lines = COMPOSE_PATH.read_text().splitlines(keepends=True)
        bare.write_text("".join(line for line in lines if _DYNAMIC_CONFIG not in line))
        rows = []
        for name, file in (
            ("dynamic config as in the stack's file", COMPOSE_PATH),
            ("Temporal's defaults", bare),
        ):
            arms = await exit_stack.enter_async_context(fresh_arms(file))
            worker = await arms.plain_worker()
            rows.append((name, arms, "plain", worker.pid))
        await _compare(section, rows)


async def _worker(section: Section) -> None:
    async with fresh_arms() as arms:
        rows = []
        for number, (name, options) in enumerate(_VARIANTS.items()):
            worker = await arms.plain_worker(f"plain-{number}", options)
            rows.append((name, arms, f"plain-{number}", worker.pid))
        await _compare(section, rows)


async def _compare(section: Section, rows: list[tuple[str, Arms, str, int]]) -> None:
    """Compare raw workers on their own queues, by a no-op and by some steps."""
    noops = [Arm(name, raw_noop(arms, queue), {"worker": pid}) for name, arms, queue, pid in rows]
    steps = [Arm(name, _steps(arms, queue), {"worker": pid}) for name, arms, queue, pid in rows]
    await take_turns([*noops, *steps], rounds=_ROUNDS, block=_BLOCK, warm_up=5)
    section.table(
        _COLUMNS,
        [
            [
                one.name,
                one.samples.p50,
                one.samples.p95,
                more.samples.p50,
                one.cpu_each()["worker"],
                more.cpu_each()["worker"],
            ]
            for one, more in zip(noops, steps, strict=True)
        ],
    )


def _steps(arms: Arms, queue: str) -> Callable[[], Awaitable[object]]:
    async def work() -> None:
        await arms.temporal.execute_workflow(
            "plain_writes", Work("steps", _STEPS), id=str(uuid.uuid4()), task_queue=queue
        )

    return work


async def _gateway(section: Section) -> None:
    """Compare the gateway on both event loops, by two gateways of one stack in turns."""
    async with AsyncExitStack() as exit_stack:
        arms = await exit_stack.enter_async_context(fresh_arms())
        await arms.byline()
        http = await exit_stack.enter_async_context(connections())
        url, program = await arms.second_gateway(_GATEWAY_ON_ASYNCIO)
        rows = []
        for name, origin, pid in (
            ("the gateway on uvloop", arms.stack.gateway_url, arms.stack.find_pid("gateway")),
            ("the gateway on asyncio's own loop", url, program.pid),
        ):
            people = await exit_stack.enter_async_context(open_people(arms.stack, origin))
            call = lean(http, f"{origin}/mcp", (await people.add_person()).token)
            rows.append(Arm(name, noop(call), {"gateway": pid}))
        await take_turns(rows, rounds=_ROUNDS, block=_BLOCK)
    section.table(
        ["", "tools/call p50 ms", "tools/call p95 ms", "CPU ms a call"],
        [[arm.name, arm.samples.p50, arm.samples.p95, arm.cpu_each()["gateway"]] for arm in rows],
    )


async def _sticky_timeout(section: Section) -> None:
    """Measure how long after its signal another worker completes a run that was parked on a killed worker."""
    rows = []
    async with fresh_arms() as arms:
        for name, options in (
            ("sticky timeout 1 s, as Byline runs", Options(sticky_timeout=1.0)),
            ("sticky timeout 10 s, Temporal's default", Options(sticky_timeout=10.0)),
        ):
            queue = f"sticky-{options.sticky_timeout:.0f}"
            worker, run_id = await arms.plain_worker(queue, options), str(uuid.uuid4())
            run = await arms.temporal.start_workflow(
                PlainParked.run, Work("sticky", 0), id=run_id, task_queue=queue
            )
            await wait_until_parked(arms, run_id)
            await worker.stop(SIGKILL)
            await arms.plain_worker(queue, options)
            began = time.monotonic()
            await run.signal(PlainParked.wake)
            await run.result()
            rows.append([name, time.monotonic() - began])
    section.table(["", "seconds from signal to completion after SIGKILL"], rows)
