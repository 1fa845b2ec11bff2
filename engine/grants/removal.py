"""Removes grants: deletes each here with its line in the trail, then revokes it upstream.

An upstream that cannot be told now is told later by upkeep.
"""

from dataclasses import dataclass, replace
from typing import Literal

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent, AuditTrail
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import SHARED_HOLDER, Connection
from engine.errors import AccountUnclear, BylineError, NotAllowed
from engine.grants.grants import Grant, Grants
from engine.grants.revocations import PendingRevocation, Revocations
from engine.identity.model import Principal
from engine.identity.principals import Principals


@dataclass(frozen=True, slots=True)
class RemovedGrant:
    """A grant that was removed. `upstream_error` kept its upstream from being told, which upkeep does later."""

    grant: Grant
    upstream_error: BylineError | None


class GrantRemoval:
    """Removes grants for their owners, for administrators, and of principals who were deactivated."""

    def __init__(
        self,
        catalogue: ConnectionCatalogue,
        principals: Principals,
        grants: Grants,
        revocations: Revocations,
        trail: AuditTrail,
    ) -> None:
        self._catalogue = catalogue
        self._principals = principals
        self._grants = grants
        self._revocations = revocations
        self._trail = trail

    async def remove_own_grant(
        self, connection: Connection, owner: Principal, account: str | None = None
    ) -> Grant | None:
        """Remove this principal's grant on a connection, of this account or the only one; None if there is none.

        Raises NotAllowed if the connection is shared, and what `remove_grant` raises.
        """
        if connection.mode == "shared":
            raise NotAllowed(
                f"Connection '{connection.name}' is shared: an administrator removes its grant, with `byline grants`."
            )
        return await self._remove_one_grant(connection, owner, account, None)

    async def remove_grant(
        self,
        administrator: Administrator,
        connection: Connection,
        holder: Principal | None,
        account: str | None = None,
    ) -> Grant | None:
        """Remove the holder's grant, of this account or the only one; None if there is none.

        Without a holder, the shared grant is removed. Raises AccountUnclear if there are several grants and no account
        is named, and the error that kept the upstream from being told. The grant is removed here nevertheless, and
        upkeep tells the upstream later.
        """
        return await self._remove_one_grant(connection, holder, account, administrator)

    async def remove_all_grants(
        self, holder: Principal, administrator: Administrator | None
    ) -> list[RemovedGrant]:
        """Remove every grant of a principal. `administrator` is None where upkeep does so."""
        removed_grants = []
        for grant in await self._grants.list_grants(holder.id):
            if await self._delete_grant(grant, holder, administrator):
                upstream_error = await self._revoke_upstream(grant.id, grant.connection_name, holder)
                removed_grants.append(RemovedGrant(grant, upstream_error))
        return removed_grants

    async def retry_revocation(self, revocation: PendingRevocation) -> bool:
        """Tell an upstream that a grant was removed; return False where it is to be tried again.

        After the last try the tokens are deleted either way.
        """
        holder = await self._principals.find_principal(revocation.holder)
        upstream_error = await self._revoke_upstream(
            revocation.grant_id,
            revocation.connection_name,
            holder,
            attempt="last" if revocation.is_last_try else "repeated",
        )
        return upstream_error is None or revocation.is_last_try

    async def _remove_one_grant(
        self,
        connection: Connection,
        holder: Principal | None,
        account: str | None,
        administrator: Administrator | None,
    ) -> Grant | None:
        matching_grants = [
            grant
            for grant in await self._grants.list_grants(SHARED_HOLDER if holder is None else holder.id)
            if grant.connection_name == connection.name and account in {None, grant.account}
        ]
        if len(matching_grants) > 1:
            account_names = ", ".join(f"'{grant.account}'" for grant in matching_grants)
            raise AccountUnclear(
                f"There are several accounts on connection '{connection.name}': say which of {account_names}."
            )
        for grant in matching_grants:
            if await self._delete_grant(grant, holder, administrator):
                upstream_error = await self._revoke_upstream(grant.id, connection, holder)
                if upstream_error is not None:
                    raise upstream_error
                return grant
        return None

    async def _delete_grant(
        self, grant: Grant, holder: Principal | None, administrator: Administrator | None
    ) -> bool:
        """Delete a grant here, with its line in the same transaction; return False if it is gone already."""
        audit_event = AuditEvent(
            kind="grant.removed",
            principal=holder,
            connection=grant.connection_name,
            grant_id=grant.id,
            account=grant.account,
        )
        if administrator is not None:
            audit_event = attribute_event(audit_event, administrator)
        async with self._trail.open_transaction() as transaction:
            is_deleted = await self._grants.revoke_grant(transaction.db_session, grant.id)
            if is_deleted:
                transaction.record(audit_event)
        return is_deleted

    async def _revoke_upstream(
        self,
        grant_id: str,
        named_connection: Connection | str,
        holder: Principal | None,
        *,
        attempt: Literal["first", "repeated", "last"] = "first",
    ) -> BylineError | None:
        """Tell the upstream, and delete the revocation together with the line that says so.

        Returns the error that kept the upstream from being told. The revocation is then postponed, or deleted at the
        last attempt; repeated attempts in between leave no line. A grant without tokens has nothing to revoke, and
        leaves no line either.
        """
        audit_event = AuditEvent(
            kind="grant.revoked",
            principal=holder,
            connection=named_connection if isinstance(named_connection, str) else named_connection.name,
            grant_id=grant_id,
        )
        try:
            connection = (
                await self._catalogue.get_connection(named_connection)
                if isinstance(named_connection, str)
                else named_connection
            )
            is_accepted = await self._revocations.revoke_upstream(connection, grant_id)
        except BylineError as error:
            failure_event = replace(audit_event, error=error.code, message=str(error))
            if attempt == "last":
                await self._close_revocation(failure_event)
            else:
                async with self._trail.open_transaction() as transaction:
                    await self._revocations.postpone_revocation(transaction.db_session, grant_id)
                    if attempt == "first":
                        transaction.record(failure_event)
            return error
        if is_accepted is False:
            audit_event = replace(
                audit_event, message=f"{connection.title} has no way to be told, or does not take it."
            )
        if is_accepted is not None:
            await self._close_revocation(audit_event)
        return None

    async def _close_revocation(self, audit_event: AuditEvent) -> None:
        async with self._trail.open_transaction() as transaction:
            await self._revocations.delete_revocation(transaction.db_session, str(audit_event.grant_id))
            transaction.record(audit_event)
