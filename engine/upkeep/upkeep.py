"""The parts of upkeep. Each does what is due and may be repeated. They call token endpoints, and no upstream's API."""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from temporalio.client import Client

from engine.audit.trail import AuditEvent
from engine.connections.connection import Connection
from engine.connections.renewals import Renewal
from engine.db.database import now
from engine.errors import BylineError
from engine.services import Services
from engine.upkeep.ending import end_grants, tell_upstream
from engine.upkeep.kept_runs import kept, namespace_id

_OF_ITS_LIFE: Final = 0.6
_RUNS_AT_ONCE: Final = 500
_MOST_RUNS: Final = 10_000

log = structlog.get_logger()


class Upkeep:
    """Periodic work in nobody's name. What it does to a grant is in the trail under the name of the grant's holder."""

    def __init__(self, services: Services, temporal: Client) -> None:
        self._services = services
        self._temporal = temporal
        self._parts: dict[str, Callable[[], Awaitable[int]]] = {
            "end": self._end,
            "revoke": self._revoke,
            "renew": self._renew,
            "expire": self._expire,
        }

    async def do(self, part: str) -> int:
        """Do one part and return how many items it handled; raises ValueError for a part of another release."""
        if part not in self._parts:
            raise ValueError(f"there is no upkeep called '{part}'")
        return await self._parts[part]()

    async def _end(self) -> int:
        """End the grants of every inactive principal, which a deactivation left when it was interrupted."""
        holders = await self._services.grants.holders()
        gone = [
            each for each in await self._services.principals.all() if not each.active and each.id in holders
        ]
        return sum([len(await end_grants(self._services, principal)) for principal in gone])

    async def _revoke(self) -> int:
        """Tell upstreams of the ended grants that they could not be told of before."""
        due = await self._services.revocations.due()
        return sum([await tell_upstream(self._services, owed) for owed in due])

    async def _renew(self) -> int:
        """Renew grants whose refresh tokens are about to expire because nobody uses them."""
        renewed = 0
        for connection in (await self._services.catalogue.all()).values():
            life = connection.provider.refresh_token_life
            if life is None or connection.mode != "user":
                continue
            for grant_id in await self._services.renewals.idle(connection, now() - life * _OF_ITS_LIFE):
                renewed += await self._renewed(connection, grant_id)
        return renewed

    async def _renewed(self, connection: Connection, grant_id: str) -> bool:
        try:
            renewal = await self._services.renewals.keep(connection, grant_id)
        except BylineError as error:
            # The next firing tries again, or the next action that needs the grant, which then informs its person.
            log.warning("grant_not_renewed", connection=connection.name, error=error.code)
            return False
        if renewal is not None:
            await self._services.trail.append(await self._renewal_event(connection, renewal))
        return renewal is not None

    async def _renewal_event(self, connection: Connection, renewal: Renewal) -> AuditEvent:
        return AuditEvent(
            kind="grant.renewed",
            principal=await self._services.principals.get(renewal.holder),
            connection=connection.name,
            mode=connection.mode,
            system=connection.system,
            grant_id=renewal.grant_id,
            account=renewal.account,
            fingerprint=renewal.fingerprint,
            error=None if renewal.fingerprint else "invalid_grant",
        )

    async def _expire(self) -> int:
        """Expire or delete what is over, up to a limit a firing: requests, attempts, codes, waits, notes, accounts."""
        over = (
            self._services.authorization.expire,
            self._services.consent.forget,
            self._services.devices.forget,
            self._services.waiters.forget,
            self._services.channels.forget,
            self._forget_accounts,
        )
        return sum([await put_away() for put_away in over])

    async def _forget_accounts(self) -> int:
        """Delete the account choices of runs that Temporal no longer retains, which can neither go on nor be reset."""
        namespace, forgotten = await namespace_id(self._temporal), 0
        for _ in range(_MOST_RUNS // _RUNS_AT_ONCE):
            due = await self._services.accounts.due(_RUNS_AT_ONCE)
            if not due:
                break
            known = await kept(self._temporal, due)
            forgotten += await self._services.accounts.forget(due, known, namespace)
        return forgotten
