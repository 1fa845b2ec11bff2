"""Which root run an activity belongs to, on the Temporal server's word alone; headers are never asked."""

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
    """Root runs by workflow run id: noted by workflows of this process, asked of the server for all others."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, RootRun] = OrderedDict()

    def note(self, workflow_run_id: str, root: RootRun) -> None:
        """Remember what the server said when it handed the workflow to this process."""
        self._known[workflow_run_id] = root
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def inherit(self, workflow_run_id: str, root_run_id: str) -> None:
        """Remember a child's root where this process knows it: later runs of a root keep the first one's name."""
        root = self._known.get(root_run_id)
        if root is not None:
            self.note(workflow_run_id, root)

    async def of(self, info: activity.Info, client: Client) -> RootRun:
        """The root run of an activity; raises IdentityMissing for one that no workflow started."""
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
