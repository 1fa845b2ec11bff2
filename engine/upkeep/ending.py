"""Ends all grants of a principal, here at once and upstream as soon as possible. Each has its line in the trail."""

from dataclasses import dataclass

from engine.audit.trail import AuditEvent
from engine.connections.revocations import Revocation
from engine.errors import BylineError
from engine.identity.model import Principal
from engine.services import Services


@dataclass(frozen=True, slots=True)
class Ended:
    """One grant that ended; `is_upstream_done` is true where its upstream was told or cannot be told at all."""

    connection: str
    told: bool


async def end_grants(services: Services, principal: Principal) -> list[Ended]:
    """End every grant of a principal; upkeep later tells an upstream that cannot be told now."""
    ended = []
    await services.company_sign_ins.forget(principal.id)
    for grant in await services.grants.end_all(principal.id):
        error, message = await _tell(services, grant.id, grant.connection)
        await services.trail.append(
            AuditEvent(
                kind="grant.removed",
                principal=principal,
                connection=grant.connection,
                grant_id=grant.id,
                account=grant.account,
                error=error,
                message=message,
            )
        )
        ended.append(Ended(grant.connection, error is None))
    return ended


async def tell_upstream(services: Services, owed: Revocation) -> bool:
    """Tell an upstream that a grant ended; return False where it is to be tried again.

    After the last try the tokens are deleted either way.
    """
    error, message = await _tell(services, owed.grant_id, owed.connection)
    if error is not None and not owed.is_last:
        return False
    if error is not None:
        await services.revocations.forget(owed.grant_id)
    await services.trail.append(
        AuditEvent(
            kind="grant.revoked",
            principal=await services.principals.get(owed.holder),
            connection=owed.connection,
            grant_id=owed.grant_id,
            error=error,
            message=message,
        )
    )
    return True


async def _tell(services: Services, grant_id: str, connection: str) -> tuple[str | None, str | None]:
    """Tell the upstream, and return the error code and the words of what prevented it."""
    try:
        declared = await services.catalogue.get(connection)
        if await services.revocations.settle(declared, grant_id):
            return None, None
    except BylineError as error:
        await services.revocations.put_off(grant_id)
        return error.code, str(error)
    return None, f"{declared.title} has no way to be told, or does not take it."
