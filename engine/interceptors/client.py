"""Stamps the signed identity on all that a client starts, signals or schedules; without one it stamps nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    CreateScheduleInput,
    Interceptor,
    OutboundInterceptor,
    ScheduleActionStartWorkflow,
    ScheduleHandle,
    SignalWorkflowInput,
    StartWorkflowInput,
    StartWorkflowUpdateWithStartInput,
    WorkflowHandle,
    WorkflowUpdateHandle,
)

from engine.interceptors.headers import payload_of
from engine.wire import IDENTITY_HEADER

_acting: ContextVar[str | None] = ContextVar("byline_acting", default=None)


@contextmanager
def acting_as(token: str) -> Iterator[None]:
    """Within this block, the client's calls carry this signed identity."""
    previous = _acting.set(token)
    try:
        yield
    finally:
        _acting.reset(previous)


class IdentityClientInterceptor(Interceptor):
    """Goes on the Temporal client that starts tools."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 -- Temporal's name
        """Wrap the client's calls."""
        return _Outbound(next)


class _Outbound(OutboundInterceptor):
    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:  # noqa: A002
        input.headers = {**input.headers, **_stamp()}
        return await super().start_workflow(input)

    async def start_update_with_start_workflow(
        self,
        input: StartWorkflowUpdateWithStartInput,  # noqa: A002
    ) -> WorkflowUpdateHandle[Any]:
        start, update = input.start_workflow_input, input.update_workflow_input
        start.headers = {**start.headers, **_stamp()}
        update.headers = {**update.headers, **_stamp()}
        return await super().start_update_with_start_workflow(input)

    async def signal_workflow(self, input: SignalWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **_stamp()}
        await super().signal_workflow(input)

    async def create_schedule(self, input: CreateScheduleInput) -> ScheduleHandle:  # noqa: A002
        action = input.schedule.action
        if isinstance(action, ScheduleActionStartWorkflow):
            action.headers = {**(action.headers or {}), **_stamp()}
        return await super().create_schedule(input)


def _stamp() -> dict[str, Payload]:
    token = _acting.get()
    return {} if token is None else {IDENTITY_HEADER: payload_of(token)}
