"""Finds the root run that an activity belongs to. Only the Temporal server's data counts, never a header."""

from threading import Lock

from cachetools import FIFOCache
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import Client

from engine.errors import IdentityMissing
from engine.runs.records import RootRun

_MAX_CACHED_RUNS = 20_000


class RootRunCache:
    """Caches root runs by workflow run id. Workflows of this process add theirs. Others are read from the server."""

    def __init__(self) -> None:
        self._roots_by_run_id = FIFOCache[str, RootRun](_MAX_CACHED_RUNS)
        # Temporal runs each workflow task in a thread of a pool, and actions run in the event loop's.
        self._lock = Lock()

    def record_root(self, workflow_run_id: str, root_run: RootRun) -> None:
        """Cache the root run that the server named when it sent the workflow to this process."""
        with self._lock:
            self._roots_by_run_id[workflow_run_id] = root_run

    def inherit_root(self, workflow_run_id: str, root_run_id: str) -> None:
        """Cache a child workflow's root run if this process knows it.

        It is looked up, since after continue-as-new the root's run id is no longer its first run id.
        """
        root_run = self._get_root(root_run_id)
        if root_run is not None:
            self.record_root(workflow_run_id, root_run)

    async def find_root(self, activity_info: activity.Info, temporal_client: Client) -> RootRun:
        """Return the root run of an activity; raises IdentityMissing if no workflow started the activity."""
        if activity_info.workflow_id is None or activity_info.workflow_run_id is None:
            raise IdentityMissing("An action only runs as a step of a workflow, whose identity it inherits.")
        root_run = self._get_root(activity_info.workflow_run_id)
        if root_run is None:
            root_run = await _fetch_root(
                temporal_client, activity_info.workflow_id, activity_info.workflow_run_id
            )
            self.record_root(activity_info.workflow_run_id, root_run)
        return root_run

    def _get_root(self, workflow_run_id: str) -> RootRun | None:
        with self._lock:
            return self._roots_by_run_id.get(workflow_run_id)


async def _fetch_root(temporal_client: Client, workflow_id: str, workflow_run_id: str) -> RootRun:
    execution_info = await _describe_workflow(temporal_client, workflow_id, workflow_run_id)
    if (
        not execution_info.root_execution.workflow_id
        or execution_info.root_execution.workflow_id == workflow_id
    ):
        return RootRun(workflow_id, execution_info.first_run_id)
    root_info = await _describe_workflow(
        temporal_client, execution_info.root_execution.workflow_id, execution_info.root_execution.run_id
    )
    return RootRun(execution_info.root_execution.workflow_id, root_info.first_run_id)


async def _describe_workflow(
    temporal_client: Client, workflow_id: str, workflow_run_id: str
) -> WorkflowExecutionInfo:
    describe_request = DescribeWorkflowExecutionRequest(
        namespace=temporal_client.namespace,
        execution=WorkflowExecution(workflow_id=workflow_id, run_id=workflow_run_id),
    )
    describe_response = await temporal_client.workflow_service.describe_workflow_execution(describe_request)
    return describe_response.workflow_execution_info
