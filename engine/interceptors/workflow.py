"""Passes a workflow's identity to everything it starts, and parks actions that wait for a person.

Tool code needs nothing for this.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn, cast

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import (
    RetryPolicy,
    SearchAttributeUpdate,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.worker import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    HandleSignalInput,
    HandleUpdateInput,
    SignalChildWorkflowInput,
    SignalExternalWorkflowInput,
    StartActivityInput,
    StartChildWorkflowInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowOutboundInterceptor,
)

from engine.errors import AnswerRequired, AuthorizationRequired, BylineError
from engine.interceptors.headers import encode_header, read_header
from engine.interceptors.root_run_cache import RootRunCache
from engine.interceptors.run_headers import RunHeaders
from engine.interceptors.search_attributes import AWAITING_KEY, PRINCIPAL_KEY, RUN_KEY
from engine.notifications.messages import RunOutcome
from engine.notifications.workflow import RunNotice
from engine.runs.records import RootRun
from engine.wire import (
    ACTION_HEADER,
    CHAIN_HEADER,
    ENROLL_ACTIVITY,
    IDENTITY_HEADER,
    LOOK_AGAIN_SIGNAL,
    NOTIFY_HEADER,
    NOTIFY_WORKFLOW,
    WAITER_HEADER,
    WITHDRAW_ACTIVITY,
)


def build_workflow_interceptor(root_runs: RootRunCache) -> type[WorkflowInboundInterceptor]:
    """Return the workflow interceptor class for one worker, which caches root runs for that worker's actions."""

    class IdentityWorkflowInterceptor(WorkflowInboundInterceptor):
        def init(self, outbound: WorkflowOutboundInterceptor) -> None:
            self._run_headers = RunHeaders()
            self._parked_waits = _ParkedWaits(self._run_headers)
            super().init(_WorkflowOutbound(outbound, self._parked_waits, self._run_headers))

        async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002 -- Temporal's names
            workflow_info = workflow.info()
            if workflow_info.parent is None:
                root_runs.record_root(
                    workflow_info.run_id,
                    RootRun(workflow_info.workflow_id, workflow_info.first_execution_run_id),
                )
            elif workflow_info.root is not None:
                root_runs.inherit_root(workflow_info.run_id, workflow_info.root.run_id)
            workflow.set_signal_handler(LOOK_AGAIN_SIGNAL, self._parked_waits.handle_wake_up)
            await self._run_headers.mint_headers()
            notify_channels = (
                read_header(self._run_headers.headers, NOTIFY_HEADER)
                if workflow_info.parent is None
                else None
            )
            if not notify_channels:
                return await super().execute_workflow(input)
            return await _notify_run_end(super().execute_workflow(input), notify_channels)

        async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
            await self._run_headers.wait_for_identity()
            await super().handle_signal(input)

        async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
            await self._run_headers.wait_for_identity()
            return await super().handle_update_handler(input)

    return IdentityWorkflowInterceptor


@dataclass(frozen=True, slots=True)
class _ParkedWait:
    waiter_id: str
    attribute_value: str
    """The name of the connection to consent on, `question`, or `approval:` followed by the role that can approve."""
    label: str
    expires_at: float
    awaited_id: str
    notify_channels: tuple[str, ...]


