"""Everything that a gateway does with runs, built once over the services of its process."""

from dataclasses import dataclass

from temporalio.client import Client

from engine.runs.attaching import AttachableRuns
from engine.runs.control import RunControl
from engine.runs.delivered_outcomes import DeliveredOutcomes
from engine.runs.outcome import RunOutcomes
from engine.runs.permissions import CallPermissions
from engine.runs.starting import RunStarter
from engine.runs.state import RunStates
from engine.runs.wait_watch import WaitWatch
from engine.runs.workflows import RunWorkflows
from engine.services import Services
from engine.tools.registry import Registry


@dataclass(frozen=True, slots=True)
class Runs:
    """The parts by which runs are started, followed, shown and controlled."""

    permissions: CallPermissions
    starter: RunStarter
    outcomes: RunOutcomes
    delivered_outcomes: DeliveredOutcomes
    workflows: RunWorkflows
    states: RunStates
    control: RunControl

    async def close(self) -> None:
        """Return once every delivered outcome is recorded."""
        await self.delivered_outcomes.close()


def build_runs(services: Services, temporal_client: Client, registry: Registry) -> Runs:
    """Build the parts over the services of this process and its connection to Temporal."""
    permissions = CallPermissions(services.policy, registry, services.run_records)
    workflows = RunWorkflows(temporal_client)
    delivered_outcomes = DeliveredOutcomes(services.run_records)
    outcomes = RunOutcomes(
        temporal_client,
        WaitWatch(services.waiters, workflows.is_under_way),
        services.authorization_requests,
        services.questions,
    )
    starter = RunStarter(
        registry=registry,
        permissions=permissions,
        attachable_runs=AttachableRuns(services.run_records, workflows, outcomes, delivered_outcomes),
        run_records=services.run_records,
        trail=services.trail,
        signing_keys=services.signing_keys,
        notifier=services.notifier,
        temporal_client=temporal_client,
        task_queue=services.settings.temporal.task_queue,
    )
    return Runs(
        permissions=permissions,
        starter=starter,
        outcomes=outcomes,
        delivered_outcomes=delivered_outcomes,
        workflows=workflows,
        states=RunStates(
            workflows=workflows,
            outcomes=outcomes,
            waiters=services.waiters,
            authorization_requests=services.authorization_requests,
            questions=services.questions,
            catalogue=services.catalogue,
            page_links=services.page_links,
        ),
        control=RunControl(
            temporal_client=temporal_client,
            workflows=workflows,
            starter=starter,
            run_records=services.run_records,
            waiters=services.waiters,
            roles=services.roles,
            trail=services.trail,
        ),
    )
