"""Renews the tokens of grants, once per grant even if many tasks and processes ask at the same time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from engine.connections.connection import SHARED, Connection
from engine.connections.grant_records import GrantRecords, is_in_force
from engine.connections.oauth import TokenRefused
from engine.connections.sign_in.methods import SignIn
from engine.connections.tokens import Tokens
from engine.db.database import now
from engine.db.tables import GrantRow
from engine.errors import BylineError, ConnectionMisconfigured, UpstreamUnavailable

_BEFORE_EXPIRY = timedelta(seconds=30)
_LEASE = timedelta(seconds=45)
_LEASE_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Renewal:
    """The result of renewing an idle grant. `fingerprint` is the new token's, None if the provider ended the grant."""

    grant_id: str
    holder: str
    account: str
    fingerprint: str | None


class Renewals:
    """Requests new tokens from providers, for people's grants and for those of the service itself."""

    def __init__(self, records: GrantRecords, sign_in: Callable[[Connection], SignIn]) -> None:
        self._records = records
        self._sign_in = sign_in

    async def in_time(self, connection: Connection, row: GrantRow) -> GrantRow | None:
        """Return the grant, renewed if it expires within 30 seconds, or None if the provider ended it."""
        if row.expires_at is None or row.expires_at >= now() + _BEFORE_EXPIRY:
            return row
        return await self.renewed(connection, row)

    async def renewed(self, connection: Connection, row: GrantRow) -> GrantRow | None:
        """Return the grant with newer tokens, or the active grant that replaced it, or None if the provider ended it.

        One process takes the lease and renews the grant, while the others wait. Raises ConnectionMisconfigured, or an
        UpstreamFailed such as UpstreamUnavailable if the renewal takes longer than the lease.
        """
        deadline = now() + _LEASE
        current: GrantRow | None = row
        while now() < deadline:
            if current is None or not is_in_force(current):
                return await self._records.in_force(connection, row.holder, row.account)
            if current.version != row.version:
                return current
            if _is_free(current) and await self._records.lease(current, _LEASE):
                # Rotation has invalidated the old refresh token, so the response is stored even if the caller is gone.
                return await asyncio.shield(self._renew_leased(connection, current))
            await asyncio.sleep(_LEASE_POLL_SECONDS)
            current = await self._records.get(row.id)
        raise UpstreamUnavailable(
            f"The tokens of connection '{connection.name}' are being renewed elsewhere and are not done yet."
        )

    async def idle(self, connection: Connection, since: datetime, limit: int = 100) -> list[str]:
        """Return the ids of active grants whose tokens were last renewed before this time, the longest idle first."""
        return await self._records.idle(connection, since, limit)

    async def keep(self, connection: Connection, grant_id: str) -> Renewal | None:
        """Renew a grant that no action is using. Returns None if it is not active or has no refresh token."""
        row = await self._records.get(grant_id)
        if row is None or not is_in_force(row) or (await self._records.tokens(row)).refresh_token is None:
            return None
        renewed = await self.renewed(connection, row)
        return Renewal(row.id, row.holder, row.account, None if renewed is None else renewed.fingerprint)

    async def shared(self, connection: Connection) -> GrantRow | None:
        """Return the service's grant, signing in if there is none, or None if a person has to sign in.

        Raises ConnectionMisconfigured if the provider refuses the sign-in.
        """
        held = await self._records.in_force(connection, SHARED)
        if held is not None:
            return held
        try:
            tokens = await self._sign_in(connection).unasked(SHARED, connection.scopes)
        except TokenRefused as error:
            raise ConnectionMisconfigured(
                f"The shared connection '{connection.name}' cannot sign in: {error}"
            ) from None
        if tokens is None:
            return None
        account = f"{tokens.account or connection.client_id} (shared)".lstrip()
        added = await self._records.add_shared(connection, tokens, account)
        return added or await self._records.in_force(connection, SHARED)

    async def _renew_leased(self, connection: Connection, row: GrantRow) -> GrantRow | None:
        try:
            fresh = await self._fresh(connection, row)
        except BylineError:
            await self._records.release(row.id)
            raise
        if fresh is None:
            await self._records.lapse(row.id)
            return None
        return await self._records.renew(row.id, fresh)

    async def _fresh(self, connection: Connection, row: GrantRow) -> Tokens | None:
        try:
            return await self._sign_in(connection).renewed(row.holder, await self._records.tokens(row))
        except TokenRefused as error:
            if error.error == "invalid_grant":
                return None
            raise ConnectionMisconfigured(
                f"Connection '{connection.name}' cannot renew its tokens: {error}"
            ) from None


def _is_free(row: GrantRow) -> bool:
    return row.refreshing_until is None or row.refreshing_until < now()