class _ParkedWaits:
    """The waits of one workflow, and which of them were signalled."""

    def __init__(self, run_headers: RunHeaders) -> None:
        self._run_headers = run_headers
        self._signalled_waiters: set[str] = set()
        self._waits_by_waiter: dict[str, _ParkedWait] = {}
        self._notify_tasks: set[asyncio.Task[None]] = set()

    def handle_wake_up(self, signal_value: Any = None) -> None:
        """Handle the wake-up signal.

        It carries no authority: whatever it says, it only makes the waiting action try again.
        """
        if isinstance(signal_value, dict):
            self._signalled_waiters.add(str(signal_value.get("waiter")))

    def start_notification(self, parked_wait: _ParkedWait) -> None:
        """Notify the people who are asked, while this workflow parks."""
        workflow_info = workflow.info()
        run_id = (
            workflow_info.root.workflow_id if workflow_info.root is not None else workflow_info.workflow_id
        )
        notice = RunNotice(
            "waiting", run_id, list(parked_wait.notify_channels), awaits=parked_wait.awaited_id
        )
        notify_task = asyncio.create_task(_start_notify_workflow(notice, parked_wait.waiter_id))
        self._notify_tasks.add(notify_task)
        notify_task.add_done_callback(self._notify_tasks.discard)

    async def park_until_woken(self, parked_wait: _ParkedWait) -> bool:
        """Wait until the wake-up signal arrives, and return False if the wait expires first."""
        self._waits_by_waiter[parked_wait.waiter_id] = parked_wait
        self._show_waits()
        # Not `finally`: when a stopping worker evicts the workflow, its coroutine is closed outside the workflow.
        try:
            await workflow.wait_condition(
                lambda: parked_wait.waiter_id in self._signalled_waiters,
                timeout=max(0.0, parked_wait.expires_at - workflow.time()),
                timeout_summary=f"{parked_wait.label} expires",
            )
        except TimeoutError:
            self._end_wait(parked_wait)
            return False
        except asyncio.CancelledError:
            self._end_wait(parked_wait)
            raise
        self._end_wait(parked_wait)
        return True

    def _end_wait(self, parked_wait: _ParkedWait) -> None:
        self._signalled_waiters.discard(parked_wait.waiter_id)
        self._waits_by_waiter.pop(parked_wait.waiter_id, None)
        self._show_waits()

    def _show_waits(self) -> None:
        attribute_values = sorted(
            {parked_wait.attribute_value for parked_wait in self._waits_by_waiter.values()}
        )
        attribute_updates: list[SearchAttributeUpdate[Any]] = [
            AWAITING_KEY.value_set(attribute_values) if attribute_values else AWAITING_KEY.value_unset()
        ]
        identity = self._run_headers.identity
        if identity is not None and attribute_values:
            attribute_updates += [
                PRINCIPAL_KEY.value_set(identity.name),
                RUN_KEY.value_set(identity.run_id),
            ]
        workflow.upsert_search_attributes(attribute_updates)
        principal_name = identity.name if identity is not None else "somebody"
        wait_labels = ", ".join(sorted({parked_wait.label for parked_wait in self._waits_by_waiter.values()}))
        workflow.set_current_details(
            f"In the name of {principal_name}, waiting for: {wait_labels}" if wait_labels else ""
        )


