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

from engine.db.database import utc_now
from engine.waiting.waiters import Waiters, WakeUp
from engine.wire import LOOK_AGAIN_SIGNAL

_SWEEP_INTERVAL_SECONDS = 1.0
_BATCH_SIZE = 100
_MAX_PARALLEL_SIGNALS = 20
_RETRY_DELAY = timedelta(seconds=5)

log = structlog.get_logger()


class WakeUpDelivery:
    """Sends the wake-ups that are due. Sending one twice is harmless, since Temporal drops a repeated request id."""

    def __init__(self, waiters: Waiters, temporal_client: Client) -> None:
        self._waiters = waiters
        self._temporal_client = temporal_client

    async def run_until_cancelled(self) -> None:
        """Deliver until cancelled. An outage of the database or of Temporal delays delivery and loses nothing."""
        while True:
            self._waiters.wake_ups_due.clear()
            try:
                while await self.deliver_due_batch() == _BATCH_SIZE:
                    pass
            except Exception as error:  # noqa: BLE001 -- whatever failed, the rows are still due and are tried again
                log.warning("wake_ups_delayed", error=type(error).__name__)
            try:
                async with asyncio.timeout(_SWEEP_INTERVAL_SECONDS):
                    await self._waiters.wake_ups_due.wait()
            except TimeoutError:
                continue

    async def deliver_due_batch(self) -> int:
        """Send one batch of the wake-ups that are due, and return how many were due."""
        due_wake_ups = await self._waiters.list_due_wake_ups(_BATCH_SIZE)
        if not due_wake_ups:
            return 0
        semaphore = asyncio.Semaphore(_MAX_PARALLEL_SIGNALS)
        send_results = await asyncio.gather(
            *(self._send_signal(wake_up, semaphore) for wake_up in due_wake_ups)
        )
        sent_waiter_ids = [
            wake_up.waiter_id for wake_up, is_sent in zip(due_wake_ups, send_results, strict=True) if is_sent
        ]
        failed_waiter_ids = [
            wake_up.waiter_id
            for wake_up, is_sent in zip(due_wake_ups, send_results, strict=True)
            if not is_sent
        ]
        if sent_waiter_ids:
            await self._waiters.record_delivered(sent_waiter_ids)
        if failed_waiter_ids:
            await self._waiters.postpone_wake_ups(failed_waiter_ids, utc_now() + _RETRY_DELAY)
        return len(due_wake_ups)

    async def _send_signal(self, wake_up: WakeUp, semaphore: asyncio.Semaphore) -> bool:
        payloads = await self._temporal_client.data_converter.encode([{"v": 1, "waiter": wake_up.waiter_id}])
        signal_request = SignalWorkflowExecutionRequest(
            namespace=self._temporal_client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=wake_up.workflow_id),
            signal_name=LOOK_AGAIN_SIGNAL,
            input=Payloads(payloads=payloads),
            identity=self._temporal_client.identity,
            request_id=wake_up.waiter_id,
        )
        async with semaphore:
            try:
                await self._temporal_client.workflow_service.signal_workflow_execution(
                    signal_request, retry=True
                )
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    # The workflow has ended, so there is nothing to wake.
                    return True
                log.warning("wake_up_delayed", waiter=wake_up.waiter_id, status=error.status.name)
                return False
        return True


@asynccontextmanager
async def deliver_wake_ups(waiters: Waiters, temporal_client: Client) -> AsyncIterator[None]:
    """Deliver wake-ups until the block ends."""
    delivery_task = asyncio.create_task(WakeUpDelivery(waiters, temporal_client).run_until_cancelled())
    try:
        yield
    finally:
        delivery_task.cancel()
        with suppress(asyncio.CancelledError):
            await delivery_task
