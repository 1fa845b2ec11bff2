"""The worker process: runs the registry's workflows and activities behind Byline's interceptors until a signal."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
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

from engine.errors import DATA_ERRORS, BylineError
from engine.interceptors.activity import ActivityGuard
from engine.interceptors.root_run_cache import RootRunCache
from engine.interceptors.workflow import build_workflow_interceptor
from engine.notifications.workflow import DueNote, NotifyWorkflow
from engine.questions.ask_people import QuestionAnswer, QuestionInput
from engine.questions.questions import get_asking_step
from engine.schedules.firing_identities import FiringIdentities
from engine.schedules.schedules import Schedules
from engine.services import Services, open_services
from engine.settings import Settings, TemporalSettings
from engine.temporal import connect_temporal, ensure_search_attributes
from engine.tools.registry import Registry
from engine.upkeep.schedule import ensure_upkeep_schedule
from engine.upkeep.upkeep import UpkeepParts
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
_FAILURE_EXCEPTIONS = (BylineError, *DATA_ERRORS)
_PASSTHROUGH_MODULES = ("byline", "engine", "pydantic", "pydantic_core", "httpx2", "structlog")

log = structlog.get_logger()


class BylineInterceptor(Interceptor):
    """The interceptor of a worker: it propagates identity, guards activities and parks waits."""

    def __init__(self, services: Services, temporal_client: Client, registry: Registry) -> None:
        self._services = services
        self._temporal_client = temporal_client
        self._registry = registry
        self._roots = RootRunCache()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Return the guard of activities."""
        return ActivityGuard(next, self._services, self._registry, self._roots, self._temporal_client)

    def workflow_interceptor_class(
        self,
        _input: WorkflowInterceptorClassInput,
    ) -> type[WorkflowInboundInterceptor]:
        """Return the interceptor that propagates identity through a workflow."""
        return build_workflow_interceptor(self._roots)


def build_worker(
    settings: Settings, services: Services, temporal_client: Client, registry: Registry
) -> Worker:
    """Build a worker on the task queue of the settings."""
    return Worker(
        temporal_client,
        task_queue=settings.temporal.task_queue,
        workflows=[*registry.workflows.values(), NotifyWorkflow, UpkeepWorkflow],
        activities=[
            *registry.activities.values(),
            _build_withdraw_activity(services),
            _build_ask_activity(services),
            _build_changed_activity(services),
            _build_enroll_activity(services, temporal_client),
            _build_notify_activity(services, registry),
            _build_upkeep_activity(services, temporal_client),
        ],
        interceptors=[BylineInterceptor(services, temporal_client, registry)],
        workflow_runner=_build_workflow_runner(settings),
        deployment_config=_build_deployment_config(settings.temporal),
        workflow_failure_exception_types=_FAILURE_EXCEPTIONS,
        max_cached_workflows=settings.temporal.max_cached_workflows,
        max_concurrent_activities=settings.temporal.max_concurrent_activities,
        sticky_queue_schedule_to_start_timeout=settings.temporal.sticky_timeout,
        graceful_shutdown_timeout=settings.temporal.graceful_shutdown,
    )


async def run_worker(settings: Settings, environment: Mapping[str, str]) -> None:
    """Run a worker until SIGTERM or SIGINT; running actions then get the graceful shutdown time to finish."""
    stop_event = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop_event.set)
    registry = Registry(settings.modules)
    temporal_client = await connect_temporal(settings.temporal)
    await ensure_search_attributes(temporal_client)
    await ensure_upkeep_schedule(temporal_client, settings.temporal.task_queue)
    async with (
        open_services(settings, environment) as services,
        build_worker(settings, services, temporal_client, registry),
    ):
        log.info("worker_ready", tools=sorted(registry.tools), task_queue=settings.temporal.task_queue)
        await stop_event.wait()


def _build_withdraw_activity(services: Services) -> Callable[[str], Awaitable[None]]:
    @activity.defn(name=WITHDRAW_ACTIVITY)
    async def withdraw_waiter(waiter_id: str) -> None:
        await services.waiters.cancel_waits([waiter_id], workflow_id=activity.info().workflow_id or "")

    return withdraw_waiter


def _build_enroll_activity(
    services: Services, temporal_client: Client
) -> Callable[[], Awaitable[dict[str, Any]]]:
    firing_identities, roots = (
        FiringIdentities(services, Schedules(services, temporal_client), temporal_client),
        RootRunCache(),
    )

    @activity.defn(name=ENROLL_ACTIVITY)
    async def mint_identity() -> dict[str, Any]:
        return await firing_identities.mint_identity(await roots.find_root(activity.info(), temporal_client))

    return mint_identity


def _build_ask_activity(services: Services) -> Callable[[QuestionInput], Awaitable[QuestionAnswer]]:
    @activity.defn(name=ASK_ACTIVITY)
    async def ask_question(question_request: QuestionInput) -> QuestionAnswer:
        return await services.questions.ask_question(get_asking_step(), question_request)

    return ask_question


def _build_changed_activity(services: Services) -> Callable[[str], Awaitable[None]]:
    @activity.defn(name=CHANGED_ACTIVITY)
    async def note_resource_change(resource_uri: str) -> None:
        await services.resource_changes.note_change(resource_uri)

    return note_resource_change


def _build_notify_activity(services: Services, registry: Registry) -> Callable[[DueNote], Awaitable[str]]:
    @activity.defn(name=NOTIFY_ACTIVITY)
    async def deliver_note(pending_note: DueNote) -> str:
        return await services.notifier.deliver_note(pending_note, registry.find_title)

    return deliver_note


def _build_upkeep_activity(services: Services, temporal_client: Client) -> Callable[[str], Awaitable[int]]:
    @activity.defn(name=UPKEEP_ACTIVITY)
    async def run_upkeep(upkeep_part: str) -> int:
        return await UpkeepParts(services, temporal_client).do_part(upkeep_part)

    return run_upkeep


def _build_deployment_config(settings: TemporalSettings) -> WorkerDeploymentConfig | None:
    """Return this worker's version. A run stays on the version it started on, unless its workflow says otherwise."""
    if settings.deployment_name is None or settings.build_id is None:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment_name, settings.build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


def _build_workflow_runner(settings: Settings) -> WorkflowRunner:
    if not settings.temporal.workflow_sandbox:
        return UnsandboxedWorkflowRunner()
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules(*_PASSTHROUGH_MODULES)
    )
