"""Finds the runs that Temporal retains, themselves or in workflows that they started. It changes nothing."""

import asyncio
from collections.abc import Collection

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

_AT_ONCE = 20
_BY_ONE_QUERY = 50


async def namespace_id(temporal: Client) -> str:
    """Return the id that distinguishes this namespace from every other, on this server and elsewhere."""
    request = DescribeNamespaceRequest(namespace=temporal.namespace)
    answer = await temporal.workflow_service.describe_namespace(request)
    return answer.namespace_info.id


async def kept(temporal: Client, run_ids: Collection[str]) -> set[str]:
    """Return those of these runs that Temporal retains, open or closed, themselves or anything that they started.

    Nothing of the other runs can go on or be reset.
    """
    gate = asyncio.Semaphore(_AT_ONCE)
    ordered = sorted(run_ids)
    are_known = await asyncio.gather(*(_is_known(temporal, run_id, gate) for run_id in ordered))
    found = {run_id for run_id, is_known in zip(ordered, are_known, strict=True) if is_known}
    unknown = [run_id for run_id in ordered if run_id not in found]
    for start in range(0, len(unknown), _BY_ONE_QUERY):
        found |= await _survived(temporal, unknown[start : start + _BY_ONE_QUERY])
    return found


async def _is_known(temporal: Client, run_id: str, gate: asyncio.Semaphore) -> bool:
    async with gate:
        try:
            await temporal.get_workflow_handle(run_id).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise
    return True


async def _survived(temporal: Client, run_ids: Collection[str]) -> set[str]:
    """Return the runs of which a workflow that they started is retained, since it may outlive them."""
    named = ", ".join("'{}'".format(run_id.replace("'", "''")) for run_id in run_ids)
    query = f"RootWorkflowId IN ({named})"
    return {each.root_id async for each in temporal.list_workflows(query) if each.root_id is not None}
