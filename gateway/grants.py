"""How people give up their own grants, by whatever door: forgotten here, revoked upstream, and told in the trail."""

from engine.audit.trail import AuditEvent
from engine.connections.connection import Connection
from engine.errors import AccountUnclear, BylineError, NotAllowed
from engine.identity.model import Principal
from engine.services import Services


async def give_up(
    services: Services, connection: Connection, principal: Principal, account: str | None = None
) -> bool:
    """Remove this person's grant on a connection, of this account or of the only one; False where they have none.

    Raises AccountUnclear where they have several and none is named, and what kept the upstream from being told; the
    grant is forgotten here all the same then, and upkeep tries again.
    """
    if connection.mode == "shared":
        msg = f"Connection '{connection.name}' is shared: an administrator removes its grant, with `byline grants`."
        raise NotAllowed(msg)
    try:
        removed = await services.grants.remove(connection, principal.id, account)
    except AccountUnclear:
        raise
    except BylineError as error:
        # It is forgotten here by now, whatever the upstream made of that.
        await _record(services, connection, principal, account, error)
        raise
    if removed is not None:
        await _record(services, connection, principal, removed)
    return removed is not None


async def _record(
    services: Services,
    connection: Connection,
    principal: Principal,
    account: str | None,
    error: BylineError | None = None,
) -> None:
    event = AuditEvent(
        kind="grant.removed",
        principal=principal,
        connection=connection.name,
        account=account,
        error=None if error is None else error.code,
        message=None if error is None else str(error),
    )
    await services.trail.append(event)
