"""Removes grants for all entry points: deletes them, revokes them upstream and records that in the audit trail."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from engine.audit.trail import AuditEvent
from engine.connections.connection import SHARED_HOLDER, Connection
from engine.errors import AccountUnclear, BylineError, NotAllowed
from engine.identity.model import Principal
from engine.services import Services

OwnGrantRemoval = Callable[[Connection, Principal, str | None], Awaitable[bool]]
"""Removes a person's own grant on a connection, of this account or the only one; False where they have none."""


async def remove_own_grant(
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
    """Remove the holder's grant, of this account or the only one; False where there is none.

    Without a holder, the shared grant is removed. Raises AccountUnclear where there are several grants and no account
    is named, and the error of an upstream revocation that failed. In that case the grant is deleted here all the same,
    and upkeep tries the revocation again.
    """
    audit_event = AuditEvent(
        kind="grant.removed", principal=holder, connection=connection.name, account=account
    )
    try:
        removed_account = await services.grants.revoke_grant(
            connection, SHARED_HOLDER if holder is None else holder.id, account
        )
    except AccountUnclear:
        raise
    except BylineError as error:
        # The grant is deleted here by now, whatever the upstream answered.
        await services.trail.append_event(replace(audit_event, error=error.code, message=str(error)))
        raise
    if removed_account is not None:
        await services.trail.append_event(replace(audit_event, account=removed_account))
    return removed_account is not None
