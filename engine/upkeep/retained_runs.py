"""Finds the runs that Temporal retains, themselves or in workflows that they started. It changes nothing."""

import asyncio
from collections.abc import Collection

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

_MAX_CONCURRENT_CALLS = 20
_RUNS_PER_QUERY = 50


async def read_namespace_id(temporal_client: Client) -> str:
    """Return the id that distinguishes this namespace from every other, on this server and elsewhere."""
    request = DescribeNamespaceRequest(namespace=temporal_client.namespace)
    response = await temporal_client.workflow_service.describe_namespace(request)
    return response.namespace_info.id


async def find_retained_runs(temporal_client: Client, run_ids: Collection[str]) -> set[str]:
    """Return those of these runs that Temporal retains, open or closed, themselves or anything that they started.

    Nothing of the other runs can go on or be reset.
    """
    concurrency_limit = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)
    sorted_run_ids = sorted(run_ids)
    retention_results = await asyncio.gather(
        *(_is_retained(temporal_client, run_id, concurrency_limit) for run_id in sorted_run_ids)
    )
    retained_run_ids = {
        run_id for run_id, is_retained in zip(sorted_run_ids, retention_results, strict=True) if is_retained
    }
    unknown_run_ids = [run_id for run_id in sorted_run_ids if run_id not in retained_run_ids]
    for batch_start in range(0, len(unknown_run_ids), _RUNS_PER_QUERY):
        retained_run_ids |= await _find_surviving_roots(
            temporal_client, unknown_run_ids[batch_start : batch_start + _RUNS_PER_QUERY]
        )
    return retained_run_ids


async def _is_retained(temporal_client: Client, run_id: str, concurrency_limit: asyncio.Semaphore) -> bool:
    async with concurrency_limit:
        try:
            await temporal_client.get_workflow_handle(run_id).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise
    return True


async def _find_surviving_roots(temporal_client: Client, run_ids: Collection[str]) -> set[str]:
    """Return the runs of which a workflow that they started is retained, since it may outlive them."""
    quoted_run_ids = ", ".join("'{}'".format(run_id.replace("'", "''")) for run_id in run_ids)
    visibility_query = f"RootWorkflowId IN ({quoted_run_ids})"
    return {
        workflow_execution.root_id
        async for workflow_execution in temporal_client.list_workflows(visibility_query)
        if workflow_execution.root_id is not None
    }
