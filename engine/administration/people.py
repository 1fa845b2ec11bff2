"""Activates and deactivates principals. Whoever is deactivated loses their grants and has their schedules paused."""

from dataclasses import dataclass

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent
from engine.errors import TemporalUnreachable
from engine.grants.removal import RemovedGrant
from engine.identity.model import Principal
from engine.schedules.schedule_records import ScheduleRecords
from engine.schedules.temporal_schedules import TemporalSchedules
from engine.services import Services
from engine.temporal import connect_temporal


@dataclass(frozen=True, slots=True)
class Deactivation:
    """What a deactivation took with it: paused schedules, whether Temporal knows of them, and removed grants."""

    paused_schedule_ids: list[str]
    is_temporal_notified: bool
    removed_grants: list[RemovedGrant]


async def activate_principal(services: Services, administrator: Administrator, principal: Principal) -> None:
    """Let a principal act again."""
    await _set_active(services, administrator, principal, is_active=True)


async def deactivate_principal(
    services: Services, administrator: Administrator, principal: Principal
) -> Deactivation:
    """Stop a principal from the next action on, pause their schedules and remove their grants.

    After an interruption, upkeep removes the grants, and a schedule is refused when it fires.
    """
    await _set_active(services, administrator, principal, is_active=False)
    paused_schedule_ids, is_temporal_notified = await _pause_schedules(services, principal)
    removed_grants = await remove_access(services, principal, administrator)
    return Deactivation(paused_schedule_ids, is_temporal_notified, removed_grants)


async def remove_access(
    services: Services, principal: Principal, administrator: Administrator | None
) -> list[RemovedGrant]:
    """Delete a principal's session at the identity provider and remove every grant of theirs.

    `administrator` is None where upkeep finishes a deactivation that was interrupted.
    """
    await services.idp_sessions.delete_session(principal.id)
    return await services.grant_removal.remove_all_grants(principal, administrator)


async def _set_active(
    services: Services, administrator: Administrator, principal: Principal, *, is_active: bool
) -> None:
    audit_event = AuditEvent(
        kind="principal.activated" if is_active else "principal.deactivated", principal=principal
    )
    async with services.trail.open_transaction() as transaction:
        if await services.principals.set_active(transaction.db_session, principal.id, is_active=is_active):
            transaction.record(attribute_event(audit_event, administrator))


async def _pause_schedules(services: Services, principal: Principal) -> tuple[list[str], bool]:
    """Pause a principal's schedules; return their ids, and False where Temporal could not be told.

    The pause is recorded, so it holds even if Temporal cannot be reached.
    """
    pause_reason = f"{principal.name} is not active here any more."
    paused_schedule_ids = await ScheduleRecords(services).pause_all_schedules(principal, pause_reason)
    if not paused_schedule_ids:
        return [], True
    temporal_settings = services.settings.temporal
    try:
        temporal_schedules = TemporalSchedules(
            await connect_temporal(temporal_settings), temporal_settings.task_queue
        )
        for schedule_id in paused_schedule_ids:
            await temporal_schedules.pause_schedule(schedule_id, pause_reason)
    except TemporalUnreachable:
        return paused_schedule_ids, False
    return paused_schedule_ids, True
