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
from engine.runs.control import RunControl
from engine.runs.records import Run, RunRecords
from engine.runs.runs import RUN_CANCELLED, Finished, Runs
from engine.runs.state import to_run_status
from engine.tools.registry import Registry
from engine.waiting.waiters import Waiters
from gateway.error_codes import find_mcp_code, to_mcp_code
from gateway.mcp.exchange.client_abilities import is_modern_client, require_tasks_extension
from gateway.mcp.exchange.exchange_opener import ExchangeOpener
from gateway.mcp.exchange.results import PendingResults, to_failure_result, to_success_result
from gateway.mcp.mcp_request import McpRequest

_POLL_INTERVAL_MS: Final = 1000
_INPUT_RESPONSES_ADAPTER: Final[TypeAdapter[InputResponses]] = TypeAdapter(InputResponses)
_MCP_NAME_HEADER: Final = "mcp-name"


class TaskParams(RequestParams):
    """The parameters of tasks/get and tasks/cancel."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    task_id: str


class TaskUpdateParams(TaskParams):
    """The parameters of tasks/update. Responses that answer no open input request are ignored."""

    input_responses: dict[str, Any] = Field(default_factory=dict)


class TaskHandler:
    """The handlers of tasks/get, tasks/update and tasks/cancel, and the answer to a call that becomes a task."""

    def __init__(
        self,
        registry: Registry,
        runs: Runs,
        run_control: RunControl,
        run_records: RunRecords,
        waiters: Waiters,
        exchange_opener: ExchangeOpener,
        pending_results: PendingResults,
    ) -> None:
        self._registry = registry
        self._runs = runs
        self._run_control = run_control
        self._run_records = run_records
        self._waiters = waiters
        self._exchange_opener = exchange_opener
        self._pending_results = pending_results

    async def create_task(self, run_id: str, announced_ids: Collection[str] = ()) -> dict[str, Any]:
        """Build the CreateTaskResult for a run, which was started before and does not depend on any gateway.

        Its task does not ask again for the waits that the call announced.
        """
        if announced_ids:
            await self._waiters.record_announced(run_id, announced_ids)
        run = await self._run_records.find_run(run_id)
        assert run is not None  # noqa: S101 -- it was registered before it began
        return {"resultType": "task", **_build_task(run, "working", run.started_at)}

    async def get_task(self, request: McpRequest[TaskParams]) -> dict[str, Any]:
        """Return the task's status with its open input requests or, once the run has ended, with its result."""
        run = await self._require_own_task(request)
        run_description = await self._runs.describe_workflow(run.id)
        if run_description is None:
            raise MCPError(INVALID_PARAMS, f"Task '{run.id}' is not kept any more.")
        if to_run_status(run_description) == "running":
            return await self._describe_running(request, run)
        return await self._describe_ended(run, run_description)

    async def update_task(self, request: McpRequest[TaskUpdateParams]) -> EmptyResult:
        """Record the client's answers to some or all of the open input requests."""
        run = await self._require_own_task(request)
        exchange = self._exchange_opener.open_for_task(request, run.id)
        input_requests = await exchange.build_input_requests(await self._runs.read_pending_waits(run.id))
        answered_waits = {
            request_key: client_request.wait_id
            for request_key, client_request in input_requests.items()
            if request_key in request.params.input_responses
        }
        try:
            input_responses = _INPUT_RESPONSES_ADAPTER.validate_python(
                {request_key: request.params.input_responses[request_key] for request_key in answered_waits}
            )
        except ValidationError as error:
            raise MCPError(
                INVALID_PARAMS, "An input response has not the shape that its request asks for."
            ) from error
        accepted_answers = await exchange.record_answers(answered_waits, input_responses)
        await self._waiters.record_announced(run.id, accepted_answers.announced_waits.values())
        return EmptyResult()

    async def cancel_task(self, request: McpRequest[TaskParams]) -> EmptyResult:
        """Cancel the run. A run that already ended stays as it is."""
        run = await self._require_own_task(request)
        with suppress(RunEnded, RunForgotten):
            await self._run_control.cancel_run(run, request.caller, "The client cancelled the task.")
        return EmptyResult()

    async def _require_own_task(self, request: McpRequest[TaskParams]) -> Run:
        context, task_id = request.context, request.params.task_id
        if not is_modern_client(context):
            raise MCPError(METHOD_NOT_FOUND, "Method not found", context.method)
        require_tasks_extension(context)
        header_task_id = None if context.request is None else context.request.headers.get(_MCP_NAME_HEADER)
        if header_task_id is not None and header_task_id != task_id:
            raise MCPError(HEADER_MISMATCH, "Mcp-Name does not match the taskId in the body.")
        unknown_task_message = f"You have no task '{task_id}'."
        caller = request.caller
        try:
            run = await self._runs.require_own_run(task_id, caller)
        except BylineError as error:
            raise MCPError(to_mcp_code(error) or INVALID_PARAMS, unknown_task_message) from error
        if run.tool_name not in self._registry.tools:
            # Prompts and resources are runs as well, but not tasks.
            raise MCPError(INVALID_PARAMS, unknown_task_message)
        return run

    async def _describe_running(self, request: McpRequest[TaskParams], run: Run) -> dict[str, Any]:
        pending_waits = await self._runs.read_pending_waits(run.id)
        waiting_since = (await self._waiters.list_awaited_by_run([run.id])).get(run.id, {})
        updated_at = max([run.started_at, *waiting_since.values()])
        if not pending_waits.ids:
            return _build_task(run, "working", updated_at)
        announced_ids = await self._waiters.list_announced(run.id)
        exchange = self._exchange_opener.open_for_task(request, run.id)
        input_requests = {
            request_key: client_request.input_request.model_dump(
                by_alias=True, mode="json", exclude_none=True
            )
            for request_key, client_request in (await exchange.build_input_requests(pending_waits)).items()
            if client_request.wait_id not in announced_ids
        }
        if input_requests:
            return {**_build_task(run, "input_required", updated_at), "inputRequests": input_requests}
        # It waits for what this client cannot ask or has asked already, so the message says what to tell the user.
        message = "\n".join(await self._pending_results.describe_waits(pending_waits))
        return {**_build_task(run, "working", updated_at), "statusMessage": message}

    async def _describe_ended(
        self, run: Run, run_description: WorkflowExecutionDescription
    ) -> dict[str, Any]:
        ended_at = run_description.close_time or datetime.now(UTC)
        outcome = await self._runs.wait_for_result(run.id)
        self._runs.mark_outcome_delivered(run.id)
        if isinstance(outcome, Finished):
            tool_result = to_success_result(self._registry.find_tool(run.tool_name), outcome.value)
        elif outcome.code == RUN_CANCELLED:
            return {**_build_task(run, "cancelled", ended_at), "statusMessage": outcome.message}
        elif (json_rpc_code := find_mcp_code(outcome.code)) is not None:
            return {
                **_build_task(run, "failed", ended_at),
                "error": {"code": json_rpc_code, "message": outcome.message},
            }
        else:
            tool_result = to_failure_result(outcome.code, outcome.message)
        result_document = tool_result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return {**_build_task(run, "completed", ended_at), "result": result_document}


def _build_task(run: Run, status: str, updated_at: datetime) -> dict[str, Any]:
    return {
        "taskId": run.id,
        "status": status,
        "createdAt": _format_time(run.started_at),
        "lastUpdatedAt": _format_time(updated_at),
        # A task is kept for as long as Temporal retains the run. A client cannot shorten this.
        "ttlMs": None,
        "pollIntervalMs": _POLL_INTERVAL_MS,
    }


def _format_time(occurred_at: datetime) -> str:
    return occurred_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
