"""Mints the identity of each firing of a schedule, if the run that Temporal started matches the stored schedule."""

from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy.exc import IntegrityError
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import Client
from temporalio.converter import decode_search_attributes

from engine.audit.trail import AuditEvent
from engine.errors import (
    BylineError,
    FiringRefused,
    IdentityMissing,
    IdentityRefused,
    NotAllowed,
    PrincipalInactive,
)
from engine.identity.model import Actor, Identity, Principal, digest_call
from engine.runs.records import RootRun, build_run_row
from engine.schedules.schedule_records import Schedule
from engine.schedules.schedules import Schedules
from engine.services import Services
from engine.wire import IDENTITY_HEADER, IDENTITY_TYPE, NOTIFY_HEADER, SCHEDULED_BY_ATTRIBUTE


@dataclass(frozen=True, slots=True)
class ScheduledCall:
    """The call that Temporal started: a tool and its call digest, which is empty if no call has such arguments."""

    tool_name: str
    digest: str


class FiringIdentities:
    """Mints one identity for the root run of each firing, from the history that the Temporal server returns."""

    def __init__(self, services: Services, schedules: Schedules, temporal_client: Client) -> None:
        self._services = services
        self._schedules = schedules
        self._temporal_client = temporal_client

    async def mint_identity(self, root_run: RootRun) -> dict[str, Any]:
        """Return the headers of this firing by name, with its signed identity. Repeated calls return the same.

        Raises IdentityMissing for a run that no schedule started, and FiringRefused, PrincipalInactive or NotAllowed
        for a firing that is not valid. The refusal is recorded in the audit trail first.
        """
        try:
            started_event = await self._read_started_event(root_run)
            schedule = await self._find_schedule(root_run, started_event)
        except IdentityRefused as error:
            await self._refuse_firing(root_run, error)
        scheduled_call = await self._read_call(started_event)
        identity = await self._find_minted_identity(root_run, schedule, scheduled_call)
        if identity is None:
            identity = await self._mint_new_identity(root_run, schedule, scheduled_call)
        notify_channels = await self._services.notifier.find_end_listeners(
            identity.principal_id, identity.trigger
        )
        return {
            IDENTITY_HEADER: await self._services.signing_keys.sign_claims(
                identity.to_claims(), IDENTITY_TYPE
            ),
            **({NOTIFY_HEADER: list(notify_channels)} if notify_channels else {}),
        }

    async def _read_started_event(self, root_run: RootRun) -> WorkflowExecutionStartedEventAttributes:
        history_request = GetWorkflowExecutionHistoryRequest(
            namespace=self._temporal_client.namespace,
            execution=WorkflowExecution(workflow_id=root_run.workflow_id, run_id=root_run.first_run_id),
            maximum_page_size=1,
        )
        history_response = await self._temporal_client.workflow_service.get_workflow_execution_history(
            history_request
        )
        return history_response.history.events[0].workflow_execution_started_event_attributes

    async def _find_schedule(
        self, root_run: RootRun, started_event: WorkflowExecutionStartedEventAttributes
    ) -> Schedule:
        (schedule_id,) = decode_search_attributes(started_event.search_attributes).get(
            SCHEDULED_BY_ATTRIBUTE, [None]
        )
        if schedule_id is None:
            raise IdentityMissing(
                f"Run '{root_run.workflow_id}' carries no identity, and no schedule began it. Start it through Byline."
            )
        schedule = await self._schedules.schedule_records.find_schedule(str(schedule_id))
        if schedule is None or not root_run.workflow_id.startswith(f"{schedule.id}-"):
            raise FiringRefused(
                f"Run '{root_run.workflow_id}' was begun by a schedule that is not on record. Make schedules through "
                "Byline, which notes in whose name they act, and delete this one in Temporal."
            )
        return schedule

    async def _find_minted_identity(
        self, root_run: RootRun, schedule: Schedule, scheduled_call: ScheduledCall
    ) -> Identity | None:
        """Return the identity that an earlier attempt minted for this firing, as its result may have been lost."""
        run_record = await self._services.run_records.find_run(root_run.workflow_id)
        if run_record is None:
            return None
        owner = await self._services.principals.find_principal(run_record.principal_id)
        if owner is None or run_record.first_run_id != root_run.first_run_id:
            refusal_message = (
                f"The firing '{root_run.workflow_id}' was begun before, and this is another execution of it."
            )
            await self._refuse_firing(root_run, FiringRefused(refusal_message), schedule, owner)
        return _build_identity(owner, schedule, root_run, scheduled_call)

    async def _mint_new_identity(
        self, root_run: RootRun, schedule: Schedule, scheduled_call: ScheduledCall
    ) -> Identity:
        owner = await self._services.principals.find_principal(schedule.principal_id)
        if schedule.paused_because is not None:
            await self._schedules.pause_in_temporal(schedule, schedule.paused_because)
            refusal_message = f"The schedule '{schedule.name}' is paused: {schedule.paused_because}"
            await self._refuse_firing(root_run, FiringRefused(refusal_message), schedule, owner)
        if (scheduled_call.tool_name, scheduled_call.digest) != (schedule.tool_name, schedule.call_digest):
            refusal_message = (
                f"What Temporal has of the schedule '{schedule.name}' is not what its owner asked for. "
                "Save or resume the schedule to put it right."
            )
            await self._refuse_firing(root_run, FiringRefused(refusal_message), schedule, owner)
        try:
            owner = await self._require_entitled_owner(owner, schedule)
        except (PrincipalInactive, NotAllowed) as error:
            await self._schedules.record_pause(schedule, owner, str(error))
            await self._refuse_firing(root_run, error, schedule, owner)
        return await self._register_run(
            root_run, schedule, _build_identity(owner, schedule, root_run, scheduled_call)
        )

    async def _require_entitled_owner(self, owner: Principal | None, schedule: Schedule) -> Principal:
        if owner is None or not owner.is_active:
            raise PrincipalInactive(schedule.principal_id if owner is None else owner.name)
        await self._services.policy.require_permission(owner, schedule.tool_name)
        return owner

    async def _register_run(self, root_run: RootRun, schedule: Schedule, identity: Identity) -> Identity:
        call_event = AuditEvent(kind="tool.called", identity=identity, run_id=root_run.workflow_id)
        try:
            await self._services.trail.append_event(
                call_event, build_run_row(identity, first_run_id=root_run.first_run_id)
            )
        except IntegrityError:
            # An earlier attempt that had timed out has succeeded meanwhile.
            minted_identity = await self._find_minted_identity(
                root_run, schedule, ScheduledCall(identity.tool_name, identity.call_digest)
            )
            if minted_identity is None:
                raise
            return minted_identity
        return identity

    async def _read_call(self, started_event: WorkflowExecutionStartedEventAttributes) -> ScheduledCall:
        workflow_arguments: list[Any] = await self._temporal_client.data_converter.decode(
            list(started_event.input.payloads)
        )
        tool_name = started_event.workflow_type.name
        match workflow_arguments:
            case []:
                return ScheduledCall(tool_name, digest_call(tool_name, {}))
            case [dict() as call_arguments]:
                return ScheduledCall(tool_name, digest_call(tool_name, call_arguments))
            case _:
                return ScheduledCall(tool_name, "")

    async def _refuse_firing(
        self,
        root_run: RootRun,
        error: BylineError,
        schedule: Schedule | None = None,
        owner: Principal | None = None,
    ) -> NoReturn:
        refusal_event = AuditEvent(
            kind="run.refused",
            principal=owner,
            run_id=root_run.workflow_id,
            object_id=None if schedule is None else schedule.id,
            error=error.code,
            message=str(error),
        )
        await self._services.trail.append_event(refusal_event)
        raise error


def _build_identity(
    owner: Principal, schedule: Schedule, root_run: RootRun, scheduled_call: ScheduledCall
) -> Identity:
    actor = Actor("schedule", schedule.id, schedule.name)
    return Identity.for_run(
        owner,
        actor,
        "schedule",
        run_id=root_run.workflow_id,
        tool_name=scheduled_call.tool_name,
        call_digest=scheduled_call.digest,
    )
