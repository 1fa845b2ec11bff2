"""How grants are given up, by whatever door: forgotten here, revoked upstream, and told in the trail."""

from dataclasses import replace

from engine.audit.trail import AuditEvent
from engine.connections.connection import SHARED, Connection
from engine.errors import AccountUnclear, BylineError, NotAllowed
from engine.identity.model import Principal
from engine.services import Services


async def give_up(
    services: Services, connection: Connection, principal: Principal, account: str | None = None
) -> bool:
    """Remove this person's grant on a connection, of this account or of the only one; False where they have none.

    Raises NotAllowed where the connection is shared, and what `remove_grant` raises.
    """
    if connection.mode == "shared":
        raise NotAllowed(
            f"Connection '{connection.name}' is shared: an administrator removes its grant, with `byline grants`."
        )
    return await remove_grant(services, connection, principal, account)


async def remove_grant(
    services: Services, connection: Connection, holder: Principal | None, account: str | None = None
) -> bool:
    """Remove a grant of this account or the only one, the shared one where nobody holds it; False where there is none.

    Raises AccountUnclear where there are several and none is named, and what kept the upstream from being told; the
    grant is forgotten here all the same then, and upkeep tries again.
    """
    event = AuditEvent(kind="grant.removed", principal=holder, connection=connection.name, account=account)
    try:
        removed = await services.grants.remove(connection, SHARED if holder is None else holder.id, account)
    except AccountUnclear:
        raise
    except BylineError as error:
        # It is forgotten here by now, whatever the upstream made of that.
        await services.trail.append(replace(event, error=error.code, message=str(error)))
        raise
    if removed is not None:
        await services.trail.append(replace(event, account=removed))
    return removed is not None
