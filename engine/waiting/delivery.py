"""Sends the wake-up signals that are due in the database, so that a crash after an answer loses none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog
from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from engine.db.database import now
from engine.waiting.waiters import Waiters, WakeUp
from engine.wire import LOOK_AGAIN_SIGNAL

_SWEEP_SECONDS = 1.0
_BATCH = 100
_AT_ONCE = 20
_PATIENCE = timedelta(seconds=5)

log = structlog.get_logger()


class Delivery:
    """Sends the wake-ups that are due. Sending one twice is harmless, since Temporal drops a repeated request id."""

    def __init__(self, waiters: Waiters, temporal: Client) -> None:
        self._waiters = waiters
        self._temporal = temporal

    async def run(self) -> None:
        """Deliver until cancelled. An outage of the database or of Temporal delays delivery and loses nothing."""
        while True:
            self._waiters.owed.clear()
            try:
                while await self.deliver_due() == _BATCH:
                    pass
            except Exception as error:  # noqa: BLE001 -- whatever failed, the rows are still due and are tried again
                log.warning("wake_ups_delayed", error=type(error).__name__)
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._waiters.owed.wait()
            except TimeoutError:
                continue

    async def deliver_due(self) -> int:
        """Send one batch of the wake-ups that are due, and return how many were due."""
        due = await self._waiters.wake_ups(_BATCH)
        if not due:
            return 0
        gate = asyncio.Semaphore(_AT_ONCE)
        sent = await asyncio.gather(*(self._send(wake_up, gate) for wake_up in due))
        done = [wake_up.waiter for wake_up, ok in zip(due, sent, strict=True) if ok]
        failed = [wake_up.waiter for wake_up, ok in zip(due, sent, strict=True) if not ok]
        if done:
            await self._waiters.delivered(done)
        if failed:
            await self._waiters.postpone(failed, now() + _PATIENCE)
        return len(due)

    async def _send(self, wake_up: WakeUp, gate: asyncio.Semaphore) -> bool:
        payloads = await self._temporal.data_converter.encode([{"v": 1, "waiter": wake_up.waiter}])
        request = SignalWorkflowExecutionRequest(
            namespace=self._temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=wake_up.workflow_id),
            signal_name=LOOK_AGAIN_SIGNAL,
            input=Payloads(payloads=payloads),
            identity=self._temporal.identity,
            request_id=wake_up.waiter,
        )
        async with gate:
            try:
                await self._temporal.workflow_service.signal_workflow_execution(request, retry=True)
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    # The workflow has ended, so there is nothing to wake.
                    return True
                log.warning("wake_up_delayed", waiter=wake_up.waiter, status=error.status.name)
                return False
        return True


@asynccontextmanager
async def delivering(waiters: Waiters, temporal: Client) -> AsyncIterator[None]:
    """Deliver wake-ups until the block ends."""
    task = asyncio.create_task(Delivery(waiters, temporal).run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
