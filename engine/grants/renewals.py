"""Renews the tokens of grants, once per grant even if many tasks and processes ask at the same time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from engine.connections.connection import SHARED_HOLDER, Connection
from engine.db.database import utc_now
from engine.db.lease import FreshRow, StaleRow
from engine.db.tables import GrantRow
from engine.errors import ConnectionMisconfigured, UpstreamUnavailable
from engine.grants.grant_records import GrantRecords, is_active_grant, select_version
from engine.grants.token_source import TokenSource
from engine.oauth.client import TokenRefused
from engine.oauth.tokens import UpstreamTokens

_RENEW_BEFORE_EXPIRY = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class GrantRenewal:
    """The result of renewing an idle grant. `fingerprint` is the new token's, None if the provider ended the grant."""

    grant_id: str
    holder: str
    account: str
    fingerprint: str | None


class GrantRenewals:
    """Requests new tokens from providers, for people's grants and for those of the service itself."""

    def __init__(
        self, grant_records: GrantRecords, find_token_source: Callable[[Connection], TokenSource]
    ) -> None:
        self._grant_records = grant_records
        self._find_token_source = find_token_source

    async def renew_if_expiring(self, connection: Connection, grant_row: GrantRow) -> GrantRow | None:
        """Return the grant, renewed if it expires within 30 seconds, or None if the provider ended it."""
        if grant_row.expires_at is None or grant_row.expires_at >= utc_now() + _RENEW_BEFORE_EXPIRY:
            return grant_row
        return await self.renew_grant(connection, grant_row)

    async def renew_grant(self, connection: Connection, grant_row: GrantRow) -> GrantRow | None:
        """Return the grant with newer tokens, or the active grant that replaced it, or None if the provider ended it.

        One process takes the lease and renews the grant, while the others wait. Raises ConnectionMisconfigured, or an
        UpstreamFailed such as UpstreamUnavailable if the renewal takes longer than the lease.
        """

        async def read_grant() -> (
            FreshRow[GrantRow | None] | StaleRow[UpstreamTokens | None, GrantRow | None]
        ):
            current_row = await self._grant_records.find_grant(grant_row.id)
            if current_row is None or not is_active_grant(current_row):
                return FreshRow(
                    await self._grant_records.find_active_grant(
                        connection, grant_row.holder, grant_row.account
                    )
                )
            if current_row.version != grant_row.version:
                return FreshRow(current_row)
            return StaleRow(
                select_version(current_row),
                lambda: self._request_new_tokens(connection, current_row),
                lambda new_tokens: self._store_new_tokens(current_row, new_tokens),
                current_row.refreshing_until,
            )

        try:
            return await self._grant_records.lease.renew_once(read_grant)
        except TimeoutError:
            raise UpstreamUnavailable(
                f"The tokens of connection '{connection.name}' are being renewed elsewhere and are not done yet."
            ) from None

    async def list_idle_grant_ids(
        self, connection: Connection, renewed_before: datetime, max_rows: int = 100
    ) -> list[str]:
        """Return the ids of active grants whose tokens were last renewed before this time, the longest idle first."""
        return await self._grant_records.list_idle_grant_ids(connection, renewed_before, max_rows)

    async def renew_idle_grant(self, connection: Connection, grant_id: str) -> GrantRenewal | None:
        """Renew a grant that no action is using. Returns None if it is not active or has no refresh token."""
        grant_row = await self._grant_records.find_grant(grant_id)
        if (
            grant_row is None
            or not is_active_grant(grant_row)
            or (await self._grant_records.open_tokens(grant_row)).refresh_token is None
        ):
            return None
        renewed_row = await self.renew_grant(connection, grant_row)
        return GrantRenewal(
            grant_row.id,
            grant_row.holder,
            grant_row.account,
            None if renewed_row is None else renewed_row.fingerprint,
        )

    async def obtain_shared_grant(self, connection: Connection) -> GrantRow | None:
        """Return the service's grant, signing in if there is none, or None if a person has to sign in.

        Raises ConnectionMisconfigured if the provider refuses the sign-in.
        """
        active_row = await self._grant_records.find_active_grant(connection, SHARED_HOLDER)
        if active_row is not None:
            return active_row
        try:
            tokens = await self._find_token_source(connection).request_tokens_without_person(
                SHARED_HOLDER, connection.scopes
            )
        except TokenRefused as error:
            raise ConnectionMisconfigured(
                f"The shared connection '{connection.name}' cannot sign in: {error}"
            ) from None
        if tokens is None:
            return None
        account = f"{tokens.account or connection.client_id} (shared)".lstrip()
        added_row = await self._grant_records.add_shared_grant(connection, tokens, account)
        return added_row or await self._grant_records.find_active_grant(connection, SHARED_HOLDER)

    async def _store_new_tokens(
        self, grant_row: GrantRow, new_tokens: UpstreamTokens | None
    ) -> GrantRow | None:
        if new_tokens is None:
            await self._grant_records.lapse_grant(grant_row.id)
            return None
        return await self._grant_records.store_renewed_tokens(grant_row.id, new_tokens)

    async def _request_new_tokens(self, connection: Connection, grant_row: GrantRow) -> UpstreamTokens | None:
        try:
            return await self._find_token_source(connection).renew(
                grant_row.holder, await self._grant_records.open_tokens(grant_row)
            )
        except TokenRefused as error:
            if error.error_code == "invalid_grant":
                return None
            raise ConnectionMisconfigured(
                f"Connection '{connection.name}' cannot renew its tokens: {error}"
            ) from None
