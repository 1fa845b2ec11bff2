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
    SearchAttributeKey,
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
from engine.identity.runs import RootRun
from engine.interceptors.carried import Carried
from engine.interceptors.headers import payload_of, read
from engine.interceptors.roots import Roots
from engine.notifications.messages import Outcome
from engine.notifications.workflow import Notice
from engine.wire import (
    ACTION_HEADER,
    AWAITING_ATTRIBUTE,
    CHAIN_HEADER,
    ENROLL_ACTIVITY,
    IDENTITY_HEADER,
    LOOK_AGAIN_SIGNAL,
    NOTIFY_HEADER,
    NOTIFY_WORKFLOW,
    PRINCIPAL_ATTRIBUTE,
    RUN_ATTRIBUTE,
    WAITER_HEADER,
    WITHDRAW_ACTIVITY,
)

_AWAITING = SearchAttributeKey.for_keyword_list(AWAITING_ATTRIBUTE)
_PRINCIPAL = SearchAttributeKey.for_keyword(PRINCIPAL_ATTRIBUTE)
_RUN = SearchAttributeKey.for_keyword(RUN_ATTRIBUTE)


def workflow_interceptor(roots: Roots) -> type[WorkflowInboundInterceptor]:
    """Return the workflow interceptor class for one worker, which caches root runs for that worker's actions."""

    class IdentityWorkflowInterceptor(WorkflowInboundInterceptor):
        def init(self, outbound: WorkflowOutboundInterceptor) -> None:
            self._carried = Carried()
            self._waits = _Waits(self._carried)
            super().init(_Outbound(outbound, self._waits, self._carried))

        async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002 -- Temporal's names
            info = workflow.info()
            if info.parent is None:
                roots.note(info.run_id, RootRun(info.workflow_id, info.first_execution_run_id))
            elif info.root is not None:
                roots.inherit(info.run_id, info.root.run_id)
            workflow.set_signal_handler(LOOK_AGAIN_SIGNAL, self._waits.look_again)
            await self._carried.enroll()
            told = read(self._carried.headers, NOTIFY_HEADER) if info.parent is None else None
            if not told:
                return await super().execute_workflow(input)
            return await _telling_the_end(super().execute_workflow(input), told)

        async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
            await self._carried.named()
            await super().handle_signal(input)

        async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
            await self._carried.named()
            return await super().handle_update_handler(input)

    return IdentityWorkflowInterceptor


@dataclass(frozen=True, slots=True)
class _Wait:
    waiter: str
    what: str
    """The name of the connection to consent on, `question`, or `approval:` followed by the role that can approve."""
    told: str
    expires_at: float
    awaits: str
    notify: tuple[str, ...]


class _Waits:
    """The waits of one workflow, and which of them were signalled."""

    def __init__(self, carried: Carried) -> None:
        self._carried = carried
        self._told: set[str] = set()
        self._parked: dict[str, _Wait] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def look_again(self, told: Any = None) -> None:
        """Handle the wake-up signal.

        It carries no authority: whatever it says, it only makes the waiting action try again.
        """
        if isinstance(told, dict):
            self._told.add(str(told.get("waiter")))

    def tell(self, wait: _Wait) -> None:
        """Notify the people who are asked, while this workflow parks."""
        info = workflow.info()
        run = info.root.workflow_id if info.root is not None else info.workflow_id
        notice = Notice("waiting", run, list(wait.notify), awaits=wait.awaits)
        telling = asyncio.create_task(_tell(notice, wait.waiter))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def park(self, wait: _Wait) -> bool:
        """Wait until the wake-up signal arrives, and return False if the wait expires first."""
        self._parked[wait.waiter] = wait
        self._show()
        # Not `finally`: when a stopping worker evicts the workflow, its coroutine is closed outside the workflow.
        try:
            await workflow.wait_condition(
                lambda: wait.waiter in self._told,
                timeout=max(0.0, wait.expires_at - workflow.time()),
                timeout_summary=f"{wait.told} expires",
            )
        except TimeoutError:
            self._end(wait)
            return False
        except asyncio.CancelledError:
            self._end(wait)
            raise
        self._end(wait)
        return True

    def _end(self, wait: _Wait) -> None:
        self._told.discard(wait.waiter)
        self._parked.pop(wait.waiter, None)
        self._show()

    def _show(self) -> None:
        awaiting = sorted({wait.what for wait in self._parked.values()})
        updates: list[SearchAttributeUpdate[Any]] = [
            _AWAITING.value_set(awaiting) if awaiting else _AWAITING.value_unset()
        ]
        identity = self._carried.identity
        if identity is not None and awaiting:
            updates += [_PRINCIPAL.value_set(identity.name), _RUN.value_set(identity.root)]
        workflow.upsert_search_attributes(updates)
        name = identity.name if identity is not None else "somebody"
        told = ", ".join(sorted({wait.told for wait in self._parked.values()}))
        workflow.set_current_details(f"In the name of {name}, waiting for: {told}" if told else "")


