"""The worker process: runs the registry's workflows and activities behind Byline's interceptors until a signal."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

import structlog
from temporalio import activity
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import (
    ActivityInboundInterceptor,
    Interceptor,
    UnsandboxedWorkflowRunner,
    Worker,
    WorkerDeploymentConfig,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from engine.errors import UNFIT, BylineError
from engine.interceptors.activity import ActivityGuard
from engine.interceptors.roots import Roots
from engine.interceptors.workflow import workflow_interceptor
from engine.notifications.workflow import NotifyWorkflow, Owed
from engine.questions.asking import Answered, Asked
from engine.questions.questions import current_place
from engine.registry import Registry
from engine.schedules.firing import Firings
from engine.schedules.schedules import Schedules
from engine.services import Services, open_services
from engine.settings import Settings, TemporalSettings
from engine.temporal import connect, ensure_search_attributes
from engine.upkeep.schedule import ensure_upkeep
from engine.upkeep.upkeep import Upkeep
from engine.upkeep.workflow import UpkeepWorkflow
from engine.wire import (
    ASK_ACTIVITY,
    CHANGED_ACTIVITY,
    ENROLL_ACTIVITY,
    NOTIFY_ACTIVITY,
    UPKEEP_ACTIVITY,
    WITHDRAW_ACTIVITY,
)

# Data errors fail a run for good. Other exceptions suspend it until the next deployment, as Temporal does by default.
_FINAL = (BylineError, *UNFIT)
_OUTSIDE_SANDBOX = ("engine", "pydantic", "pydantic_core", "httpx2", "structlog")

log = structlog.get_logger()


class BylineInterceptor(Interceptor):
    """The interceptor of a worker: it propagates identity, guards activities and parks waits."""

    def __init__(self, services: Services, temporal: Client) -> None:
        self._services = services
        self._temporal = temporal
        self._roots = Roots()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Return the guard of activities."""
        return ActivityGuard(next, self._services, self._roots, self._temporal)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor]:
        """Return the interceptor that propagates identity through a workflow."""
        del input
        return workflow_interceptor(self._roots)


def build_worker(settings: Settings, services: Services, temporal: Client, registry: Registry) -> Worker:
    """Build a worker on the task queue of the settings."""
    return Worker(
        temporal,
        task_queue=settings.temporal.task_queue,
        workflows=[*registry.workflows.values(), NotifyWorkflow, UpkeepWorkflow],
        activities=[
            *registry.activities.values(),
            _withdraw(services),
            _ask(services),
            _changed(services),
            _enroll(services, temporal),
            _deliver(services, registry),
            _keep_up(services, temporal),
        ],
        interceptors=[BylineInterceptor(services, temporal)],
        workflow_runner=_runner(settings),
        deployment_config=_version(settings.temporal),
        workflow_failure_exception_types=_FINAL,
        max_cached_workflows=settings.temporal.max_cached_workflows,
        max_concurrent_activities=settings.temporal.max_concurrent_activities,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=settings.temporal.sticky_timeout),
        graceful_shutdown_timeout=timedelta(seconds=settings.temporal.graceful_shutdown),
    )


async def run_worker(settings: Settings, environment: Mapping[str, str]) -> None:
    """Run a worker until SIGTERM or SIGINT; running actions then get the graceful shutdown time to finish."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = Registry(settings.modules)
    temporal = await connect(settings.temporal)
    await ensure_search_attributes(temporal)
    await ensure_upkeep(temporal, settings.temporal.task_queue)
    async with (
        open_services(settings, environment) as services,
        build_worker(settings, services, temporal, registry),
    ):
        log.info("worker_ready", tools=sorted(registry.tools), task_queue=settings.temporal.task_queue)
        await stop.wait()


def _withdraw(services: Services) -> Callable[[str], Awaitable[None]]:
    @activity.defn(name=WITHDRAW_ACTIVITY)
    async def withdraw(waiter: str) -> None:
        await services.waiters.withdraw([waiter], of=activity.info().workflow_id or "")

    return withdraw


def _enroll(services: Services, temporal: Client) -> Callable[[], Awaitable[dict[str, Any]]]:
    firings, roots = Firings(services, Schedules(services, temporal), temporal), Roots()

    @activity.defn(name=ENROLL_ACTIVITY)
    async def enroll() -> dict[str, Any]:
        return await firings.enroll(await roots.of(activity.info(), temporal))

    return enroll


def _ask(services: Services) -> Callable[[Asked], Awaitable[Answered]]:
    @activity.defn(name=ASK_ACTIVITY)
    async def ask(asked: Asked) -> Answered:
        return await services.questions.ask(current_place(), asked)

    return ask


def _changed(services: Services) -> Callable[[str], Awaitable[None]]:
    @activity.defn(name=CHANGED_ACTIVITY)
    async def changed(uri: str) -> None:
        await services.changes.note(uri)

    return changed


def _deliver(services: Services, registry: Registry) -> Callable[[Owed], Awaitable[str]]:
    @activity.defn(name=NOTIFY_ACTIVITY)
    async def deliver(owed: Owed) -> str:
        return await services.notifier.deliver(owed, registry.title)

    return deliver


def _keep_up(services: Services, temporal: Client) -> Callable[[str], Awaitable[int]]:
    @activity.defn(name=UPKEEP_ACTIVITY)
    async def keep_up(part: str) -> int:
        return await Upkeep(services, temporal).do(part)

    return keep_up


def _version(settings: TemporalSettings) -> WorkerDeploymentConfig | None:
    """Return this worker's version. A run stays on the version it started on, unless its workflow says otherwise."""
    if settings.deployment_name is None or settings.build_id is None:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment_name, settings.build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


def _runner(settings: Settings) -> WorkflowRunner:
    if not settings.temporal.workflow_sandbox:
        return UnsandboxedWorkflowRunner()
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(*_OUTSIDE_SANDBOX)
    )
