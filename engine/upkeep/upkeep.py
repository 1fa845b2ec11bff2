"""The parts of upkeep. Each does what is due and may be repeated. They call token endpoints, and no upstream's API."""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from temporalio.client import Client

from engine.administration.people import remove_access
from engine.audit.trail import AuditEvent
from engine.connections.connection import Connection
from engine.db.database import utc_now
from engine.errors import BylineError
from engine.grants.renewals import GrantRenewal
from engine.services import Services
from engine.upkeep.retained_runs import find_retained_runs, read_namespace_id

_RENEWAL_FRACTION: Final = 0.6
_RUNS_PER_BATCH: Final = 500
_MAX_RUNS_PER_FIRING: Final = 10_000

log = structlog.get_logger()


class UpkeepParts:
    """Periodic work in nobody's name. What it does to a grant is in the trail under the name of the grant's holder."""

    def __init__(self, services: Services, temporal_client: Client) -> None:
        self._services = services
        self._temporal_client = temporal_client
        self._parts_by_name: dict[str, Callable[[], Awaitable[int]]] = {
            "end": self._end_grants,
            "revoke": self._revoke_upstream,
            "renew": self._renew_idle_grants,
            "expire": self._expire_records,
        }

    async def do_part(self, part_name: str) -> int:
        """Do one part and return how many items it handled; raises ValueError for a part of another release."""
        if part_name not in self._parts_by_name:
            raise ValueError(f"there is no upkeep called '{part_name}'")
        return await self._parts_by_name[part_name]()

    async def _end_grants(self) -> int:
        """End the grants of every inactive principal, which a deactivation left when it was interrupted."""
        holder_ids = await self._services.grants.list_holders()
        inactive_holders = [
            principal
            for principal in await self._services.principals.list_principals()
            if not principal.is_active and principal.id in holder_ids
        ]
        return sum(
            [len(await remove_access(self._services, principal, None)) for principal in inactive_holders]
        )

    async def _revoke_upstream(self) -> int:
        """Tell upstreams of the ended grants that they could not be told of before."""
        due_revocations = await self._services.revocations.list_due_revocations()
        return sum(
            [
                await self._services.grant_removal.retry_revocation(revocation)
                for revocation in due_revocations
            ]
        )

    async def _renew_idle_grants(self) -> int:
        """Renew grants whose refresh tokens are about to expire because nobody uses them."""
        renewed_count = 0
        for connection in (await self._services.catalogue.list_connections()).values():
            token_lifetime = connection.provider.refresh_token_life
            if token_lifetime is None or connection.mode != "user":
                continue
            for grant_id in await self._services.renewals.list_idle_grant_ids(
                connection, utc_now() - token_lifetime * _RENEWAL_FRACTION
            ):
                renewed_count += await self._renew_grant(connection, grant_id)
        return renewed_count

    async def _renew_grant(self, connection: Connection, grant_id: str) -> bool:
        try:
            renewal = await self._services.renewals.renew_idle_grant(connection, grant_id)
        except BylineError as error:
            # The next firing tries again, or the next action that needs the grant, which then informs its person.
            log.warning("grant_not_renewed", connection=connection.name, error=error.code)
            return False
        if renewal is not None:
            await self._services.trail.append_event(await self._make_renewal_event(connection, renewal))
        return renewal is not None

    async def _make_renewal_event(self, connection: Connection, renewal: GrantRenewal) -> AuditEvent:
        return AuditEvent(
            kind="grant.renewed",
            principal=await self._services.principals.find_principal(renewal.holder),
            connection=connection.name,
            mode=connection.mode,
            system=connection.system,
            grant_id=renewal.grant_id,
            account=renewal.account,
            fingerprint=renewal.fingerprint,
            error=None if renewal.fingerprint else "invalid_grant",
        )

    async def _expire_records(self) -> int:
        """Expire or delete what is over, up to a limit a firing: requests, attempts, codes, waits, notes, accounts."""
        cleanup_functions = (
            self._services.authorization_requests.expire_overdue_requests,
            self._services.authorization_attempts.delete_expired_attempts,
            self._services.pending_device_codes.delete_expired_codes,
            self._services.waiters.delete_expired_waiters,
            self._services.notification_channels.delete_old_claims,
            self._delete_account_choices,
        )
        return sum([await clean_up() for clean_up in cleanup_functions])

    async def _delete_account_choices(self) -> int:
        """Delete the account choices of runs that Temporal no longer retains, which can neither go on nor be reset."""
        namespace_id, deleted_count = await read_namespace_id(self._temporal_client), 0
        for _ in range(_MAX_RUNS_PER_FIRING // _RUNS_PER_BATCH):
            due_run_ids = await self._services.accounts.list_due_runs(_RUNS_PER_BATCH)
            if not due_run_ids:
                break
            retained_run_ids = await find_retained_runs(self._temporal_client, due_run_ids)
            deleted_count += await self._services.accounts.forget_deleted_runs(
                due_run_ids, retained_run_ids, namespace_id
            )
        return deleted_count
