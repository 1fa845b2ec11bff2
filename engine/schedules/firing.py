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
from engine.identity.model import Actor, Identity, Principal, call_digest
from engine.identity.runs import RootRun, run_row
from engine.schedules.records import Schedule
from engine.schedules.schedules import Schedules
from engine.services import Services
from engine.wire import IDENTITY_HEADER, IDENTITY_TYPE, NOTIFY_HEADER, SCHEDULED_BY_ATTRIBUTE


@dataclass(frozen=True, slots=True)
class Call:
    """The call that Temporal started: a tool and its call digest, which is empty if no call has such arguments."""

    tool: str
    digest: str


class Firings:
    """Mints one identity for the root run of each firing, from the history that the Temporal server returns."""

    def __init__(self, services: Services, schedules: Schedules, temporal: Client) -> None:
        self._services = services
        self._schedules = schedules
        self._temporal = temporal

    async def enroll(self, root: RootRun) -> dict[str, Any]:
        """Return the headers of this firing by name, with its signed identity. Repeated calls return the same.

        Raises IdentityMissing for a run that no schedule started, and FiringRefused, PrincipalInactive or NotAllowed
        for a firing that is not valid. The refusal is recorded in the audit trail first.
        """
        try:
            started = await self._started(root)
            schedule = await self._schedule(root, started)
        except IdentityRefused as error:
            await self._refuse(root, error)
        call = await self._call(started)
        identity = await self._enrolled(root, schedule, call)
        if identity is None:
            identity = await self._new(root, schedule, call)
        told = await self._services.notifier.end_listeners(identity.principal_id, identity.trigger)
        return {
            IDENTITY_HEADER: await self._services.keys.sign(identity.claims(), IDENTITY_TYPE),
            **({NOTIFY_HEADER: list(told)} if told else {}),
        }

    async def _started(self, root: RootRun) -> WorkflowExecutionStartedEventAttributes:
        request = GetWorkflowExecutionHistoryRequest(
            namespace=self._temporal.namespace,
            execution=WorkflowExecution(workflow_id=root.workflow_id, run_id=root.first_run_id),
            maximum_page_size=1,
        )
        answer = await self._temporal.workflow_service.get_workflow_execution_history(request)
        return answer.history.events[0].workflow_execution_started_event_attributes

    async def _schedule(self, root: RootRun, started: WorkflowExecutionStartedEventAttributes) -> Schedule:
        (schedule_id,) = decode_search_attributes(started.search_attributes).get(
            SCHEDULED_BY_ATTRIBUTE, [None]
        )
        if schedule_id is None:
            raise IdentityMissing(
                f"Run '{root.workflow_id}' carries no identity, and no schedule began it. Start it through Byline."
            )
        schedule = await self._schedules.records.get(str(schedule_id))
        if schedule is None or not root.workflow_id.startswith(f"{schedule.id}-"):
            raise FiringRefused(
                f"Run '{root.workflow_id}' was begun by a schedule that is not on record. Make schedules through "
                "Byline, which notes in whose name they act, and delete this one in Temporal."
            )
        return schedule

    async def _enrolled(self, root: RootRun, schedule: Schedule, call: Call) -> Identity | None:
        """Return the identity that an earlier attempt minted for this firing, as its result may have been lost."""
        run = await self._services.runs.get(root.workflow_id)
        if run is None:
            return None
        owner = await self._services.principals.get(run.principal_id)
        if owner is None or run.first_run_id != root.first_run_id:
            msg = f"The firing '{root.workflow_id}' was begun before, and this is another execution of it."
            await self._refuse(root, FiringRefused(msg), schedule, owner)
        return _identity(owner, schedule, root, call)

    async def _new(self, root: RootRun, schedule: Schedule, call: Call) -> Identity:
        owner = await self._services.principals.get(schedule.principal_id)
        if schedule.paused_because is not None:
            await self._schedules.hush(schedule, schedule.paused_because)
            msg = f"The schedule '{schedule.name}' is paused: {schedule.paused_because}"
            await self._refuse(root, FiringRefused(msg), schedule, owner)
        if (call.tool, call.digest) != (schedule.tool, schedule.call):
            msg = (
                f"What Temporal has of the schedule '{schedule.name}' is not what its owner asked for. "
                "Save or resume the schedule to put it right."
            )
            await self._refuse(root, FiringRefused(msg), schedule, owner)
        try:
            owner = await self._entitled(owner, schedule)
        except (PrincipalInactive, NotAllowed) as error:
            await self._schedules.stop(schedule, owner, str(error))
            await self._refuse(root, error, schedule, owner)
        return await self._register(root, schedule, _identity(owner, schedule, root, call))

    async def _entitled(self, owner: Principal | None, schedule: Schedule) -> Principal:
        if owner is None or not owner.active:
            raise PrincipalInactive(schedule.principal_id if owner is None else owner.name)
        await self._services.policy.require(owner, schedule.tool)
        return owner

    async def _register(self, root: RootRun, schedule: Schedule, identity: Identity) -> Identity:
        called = AuditEvent(kind="tool.called", identity=identity, run_id=root.workflow_id)
        try:
            await self._services.trail.append(called, run_row(identity, first_run_id=root.first_run_id))
        except IntegrityError:
            # An earlier attempt that had timed out has succeeded meanwhile.
            enrolled = await self._enrolled(root, schedule, Call(identity.tool, identity.call))
            if enrolled is None:
                raise
            return enrolled
        return identity

    async def _call(self, started: WorkflowExecutionStartedEventAttributes) -> Call:
        given: list[Any] = await self._temporal.data_converter.decode(list(started.input.payloads))
        tool = started.workflow_type.name
        match given:
            case []:
                return Call(tool, call_digest(tool, {}))
            case [dict() as arguments]:
                return Call(tool, call_digest(tool, arguments))
            case _:
                return Call(tool, "")

    async def _refuse(
        self,
        root: RootRun,
        error: BylineError,
        schedule: Schedule | None = None,
        owner: Principal | None = None,
    ) -> NoReturn:
        refused = AuditEvent(
            kind="run.refused",
            principal=owner,
            run_id=root.workflow_id,
            object_id=None if schedule is None else schedule.id,
            error=error.code,
            message=str(error),
        )
        await self._services.trail.append(refused)
        raise error


def _identity(owner: Principal, schedule: Schedule, root: RootRun, call: Call) -> Identity:
    actor = Actor("schedule", schedule.id, schedule.name)
    return Identity.of(owner, actor, "schedule", root=root.workflow_id, tool=call.tool, call=call.digest)
