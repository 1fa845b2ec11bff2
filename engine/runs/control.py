"""Cancels, terminates and retries existing runs in the caller's name, without waiting for them to end."""

from collections.abc import Mapping
from typing import Any

from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError, RPCStatusCode

from engine.audit.trail import AuditEvent, AuditTrail
from engine.errors import NotAllowed, RunEnded, RunForgotten, RunUnfinished, RunUnknown, TemporalUnreachable
from engine.identity.model import Identity
from engine.identity.roles import ADMINISTRATOR_ROLE, Roles
from engine.runs.caller import Caller
from engine.runs.records import Run, RunRecords
from engine.runs.starting import RunStarter, StartedRun
from engine.runs.state import to_run_status
from engine.runs.workflows import RunWorkflows
from engine.waiting.waiters import Waiters


class RunControl:
    """Controls runs that were started before."""

    def __init__(
        self,
        *,
        temporal_client: Client,
        workflows: RunWorkflows,
        starter: RunStarter,
        run_records: RunRecords,
        waiters: Waiters,
        roles: Roles,
        trail: AuditTrail,
    ) -> None:
        self._temporal_client = temporal_client
        self._workflows = workflows
        self._starter = starter
        self._run_records = run_records
        self._waiters = waiters
        self._roles = roles
        self._trail = trail

    async def cancel_run(self, run: Run, caller: Caller, reason: str | None) -> None:
        """Request cancellation of the run, which lets it clean up.

        Raises RunEnded, RunForgotten or TemporalUnreachable.
        """
        await self._require_running(run)
        await self._trail.append_event(
            AuditEvent(
                kind="run.cancelled", identity=_build_identity(run, caller), run_id=run.id, message=reason
            )
        )
        try:
            await self._temporal_client.get_workflow_handle(run.id).cancel()
        except RPCError as error:
            raise _to_domain_error(error, run) from error

    async def terminate_run(self, run_id: str, caller: Caller, reason: str) -> Run:
        """End any principal's run at once, without another step of it. Only administrators may do so.

        Raises NotAllowed, RunUnknown, RunEnded, RunForgotten or TemporalUnreachable.
        """
        if not caller.is_in_person:
            raise NotAllowed(
                "Sign in to terminate runs: no API token and no back end ends what may be another's."
            )
        await self._roles.require_role(caller.principal, ADMINISTRATOR_ROLE)
        run = await self._run_records.find_run(run_id)
        if run is None:
            raise RunUnknown(f"There is no run '{run_id}'.")
        await self._require_running(run)
        await self._trail.append_event(
            AuditEvent(
                kind="run.terminated", identity=_build_identity(run, caller), run_id=run.id, message=reason
            )
        )
        try:
            await self._temporal_client.get_workflow_handle(run.id).terminate(reason=reason)
        except RPCError as error:
            raise _to_domain_error(error, run) from error
        # A terminated workflow has no further step in which it could withdraw what it asked of people.
        pending_waiters = await self._waiters.list_waiters(run.id)
        await self._waiters.cancel_waits([waiter.id for waiter in pending_waiters])
        return run

    async def retry_run(self, run: Run, caller: Caller, idempotency_key: str | None) -> StartedRun:
        """Start a new run with the same tool and arguments.

        Raises what `Runs.start_or_attach` raises, RunUnfinished and RunForgotten.
        """
        description = await self._require_description(run)
        if to_run_status(description) == "running":
            raise RunUnfinished(f"Run '{run.id}' goes on. Cancel it first, or wait until it ends.")
        arguments = await self._read_arguments(run, description)
        return await self._starter.start_or_attach(
            run.tool_name, arguments, caller, idempotency_key=idempotency_key, retry_of=run.id
        )

    async def _require_running(self, run: Run) -> None:
        if to_run_status(await self._require_description(run)) != "running":
            raise _build_ended_error(run)

    async def _require_description(self, run: Run) -> WorkflowExecutionDescription:
        description = await self._workflows.describe_workflow(run.id)
        if description is None:
            raise _build_forgotten_error(run)
        return description

    async def _read_arguments(self, run: Run, description: WorkflowExecutionDescription) -> Mapping[str, Any]:
        """Read what the run was called with: the input of the first workflow execution in its chain."""
        first_run_id = description.raw_description.workflow_execution_info.first_run_id
        workflow_handle = self._temporal_client.get_workflow_handle(run.id, run_id=first_run_id)
        try:
            started_event = await anext(workflow_handle.fetch_history_events(page_size=1))
        except RPCError as error:
            raise _to_domain_error(error, run) from error
        payloads = started_event.workflow_execution_started_event_attributes.input.payloads
        if not payloads:
            return {}
        arguments: Mapping[str, Any] = (await self._temporal_client.data_converter.decode(payloads))[0]
        return arguments


def _build_identity(run: Run, caller: Caller) -> Identity:
    return Identity.for_run(
        caller.principal,
        caller.actor,
        caller.trigger,
        run_id=run.id,
        tool_name=run.tool_name,
        call_digest=run.call_digest,
    )


def _to_domain_error(rpc_error: RPCError, run: Run) -> RunEnded | TemporalUnreachable:
    # The workflow was described a moment ago, so NOT_FOUND means that it has ended since.
    if rpc_error.status == RPCStatusCode.NOT_FOUND:
        return _build_ended_error(run)
    return TemporalUnreachable("The workflow engine does not answer. Try again in a moment.")


def _build_ended_error(run: Run) -> RunEnded:
    return RunEnded(f"Run '{run.id}' ended already.")


def _build_forgotten_error(run: Run) -> RunForgotten:
    return RunForgotten(
        f"Run '{run.id}' is not kept by the workflow engine any more. What it did is in the audit trail."
    )
