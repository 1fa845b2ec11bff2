"""How people give up their own grants, by whatever door: forgotten here, revoked upstream, and told in the trail."""

from engine.audit.trail import AuditEvent
from engine.connections.catalogue import Connection
from engine.errors import BylineError, NotAllowed
from engine.identity.model import Principal
from engine.services import Services


async def give_up(services: Services, connection: Connection, principal: Principal) -> bool:
    """Remove this person's grant on a connection; False where they have none.

    Raises what kept the upstream from being told; the grant is forgotten here all the same, and upkeep tries again.
    """
    if connection.mode == "shared":
        msg = f"Connection '{connection.name}' is shared: an administrator removes its grant, with `byline grants`."
        raise NotAllowed(msg)
    try:
        removed = await services.grants.remove(connection, principal.id)
    except BylineError as error:
        # It is forgotten here by now, whatever the upstream made of that.
        await _record(services, connection, principal, error)
        raise
    if removed:
        await _record(services, connection, principal)
    return removed


async def _record(
    services: Services, connection: Connection, principal: Principal, error: BylineError | None = None
) -> None:
    event = AuditEvent(
        kind="grant.removed",
        principal=principal,
        connection=connection.name,
        error=None if error is None else error.code,
        message=None if error is None else str(error),
    )
    await services.trail.append(event)
