"""Adds the signed identity to every workflow, update and signal that the Temporal client sends.

Firings of schedules get their identity from `RunHeaders` instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Interceptor,
    OutboundInterceptor,
    SignalWorkflowInput,
    StartWorkflowInput,
    StartWorkflowUpdateWithStartInput,
    WorkflowHandle,
    WorkflowUpdateHandle,
)

from engine.interceptors.headers import payload_of
from engine.wire import IDENTITY_HEADER, NOTIFY_HEADER

_acting: ContextVar[Mapping[str, Payload]] = ContextVar("byline_acting")


@contextmanager
def acting_as(token: str, *, notify: Sequence[str] = ()) -> Iterator[None]:
    """Add this signed identity to the client's calls within the block.

    `notify_channels` are the channels that are notified when the run ends.
    """
    headers = {IDENTITY_HEADER: payload_of(token)}
    previous = _acting.set({**headers, NOTIFY_HEADER: payload_of(list(notify))} if notify else headers)
    try:
        yield
    finally:
        _acting.reset(previous)


class IdentityClientInterceptor(Interceptor):
    """The interceptor of the Temporal client that starts tools."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 -- Temporal's name
        """Wrap the client's outbound calls."""
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


def _stamp() -> Mapping[str, Payload]:
    return _acting.get({})
