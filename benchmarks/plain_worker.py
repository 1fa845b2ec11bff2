"""The worker process of the raw workflows. Its options choose what the suite of settings varies.

python -m benchmarks.plain_worker ADDRESS NAMESPACE QUEUE UPSTREAM_URL OPTIONS
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

import httpx2
import uvloop
from pydantic import BaseModel, ConfigDict
from temporalio import activity
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import (
    PollerBehavior,
    PollerBehaviorAutoscaling,
    PollerBehaviorSimpleMaximum,
    UnsandboxedWorkflowRunner,
    Worker,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from benchmarks.plain import WRITE, PlainNoop, PlainParked, PlainWrites


class Options(BaseModel):
    """The options of a raw worker. The defaults are those of Byline's worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sandbox: bool = True
    uvloop: bool = True
    autoscaling: bool = False
    cached_workflows: int = 1000
    sticky_timeout: float = 1.0


async def run(address: str, namespace: str, queue: str, upstream_url: str, options: Options) -> None:
    """Run the worker until SIGTERM, and print `ready` once it polls."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    temporal = await Client.connect(address, namespace=namespace, data_converter=pydantic_data_converter)
    async with (
        httpx2.AsyncClient(base_url=upstream_url, trust_env=False) as http,
        Worker(
            temporal,
            task_queue=queue,
            workflows=[PlainNoop, PlainWrites, PlainParked],
            activities=[_write(http)],
            workflow_runner=SandboxedWorkflowRunner() if options.sandbox else UnsandboxedWorkflowRunner(),
            max_cached_workflows=options.cached_workflows,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=options.sticky_timeout),
            workflow_task_poller_behavior=_pollers(options),
            activity_task_poller_behavior=_pollers(options),
        ),
    ):
        print("ready", flush=True)
        await stop.wait()


def _write(http: httpx2.AsyncClient) -> Callable[[str], Awaitable[None]]:
    @activity.defn(name=WRITE)
    async def write(name: str) -> None:
        (await http.post(f"/things/{name}")).raise_for_status()

    return write


def _pollers(options: Options) -> PollerBehavior:
    return PollerBehaviorAutoscaling() if options.autoscaling else PollerBehaviorSimpleMaximum(5)


if __name__ == "__main__":
    to, within, on, writing_to, options_json = sys.argv[1:]
    options = Options.model_validate_json(options_json)
    work = run(to, within, on, writing_to, options)
    uvloop.run(work) if options.uvloop else asyncio.run(work)