class _Outbound(WorkflowOutboundInterceptor):
    def __init__(
        self,
        next: WorkflowOutboundInterceptor,  # noqa: A002 -- Temporal's name
        waits: _Waits,
        carried: Carried,
    ) -> None:
        super().__init__(next)
        self._waits = waits
        self._carried = carried
        self._actions = 0

    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        if input.activity == ENROLL_ACTIVITY:
            return super().start_activity(input)
        start = super().start_activity
        headers = {**input.headers, **self._action_headers()}
        return self._see_through(lambda more: start(replace(input, headers={**headers, **more})))

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        start = super().start_local_activity
        headers = {**input.headers, **self._action_headers()}
        return self._see_through(lambda more: start(replace(input, headers={**headers, **more})))

    async def start_child_workflow(
        self,
        input: StartChildWorkflowInput,  # noqa: A002
    ) -> workflow.ChildWorkflowHandle[Any, Any]:
        input.headers = {**input.headers, **self._inherited()}
        return await super().start_child_workflow(input)

    async def signal_child_workflow(self, input: SignalChildWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **self._inherited()}
        await super().signal_child_workflow(input)

    async def signal_external_workflow(self, input: SignalExternalWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **self._inherited()}
        await super().signal_external_workflow(input)

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:  # noqa: A002
        own = self._carried.headers
        kept = {name: own[name] for name in (IDENTITY_HEADER, CHAIN_HEADER, NOTIFY_HEADER) if name in own}
        input.headers = {**input.headers, **kept}
        super().continue_as_new(input)

    def _inherited(self) -> dict[str, Payload]:
        """Return the headers to pass on: this workflow's own identity, never a signal's, and the chain down to here."""
        info, own = workflow.info(), self._carried.headers
        chain = [*(read(own, CHAIN_HEADER) or []), f"{info.workflow_type}:{info.workflow_id}"]
        headers = {CHAIN_HEADER: payload_of(chain)}
        if IDENTITY_HEADER in own:
            headers[IDENTITY_HEADER] = own[IDENTITY_HEADER]
        return headers

    def _action_headers(self) -> dict[str, Payload]:
        self._actions += 1
        key = f"{workflow.info().run_id}:{self._actions}"
        return {**self._inherited(), ACTION_HEADER: payload_of(key)}

    def _see_through(
        self, start: Callable[[Mapping[str, Payload]], workflow.ActivityHandle[Any]]
    ) -> workflow.ActivityHandle[Any]:
        """Start an action at once, and start it again each time a wait for a person has ended."""
        handle = start({})
        seeing = asyncio.create_task(self._result(handle, start))
        # A task that is cancelled before its first step never runs, and so could not cancel the activity itself.
        seeing.add_done_callback(lambda ended: ended.cancelled() and handle.cancel())
        return cast("workflow.ActivityHandle[Any]", seeing)

    async def _result(
        self,
        handle: workflow.ActivityHandle[Any],
        start: Callable[[Mapping[str, Payload]], workflow.ActivityHandle[Any]],
    ) -> Any:
        while True:
            try:
                return await handle
            except (ActivityError, ApplicationError) as error:
                wait = _wait_for(error)
                if wait is None:
                    raise
            if wait.notify:
                self._waits.tell(wait)
            try:
                told = await self._waits.park(wait)
            except asyncio.CancelledError:
                await self._withdraw(wait)
                raise
            handle = start({WAITER_HEADER: payload_of({"id": wait.waiter, "timed_out": not told})})

    async def _withdraw(self, wait: _Wait) -> None:
        await asyncio.shield(
            workflow.execute_activity(
                WITHDRAW_ACTIVITY,
                wait.waiter,
                start_to_close_timeout=timedelta(seconds=10),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
        )


def _wait_for(error: ActivityError | ApplicationError) -> _Wait | None:
    # The failure of a local activity is not wrapped in an ActivityError.
    cause = error.cause if isinstance(error, ActivityError) else error
    if not isinstance(cause, ApplicationError) or not cause.details:
        return None
    details = cause.details[0]
    if cause.type == AuthorizationRequired.code:
        what, awaits = details["connection"], details["request"]
        told = f"consent on {what}"
    elif cause.type == AnswerRequired.code:
        role, awaits = details["role"], details["question"]
        what = "question" if role is None else f"approval:{role}"
        told = "an answer" if role is None else f"approval by somebody with the role '{role}'"
    else:
        return None
    notify = tuple(details.get("notify", ()))
    return _Wait(details["waiter"], what, told, details["expires_at"], awaits, notify)


async def _telling_the_end(running: Awaitable[Any], channels: list[str]) -> Any:
    """Await a run, notify the channels of its end, and return or raise its outcome unchanged."""
    try:
        value = await running
    except asyncio.CancelledError:
        # A worker that evicts a workflow also cancels its tasks, and then nothing may be started.
        if workflow.cancellation_reason() is not None:
            await _tell_end(channels, "cancelled")
        raise
    except Exception as error:
        # Any other error fails the workflow task only: the run stays open until a deployment fixes the code.
        if workflow.is_failure_exception(error):
            cancelled = workflow.cancellation_reason() is not None and is_cancelled_exception(error)
            await _tell_end(channels, "cancelled" if cancelled else "failed", _code(error))
        raise
    await _tell_end(channels, "completed")
    return value


async def _tell_end(channels: list[str], outcome: Outcome, code: str | None = None) -> None:
    run = workflow.info().workflow_id
    await _tell(Notice("ended", run, channels, outcome=outcome, code=code), f"{run}:ended")


async def _tell(notice: Notice, once: str) -> None:
    """Start the workflow that notifies the channels, as an abandoned child with an id that is used once.

    Returns as soon as the server has started it.
    """
    with suppress(WorkflowAlreadyStartedError):
        await workflow.start_child_workflow(
            NOTIFY_WORKFLOW,
            notice,
            id=f"{NOTIFY_WORKFLOW}:{once}",
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
        )


def _code(error: BaseException) -> str | None:
    """Return the code of the outermost failure in the chain of causes that has one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ApplicationError):
            return cause.type
        if isinstance(cause, BylineError):
            return cause.code
        cause = cause.__cause__
    return None
