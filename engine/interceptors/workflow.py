"""Carries identity from a workflow to all it starts, and parks actions that wait for a person; no tool's code knows."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn, cast

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RetryPolicy, SearchAttributeKey, SearchAttributeUpdate
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    SignalChildWorkflowInput,
    SignalExternalWorkflowInput,
    StartActivityInput,
    StartChildWorkflowInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowOutboundInterceptor,
)

from engine.errors import AuthorizationRequired
from engine.identity.model import Identity
from engine.identity.runs import RootRun
from engine.interceptors.headers import payload_of, read, read_text
from engine.interceptors.roots import Roots
from engine.wire import (
    ACTION_HEADER,
    AWAITING_ATTRIBUTE,
    CHAIN_HEADER,
    IDENTITY_HEADER,
    LOOK_AGAIN_SIGNAL,
    PRINCIPAL_ATTRIBUTE,
    RUN_ATTRIBUTE,
    WAITER_HEADER,
    WITHDRAW_ACTIVITY,
)

_AWAITING = SearchAttributeKey.for_keyword_list(AWAITING_ATTRIBUTE)
_PRINCIPAL = SearchAttributeKey.for_keyword(PRINCIPAL_ATTRIBUTE)
_RUN = SearchAttributeKey.for_keyword(RUN_ATTRIBUTE)


def workflow_interceptor(roots: Roots) -> type[WorkflowInboundInterceptor]:
    """The interceptor class for one worker, which notes root runs where that worker's actions look them up."""

    class IdentityWorkflowInterceptor(WorkflowInboundInterceptor):
        def init(self, outbound: WorkflowOutboundInterceptor) -> None:
            self._waits = _Waits()
            super().init(_Outbound(outbound, self._waits))

        async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002 -- Temporal's names
            info = workflow.info()
            if info.parent is None:
                roots.note(info.run_id, RootRun(info.workflow_id, info.first_execution_run_id))
            elif info.root is not None:
                roots.inherit(info.run_id, info.root.run_id)
            workflow.set_signal_handler(LOOK_AGAIN_SIGNAL, self._waits.look_again)
            return await super().execute_workflow(input)

    return IdentityWorkflowInterceptor


@dataclass(frozen=True, slots=True)
class _Wait:
    waiter: str
    connection: str
    expires_at: float


class _Waits:
    """What one workflow waits for, and which of its waits it was told to look at again."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._parked: dict[str, _Wait] = {}

    def look_again(self, told: Any = None) -> None:
        """The wake-up: it carries no authority, so whatever it says only leads to another look at the vault."""
        if isinstance(told, dict):
            self._told.add(str(told.get("waiter")))

    async def park(self, wait: _Wait) -> bool:
        """Wait until told to look again; False where the time ran out first."""
        self._parked[wait.waiter] = wait
        self._show()
        # Not by `finally`: a workflow that a stopping worker drops is closed where no workflow may be touched.
        try:
            await workflow.wait_condition(
                lambda: wait.waiter in self._told,
                timeout=max(0.0, wait.expires_at - workflow.time()),
                timeout_summary=f"consent on {wait.connection} expires",
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
        awaiting = sorted({wait.connection for wait in self._parked.values()})
        updates: list[SearchAttributeUpdate[Any]] = [
            _AWAITING.value_set(awaiting) if awaiting else _AWAITING.value_unset()
        ]
        identity = Identity.unverified(read_text(workflow.info().headers, IDENTITY_HEADER) or "")
        if identity is not None and awaiting:
            updates += [_PRINCIPAL.value_set(identity.name), _RUN.value_set(identity.root)]
        workflow.upsert_search_attributes(updates)
        waiting_for = identity.name if identity is not None else "somebody"
        workflow.set_current_details(
            f"Waiting for {waiting_for} to sign in: {', '.join(awaiting)}" if awaiting else ""
        )


class _Outbound(WorkflowOutboundInterceptor):
    def __init__(self, next: WorkflowOutboundInterceptor, waits: _Waits) -> None:  # noqa: A002 -- Temporal's name
        super().__init__(next)
        self._waits = waits
        self._actions = 0

    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
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
        input.headers = {**input.headers, **_inherited()}
        return await super().start_child_workflow(input)

    async def signal_child_workflow(self, input: SignalChildWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **_inherited()}
        await super().signal_child_workflow(input)

    async def signal_external_workflow(self, input: SignalExternalWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **_inherited()}
        await super().signal_external_workflow(input)

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:  # noqa: A002
        own = workflow.info().headers
        kept = {name: own[name] for name in (IDENTITY_HEADER, CHAIN_HEADER) if name in own}
        input.headers = {**input.headers, **kept}
        super().continue_as_new(input)

    def _action_headers(self) -> dict[str, Payload]:
        self._actions += 1
        key = f"{workflow.info().run_id}:{self._actions}"
        return {**_inherited(), ACTION_HEADER: payload_of(key)}

    def _see_through(
        self, start: Callable[[Mapping[str, Payload]], workflow.ActivityHandle[Any]]
    ) -> workflow.ActivityHandle[Any]:
        """Start an action at once, and see it through however often it has to wait for a person."""
        handle = start({})
        seeing = asyncio.create_task(self._result(handle, start))
        # Cancelled before its first step, a task never runs and so could not pass the cancellation on.
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


def _inherited() -> dict[str, Payload]:
    """The identity this workflow was started with, never one that came with a signal, and the chain down to here."""
    info = workflow.info()
    chain = [*(read(info.headers, CHAIN_HEADER) or []), f"{info.workflow_type}:{info.workflow_id}"]
    headers = {CHAIN_HEADER: payload_of(chain)}
    if IDENTITY_HEADER in info.headers:
        headers[IDENTITY_HEADER] = info.headers[IDENTITY_HEADER]
    return headers


def _wait_for(error: ActivityError | ApplicationError) -> _Wait | None:
    # The failure of a local activity comes without an ActivityError around it.
    cause = error.cause if isinstance(error, ActivityError) else error
    if (
        not isinstance(cause, ApplicationError)
        or cause.type != AuthorizationRequired.code
        or not cause.details
    ):
        return None
    details = cause.details[0]
    return _Wait(details["waiter"], details["connection"], details["expires_at"])
