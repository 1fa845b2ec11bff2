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

from engine.interceptors.headers import encode_header
from engine.wire import IDENTITY_HEADER, NOTIFY_HEADER

_identity_headers: ContextVar[Mapping[str, Payload]] = ContextVar("byline_acting")


@contextmanager
def carry_identity(identity_token: str, *, notify_channels: Sequence[str] = ()) -> Iterator[None]:
    """Add this signed identity to the client's calls within the block.

    `notify_channels` are the channels that are notified when the run ends.
    """
    headers = {IDENTITY_HEADER: encode_header(identity_token)}
    reset_token = _identity_headers.set(
        {**headers, NOTIFY_HEADER: encode_header(list(notify_channels))} if notify_channels else headers
    )
    try:
        yield
    finally:
        _identity_headers.reset(reset_token)


class IdentityClientInterceptor(Interceptor):
    """The interceptor of the Temporal client that starts tools."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 -- Temporal's name
        """Wrap the client's outbound calls."""
        return _ClientOutbound(next)


class _ClientOutbound(OutboundInterceptor):
    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:  # noqa: A002
        input.headers = {**input.headers, **_get_identity_headers()}
        return await super().start_workflow(input)

    async def start_update_with_start_workflow(
        self,
        input: StartWorkflowUpdateWithStartInput,  # noqa: A002
    ) -> WorkflowUpdateHandle[Any]:
        start_input, update_input = input.start_workflow_input, input.update_workflow_input
        start_input.headers = {**start_input.headers, **_get_identity_headers()}
        update_input.headers = {**update_input.headers, **_get_identity_headers()}
        return await super().start_update_with_start_workflow(input)

    async def signal_workflow(self, input: SignalWorkflowInput) -> None:  # noqa: A002
        input.headers = {**input.headers, **_get_identity_headers()}
        await super().signal_workflow(input)


def _get_identity_headers() -> Mapping[str, Payload]:
    return _identity_headers.get({})
