"""Reads the workflows of runs on the Temporal server."""

from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError, RPCStatusCode

from engine.errors import TemporalUnreachable


class RunWorkflows:
    """The workflows of runs, as the Temporal server describes them."""

    def __init__(self, temporal_client: Client) -> None:
        self._temporal_client = temporal_client

    async def describe_workflow(
        self, workflow_id: str, temporal_run_id: str | None = None
    ) -> WorkflowExecutionDescription | None:
        """Return Temporal's description of a workflow, or None where it keeps none with this id.

        Raises TemporalUnreachable.
        """
        try:
            return await self._temporal_client.get_workflow_handle(
                workflow_id, run_id=temporal_run_id
            ).describe()
        except RPCError as rpc_error:
            if rpc_error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise TemporalUnreachable(
                "The workflow engine does not answer. Runs go on as soon as it does; ask again in a moment."
            ) from rpc_error

    async def is_under_way(self, run_id: str) -> bool:
        """Return whether the root workflow does anything but wait, or has children that may."""
        try:
            description = await self.describe_workflow(run_id)
        except TemporalUnreachable:
            return True
        if description is None:
            return False
        raw_description = description.raw_description
        return bool(
            raw_description.pending_activities
            or raw_description.pending_children
            or raw_description.HasField("pending_workflow_task")
        )
