"""The worker process: runs the registry's workflows and activities behind Byline's interceptors until told to stop."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import structlog
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import (
    ActivityInboundInterceptor,
    Interceptor,
    UnsandboxedWorkflowRunner,
    Worker,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from engine.errors import UNFIT, BylineError
from engine.interceptors.activity import ActivityGuard
from engine.interceptors.roots import Roots
from engine.interceptors.workflow import workflow_interceptor
from engine.registry import Registry
from engine.services import Services, open_services
from engine.settings import Settings
from engine.temporal import connect, ensure_search_attributes
from engine.wire import WITHDRAW_ACTIVITY

# Data that does not fit fails a run for good; a mistake in code waits for the next deployment, as Temporal has it.
_FINAL = (BylineError, *UNFIT)
_OUTSIDE_SANDBOX = ("engine", "pydantic", "pydantic_core", "httpx2", "structlog")

log = structlog.get_logger()


class BylineInterceptor(Interceptor):
    """Byline's side of a worker: identity carried, actions guarded, waits parked."""

    def __init__(self, services: Services, temporal: Client) -> None:
        self._services = services
        self._temporal = temporal
        self._roots = Roots()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Guard an activity."""
        return ActivityGuard(next, self._services, self._roots, self._temporal)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor]:
        """Carry identity through a workflow."""
        del input
        return workflow_interceptor(self._roots)


def build_worker(settings: Settings, services: Services, temporal: Client, registry: Registry) -> Worker:
    """A worker on the settings' task queue."""
    return Worker(
        temporal,
        task_queue=settings.temporal.task_queue,
        workflows=list(registry.workflows.values()),
        activities=[*registry.activities.values(), _withdraw(services)],
        interceptors=[BylineInterceptor(services, temporal)],
        workflow_runner=_runner(settings),
        workflow_failure_exception_types=_FINAL,
        max_cached_workflows=settings.temporal.max_cached_workflows,
        max_concurrent_activities=settings.temporal.max_concurrent_activities,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=settings.temporal.sticky_timeout),
        graceful_shutdown_timeout=timedelta(seconds=settings.temporal.graceful_shutdown),
    )


async def run_worker(settings: Settings, environment: Mapping[str, str]) -> None:
    """Work until SIGTERM or SIGINT; actions under way get the settings' time to finish."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = Registry(settings.modules)
    temporal = await connect(settings.temporal)
    await ensure_search_attributes(temporal)
    async with (
        open_services(settings, environment) as services,
        build_worker(settings, services, temporal, registry),
    ):
        log.info("worker_ready", tools=sorted(registry.tools), task_queue=settings.temporal.task_queue)
        await stop.wait()


def _withdraw(services: Services) -> Callable[[str], Awaitable[None]]:
    @activity.defn(name=WITHDRAW_ACTIVITY)
    async def withdraw(waiter: str) -> None:
        await services.authorization.withdraw([waiter])

    return withdraw


def _runner(settings: Settings) -> WorkflowRunner:
    if not settings.temporal.workflow_sandbox:
        return UnsandboxedWorkflowRunner()
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(*_OUTSIDE_SANDBOX)
    )
