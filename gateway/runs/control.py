"""Cancels, terminates and retries existing runs in the caller's name, without waiting for them to end."""

from collections.abc import Mapping
from typing import Any

from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError, RPCStatusCode

from engine.audit.trail import AuditEvent
from engine.errors import NotAllowed, RunEnded, RunForgotten, RunUnfinished, RunUnknown, TemporalUnreachable
from engine.identity.model import Identity
from engine.identity.roles import ADMINISTRATOR
from engine.identity.runs import Run
from engine.services import Services
from gateway.runs.runs import Caller, Runs, Serving
from gateway.runs.states import status_of


class RunControl:
    """Controls runs that were started before."""

    def __init__(self, services: Services, temporal: Client, runs: Runs) -> None:
        self._services = services
        self._temporal = temporal
        self._runs = runs

    async def cancel(self, run: Run, caller: Caller, reason: str | None) -> None:
        """Request cancellation of the run, which lets it clean up.

        Raises RunEnded, RunForgotten or TemporalUnreachable.
        """
        await self._going_on(run)
        await self._services.trail.append(
            AuditEvent(kind="run.cancelled", identity=_names(run, caller), run_id=run.id, message=reason)
        )
        try:
            await self._temporal.get_workflow_handle(run.id).cancel()
        except RPCError as error:
            raise _told(error, run) from error

    async def terminate(self, run_id: str, caller: Caller, reason: str) -> Run:
        """End any principal's run at once, without another step of it. Only administrators may do so.

        Raises NotAllowed, RunUnknown, RunEnded, RunForgotten or TemporalUnreachable.
        """
        if not caller.in_person:
            raise NotAllowed(
                "Sign in to terminate runs: no API token and no back end ends what may be another's."
            )
        await self._services.roles.require(caller.principal, ADMINISTRATOR)
        run = await self._services.runs.get(run_id)
        if run is None:
            raise RunUnknown(f"There is no run '{run_id}'.")
        await self._going_on(run)
        await self._services.trail.append(
            AuditEvent(kind="run.terminated", identity=_names(run, caller), run_id=run.id, message=reason)
        )
        try:
            await self._temporal.get_workflow_handle(run.id).terminate(reason=reason)
        except RPCError as error:
            raise _told(error, run) from error
        # A terminated workflow has no further step in which it could withdraw what it asked of people.
        waiting = await self._services.waiters.waiting(run.id)
        await self._services.waiters.withdraw([waiter.id for waiter in waiting])
        return run

    async def retry(self, run: Run, caller: Caller, key: str | None) -> Serving:
        """Start a new run with the same tool and arguments.

        Raises what `Runs.start_or_attach` raises, RunUnfinished and RunForgotten.
        """
        description = await self._kept(run)
        if status_of(description) == "running":
            raise RunUnfinished(f"Run '{run.id}' goes on. Cancel it first, or wait until it ends.")
        arguments = await self._arguments(run, description)
        return await self._runs.call(run.tool, arguments, caller, key=key, retry_of=run.id)

    async def _going_on(self, run: Run) -> None:
        if status_of(await self._kept(run)) != "running":
            raise _ended(run)

    async def _kept(self, run: Run) -> WorkflowExecutionDescription:
        description = await self._runs.described(run.id)
        if description is None:
            raise _forgotten(run)
        return description

    async def _arguments(self, run: Run, description: WorkflowExecutionDescription) -> Mapping[str, Any]:
        """Read what the run was called with: the input of the first workflow execution in its chain."""
        first = description.raw_description.workflow_execution_info.first_run_id
        handle = self._temporal.get_workflow_handle(run.id, run_id=first)
        try:
            started = await anext(handle.fetch_history_events(page_size=1))
        except RPCError as error:
            raise _told(error, run) from error
        payloads = started.workflow_execution_started_event_attributes.input.payloads
        if not payloads:
            return {}
        arguments: Mapping[str, Any] = (await self._temporal.data_converter.decode(payloads))[0]
        return arguments


def _names(run: Run, caller: Caller) -> Identity:
    return Identity.of(
        caller.principal, caller.actor, caller.trigger, root=run.id, tool=run.tool, call=run.call
    )


def _told(error: RPCError, run: Run) -> RunEnded | TemporalUnreachable:
    # The workflow was described a moment ago, so NOT_FOUND means that it has ended since.
    if error.status == RPCStatusCode.NOT_FOUND:
        return _ended(run)
    return TemporalUnreachable("The workflow engine does not answer. Try again in a moment.")


def _ended(run: Run) -> RunEnded:
    return RunEnded(f"Run '{run.id}' ended already.")


def _forgotten(run: Run) -> RunForgotten:
    return RunForgotten(
        f"Run '{run.id}' is not kept by the workflow engine any more. What it did is in the audit trail."
    )
