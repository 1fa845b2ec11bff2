"""Finds the root run that an activity belongs to. Only the Temporal server's data counts, never a header."""

from collections import OrderedDict

from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import Client

from engine.errors import IdentityMissing
from engine.identity.runs import RootRun

_REMEMBERED = 20_000


class Roots:
    """Caches root runs by workflow run id. Workflows of this process add theirs. Others are read from the server."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, RootRun] = OrderedDict()

    def note(self, workflow_run_id: str, root: RootRun) -> None:
        """Cache the root run that the server named when it sent the workflow to this process."""
        self._known[workflow_run_id] = root
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def inherit(self, workflow_run_id: str, root_run_id: str) -> None:
        """Cache a child workflow's root run if this process knows it.

        It is looked up, since after continue-as-new the root's run id is no longer its first run id.
        """
        root = self._known.get(root_run_id)
        if root is not None:
            self.note(workflow_run_id, root)

    async def of(self, info: activity.Info, client: Client) -> RootRun:
        """Return the root run of an activity; raises IdentityMissing if no workflow started the activity."""
        if info.workflow_id is None or info.workflow_run_id is None:
            raise IdentityMissing("An action only runs as a step of a workflow, whose identity it inherits.")
        known = self._known.get(info.workflow_run_id)
        if known is None:
            known = await _ask(client, info.workflow_id, info.workflow_run_id)
            self.note(info.workflow_run_id, known)
        return known


async def _ask(client: Client, workflow_id: str, run_id: str) -> RootRun:
    info = await _described(client, workflow_id, run_id)
    if not info.root_execution.workflow_id or info.root_execution.workflow_id == workflow_id:
        return RootRun(workflow_id, info.first_run_id)
    root = await _described(client, info.root_execution.workflow_id, info.root_execution.run_id)
    return RootRun(info.root_execution.workflow_id, root.first_run_id)


async def _described(client: Client, workflow_id: str, run_id: str) -> WorkflowExecutionInfo:
    request = DescribeWorkflowExecutionRequest(
        namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
    )
    answer = await client.workflow_service.describe_workflow_execution(request)
    return answer.workflow_execution_info
