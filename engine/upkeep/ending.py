"""Ends all grants of a principal, here at once and upstream as soon as possible. Each has its line in the trail."""

from dataclasses import dataclass

from engine.audit.trail import AuditEvent
from engine.errors import BylineError
from engine.grants.revocations import PendingRevocation
from engine.identity.model import Principal
from engine.services import Services


@dataclass(frozen=True, slots=True)
class EndedGrant:
    """One grant that ended; `is_upstream_done` is true where its upstream was told or cannot be told at all."""

    connection_name: str
    is_upstream_done: bool


async def end_grants(services: Services, principal: Principal) -> list[EndedGrant]:
    """End every grant of a principal; upkeep later tells an upstream that cannot be told now."""
    ended_grants = []
    await services.idp_sessions.delete_session(principal.id)
    for grant in await services.grants.revoke_all_grants(principal.id):
        error_code, error_message = await _try_revocation(services, grant.id, grant.connection_name)
        await services.trail.append_event(
            AuditEvent(
                kind="grant.removed",
                principal=principal,
                connection=grant.connection_name,
                grant_id=grant.id,
                account=grant.account,
                error=error_code,
                message=error_message,
            )
        )
        ended_grants.append(EndedGrant(grant.connection_name, error_code is None))
    return ended_grants


async def revoke_upstream(services: Services, revocation: PendingRevocation) -> bool:
    """Tell an upstream that a grant ended; return False where it is to be tried again.

    After the last try the tokens are deleted either way.
    """
    error_code, error_message = await _try_revocation(
        services, revocation.grant_id, revocation.connection_name
    )
    if error_code is not None and not revocation.is_last_try:
        return False
    if error_code is not None:
        await services.revocations.delete_revocation(revocation.grant_id)
    await services.trail.append_event(
        AuditEvent(
            kind="grant.revoked",
            principal=await services.principals.find_principal(revocation.holder),
            connection=revocation.connection_name,
            grant_id=revocation.grant_id,
            error=error_code,
            message=error_message,
        )
    )
    return True


async def _try_revocation(
    services: Services, grant_id: str, connection_name: str
) -> tuple[str | None, str | None]:
    """Tell the upstream, and return the error code and the words of what prevented it."""
    try:
        connection = await services.catalogue.get_connection(connection_name)
        if await services.revocations.revoke_upstream(connection, grant_id):
            return None, None
    except BylineError as error:
        await services.revocations.postpone_revocation(grant_id)
        return error.code, str(error)
    return None, f"{connection.title} has no way to be told, or does not take it."
