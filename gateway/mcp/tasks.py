"""Handle the tasks extension (SEP-2663). A task is a run: it has the run's id, and nothing else is stored for it."""

from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    EmptyResult,
    InputResponses,
    RequestParams,
)
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from temporalio.client import WorkflowExecutionDescription

from engine.errors import BylineError, RunEnded, RunForgotten
from engine.identity.runs import Run
from engine.registry import Registry
from engine.services import Services
from gateway.errors import mcp_code, protocol_code
from gateway.mcp.asking import Asking
from gateway.mcp.clients import Context, is_modern, require_tasks
from gateway.mcp.endpoints import Endpoint
from gateway.mcp.results import Pending, failure, success
from gateway.runs.control import RunControl
from gateway.runs.runs import RUN_CANCELLED, Caller, Finished, Runs
from gateway.runs.states import status_of

_POLL_INTERVAL_MS: Final = 1000
_RESPONSES: Final[TypeAdapter[InputResponses]] = TypeAdapter(InputResponses)
_NAME_HEADER: Final = "mcp-name"


class TaskParams(RequestParams):
    """The parameters of tasks/get and tasks/cancel."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    task_id: str


class TaskUpdateParams(TaskParams):
    """The parameters of tasks/update. Responses that answer no open input request are ignored."""

    input_responses: dict[str, Any] = Field(default_factory=dict)


class Tasks:
    """The handlers of tasks/get, tasks/update and tasks/cancel, and the answer to a call that becomes a task."""

    def __init__(self, services: Services, registry: Registry, runs: Runs, control: RunControl) -> None:
        self._services = services
        self._registry = registry
        self._runs = runs
        self._control = control
        self._asking = Asking(services)
        self._pending = Pending(services)

    async def created(self, run_id: str, told: Collection[str] = ()) -> dict[str, Any]:
        """Build the CreateTaskResult for a run, which was started before and does not depend on any gateway.

        Its task does not ask again for the waits that the call announced.
        """
        if told:
            await self._services.waiters.take(run_id, told)
        run = await self._services.runs.get(run_id)
        assert run is not None  # noqa: S101 -- it was registered before it began
        return {"resultType": "task", **_task(run, "working", run.started_at)}

    async def get(self, context: Context, params: TaskParams, at: Endpoint) -> dict[str, Any]:
        """Return the task's status with its open input requests or, once the run has ended, with its result."""
        run, _ = await self._owned(context, params, at)
        description = await self._runs.described(run.id)
        if description is None:
            raise MCPError(INVALID_PARAMS, f"Task '{run.id}' is not kept any more.")
        if status_of(description) == "running":
            return await self._running(context, run)
        return await self._ended(run, description)

    async def update(self, context: Context, params: TaskUpdateParams, at: Endpoint) -> EmptyResult:
        """Record the client's answers to some or all of the open input requests."""
        run, caller = await self._owned(context, params, at)
        asked = await self._asking.requests(await self._runs.awaiting(run.id), context)
        told = {key: each.id for key, each in asked.items() if key in params.input_responses}
        try:
            responses = _RESPONSES.validate_python({key: params.input_responses[key] for key in told})
        except ValidationError as error:
            raise MCPError(
                INVALID_PARAMS, "An input response has not the shape that its request asks for."
            ) from error
        taken = await self._asking.take(told, responses, caller.principal, context)
        await self._services.waiters.take(run.id, taken.told.values())
        return EmptyResult()

    async def cancel(self, context: Context, params: TaskParams, at: Endpoint) -> EmptyResult:
        """Cancel the run. A run that already ended stays as it is."""
        run, caller = await self._owned(context, params, at)
        with suppress(RunEnded, RunForgotten):
            await self._control.cancel(run, caller, "The client cancelled the task.")
        return EmptyResult()

    async def _owned(self, context: Context, params: TaskParams, at: Endpoint) -> tuple[Run, Caller]:
        if not is_modern(context):
            raise MCPError(METHOD_NOT_FOUND, "Method not found", context.method)
        require_tasks(context)
        named = None if context.request is None else context.request.headers.get(_NAME_HEADER)
        if named is not None and named != params.task_id:
            raise MCPError(HEADER_MISMATCH, "Mcp-Name does not match the taskId in the body.")
        caller, unknown = at.caller(), f"You have no task '{params.task_id}'."
        try:
            run = await self._runs.owned(params.task_id, caller)
        except BylineError as error:
            raise MCPError(mcp_code(error) or INVALID_PARAMS, unknown) from error
        if run.tool not in self._registry.tools:
            # Prompts and resources are runs as well, but not tasks.
            raise MCPError(INVALID_PARAMS, unknown)
        return run, caller

    async def _running(self, context: Context, run: Run) -> dict[str, Any]:
        awaiting = await self._runs.awaiting(run.id)
        waits = (await self._services.waiters.awaited_in([run.id])).get(run.id, {})
        since = max([run.started_at, *waits.values()])
        taken = await self._services.waiters.taken(run.id) if awaiting.ids else set[str]()
        asked = {
            key: each.request.model_dump(by_alias=True, mode="json", exclude_none=True)
            for key, each in (await self._asking.requests(awaiting, context)).items()
            if each.id not in taken
        }
        if asked:
            return {**_task(run, "input_required", since), "inputRequests": asked}
        if awaiting.ids:
            # It waits for what this client cannot ask or has asked already, so the message says what to tell the user.
            message = "\n".join(await self._pending.lines(awaiting))
            return {**_task(run, "working", since), "statusMessage": message}
        return _task(run, "working", since)

    async def _ended(self, run: Run, description: WorkflowExecutionDescription) -> dict[str, Any]:
        at = description.close_time or datetime.now(UTC)
        outcome = await self._runs.result(run.id)
        self._runs.answered(run.id)
        if isinstance(outcome, Finished):
            result = success(self._registry.tool(run.tool), outcome.value)
        elif outcome.code == RUN_CANCELLED:
            return {**_task(run, "cancelled", at), "statusMessage": outcome.message}
        elif (protocol := protocol_code(outcome.code)) is not None:
            return {**_task(run, "failed", at), "error": {"code": protocol, "message": outcome.message}}
        else:
            result = failure(outcome.code, outcome.message)
        dumped = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return {**_task(run, "completed", at), "result": dumped}


def _task(run: Run, status: str, updated_at: datetime) -> dict[str, Any]:
    return {
        "taskId": run.id,
        "status": status,
        "createdAt": _instant(run.started_at),
        "lastUpdatedAt": _instant(updated_at),
        # A task is kept for as long as Temporal retains the run. A client cannot shorten this.
        "ttlMs": None,
        "pollIntervalMs": _POLL_INTERVAL_MS,
    }


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