class _WorkflowOutbound(WorkflowOutboundInterceptor):
    def __init__(
        self,
        next: WorkflowOutboundInterceptor,  # noqa: A002 -- Temporal's name
        parked_waits: _ParkedWaits,
        run_headers: RunHeaders,
    ) -> None:
        super().__init__(next)
        self._parked_waits = parked_waits
        self._run_headers = run_headers
        self._action_count = 0

    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        if input.activity == ENROLL_ACTIVITY:
            return super().start_activity(input)
        start_action = super().start_activity
        headers = {**input.headers, **self._build_action_headers()}
        return self._run_through_waits(
            lambda extra_headers: start_action(replace(input, headers={**headers, **extra_headers}))
        )

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        start_action = super().start_local_activity
        headers = {**input.headers, **self._build_action_headers()}
        return self._run_through_waits(
            lambda extra_headers: start_action(replace(input, headers={**headers, **extra_headers}))
        )

    async def start_child_workflow(
        self,
        input: StartChildWorkflowInput,  # noqa: A002
    ) -> workflow.ChildWorkflowHandle[Any, Any]:
        input.headers = {**input.headers, **self._build_inherited_headers()}
        return await super().start_child_workflow(input)

    async def signal_child_workflow(self, input: SignalChildWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **self._build_inherited_headers()}
        await super().signal_child_workflow(input)

    async def signal_external_workflow(self, input: SignalExternalWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **self._build_inherited_headers()}
        await super().signal_external_workflow(input)

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:  # noqa: A002
        own_headers = self._run_headers.headers
        continued_headers = {
            header_name: own_headers[header_name]
            for header_name in (IDENTITY_HEADER, CHAIN_HEADER, NOTIFY_HEADER)
            if header_name in own_headers
        }
        input.headers = {**input.headers, **continued_headers}
        super().continue_as_new(input)

    def _build_inherited_headers(self) -> dict[str, Payload]:
        """Return the headers to pass on: this workflow's own identity, never a signal's, and the chain down to here."""
        workflow_info, own_headers = workflow.info(), self._run_headers.headers
        call_chain = [
            *(read_header(own_headers, CHAIN_HEADER) or []),
            f"{workflow_info.workflow_type}:{workflow_info.workflow_id}",
        ]
        headers = {CHAIN_HEADER: encode_header(call_chain)}
        if IDENTITY_HEADER in own_headers:
            headers[IDENTITY_HEADER] = own_headers[IDENTITY_HEADER]
        return headers

    def _build_action_headers(self) -> dict[str, Payload]:
        self._action_count += 1
        action_key = f"{workflow.info().run_id}:{self._action_count}"
        return {**self._build_inherited_headers(), ACTION_HEADER: encode_header(action_key)}

    def _run_through_waits(
        self, start_action: Callable[[Mapping[str, Payload]], workflow.ActivityHandle[Any]]
    ) -> workflow.ActivityHandle[Any]:
        """Start an action at once, and start it again each time a wait for a person has ended."""
        activity_handle = start_action({})
        result_task = asyncio.create_task(self._await_result(activity_handle, start_action))
        # A task that is cancelled before its first step never runs, and so could not cancel the activity itself.
        result_task.add_done_callback(lambda done_task: done_task.cancelled() and activity_handle.cancel())
        return cast("workflow.ActivityHandle[Any]", result_task)

    async def _await_result(
        self,
        activity_handle: workflow.ActivityHandle[Any],
        start_action: Callable[[Mapping[str, Payload]], workflow.ActivityHandle[Any]],
    ) -> Any:
        while True:
            try:
                return await activity_handle
            except (ActivityError, ApplicationError) as error:
                parked_wait = _parse_wait(error)
                if parked_wait is None:
                    raise
            if parked_wait.notify_channels:
                self._parked_waits.start_notification(parked_wait)
            try:
                is_woken = await self._parked_waits.park_until_woken(parked_wait)
            except asyncio.CancelledError:
                await self._withdraw_wait(parked_wait)
                raise
            activity_handle = start_action(
                {WAITER_HEADER: encode_header({"id": parked_wait.waiter_id, "timed_out": not is_woken})}
            )

    async def _withdraw_wait(self, parked_wait: _ParkedWait) -> None:
        await asyncio.shield(
            workflow.execute_activity(
                WITHDRAW_ACTIVITY,
                parked_wait.waiter_id,
                start_to_close_timeout=timedelta(seconds=10),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
        )


def _parse_wait(error: ActivityError | ApplicationError) -> _ParkedWait | None:
    # The failure of a local activity is not wrapped in an ActivityError.
    cause = error.cause if isinstance(error, ActivityError) else error
    if not isinstance(cause, ApplicationError) or not cause.details:
        return None
    details = cause.details[0]
    if cause.type == AuthorizationRequired.code:
        attribute_value, awaited_id = details["connection"], details["request"]
        wait_label = f"consent on {attribute_value}"
    elif cause.type == AnswerRequired.code:
        role, awaited_id = details["role"], details["question"]
        attribute_value = "question" if role is None else f"approval:{role}"
        wait_label = "an answer" if role is None else f"approval by somebody with the role '{role}'"
    else:
        return None
    notify_channels = tuple(details.get("notify", ()))
    return _ParkedWait(
        details["waiter"], attribute_value, wait_label, details["expires_at"], awaited_id, notify_channels
    )


async def _notify_run_end(run_awaitable: Awaitable[Any], notify_channels: list[str]) -> Any:
    """Await a run, notify the channels of its end, and return or raise its outcome unchanged."""
    try:
        run_result = await run_awaitable
    except asyncio.CancelledError:
        # A worker that evicts a workflow also cancels its tasks, and then nothing may be started.
        if workflow.cancellation_reason() is not None:
            await _notify_outcome(notify_channels, "cancelled")
        raise
    except Exception as error:
        # Any other error fails the workflow task only: the run stays open until a deployment fixes the code.
        if workflow.is_failure_exception(error):
            is_cancelled = workflow.cancellation_reason() is not None and is_cancelled_exception(error)
            await _notify_outcome(
                notify_channels, "cancelled" if is_cancelled else "failed", _find_error_code(error)
            )
        raise
    await _notify_outcome(notify_channels, "completed")
    return run_result


async def _notify_outcome(
    notify_channels: list[str], outcome: RunOutcome, error_code: str | None = None
) -> None:
    run_id = workflow.info().workflow_id
    await _start_notify_workflow(
        RunNotice("ended", run_id, notify_channels, outcome=outcome, code=error_code), f"{run_id}:ended"
    )


async def _start_notify_workflow(notice: RunNotice, notification_id: str) -> None:
    """Start the workflow that notifies the channels, as an abandoned child with an id that is used once.

    Returns as soon as the server has started it.
    """
    with suppress(WorkflowAlreadyStartedError):
        await workflow.start_child_workflow(
            NOTIFY_WORKFLOW,
            notice,
            id=f"{NOTIFY_WORKFLOW}:{notification_id}",
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
        )


def _find_error_code(error: BaseException) -> str | None:
    """Return the code of the outermost failure in the chain of causes that has one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError):
            return cause.type
        if isinstance(cause, BylineError):
            return cause.code
        cause = cause.__cause__
    return None
