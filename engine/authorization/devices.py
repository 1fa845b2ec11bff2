"""Runs the device authorization flow (RFC 8628): a code that the person types on another device.

The provider is polled only while somebody looks at the sign-in. No background task polls it.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, update
from sqlmodel import col

from engine.audit.trail import Trail
from engine.authorization.answering import Answering
from engine.authorization.refusals import mismatched, refusal
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.authorization.standing_in import StandingIn, stand_in
from engine.connections.catalogue import Catalogue
from engine.connections.connection import Connection
from engine.connections.oauth import TokenRefused
from engine.connections.sign_in.device_code import DeviceCode, begun, polled
from engine.connections.sign_in.methods import SignIns
from engine.db.database import Database, now
from engine.db.tables import DeviceSignInRow
from engine.errors import (
    AuthorizationExpired,
    AuthorizationRefused,
    UpstreamUnavailable,
)
from engine.identity.model import Principal
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_SLOWER = timedelta(seconds=5)
_SLOWEST = timedelta(minutes=1)
_REMEMBERED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DeviceWait:
    """A device code that nobody has confirmed yet, and the seconds to wait before looking again."""

    code: DeviceCode
    look_again: int


class DeviceSignIns:
    """Begins and polls device sign-ins, and owns their table, which holds at most one per authorization request."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: Catalogue,
        requests: AuthorizationRequests,
        answering: Answering,
        standing_in: StandingIn,
        trail: Trail,
        sign_ins: SignIns,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._requests = requests
        self._answering = answering
        self._standing_in = standing_in
        self._trail = trail
        self._sign_ins = sign_ins

    async def begin(self, request: AuthorizationRequest, *, tool: str = "") -> None:
        """Get a new device code for a request and replace an earlier one.

        `tool_name` is the tool that shall use the account, and is empty if every tool shall. Raises
        AuthorizationRefused if the provider issues no code.
        """
        connection = await self._catalogue.get(request.connection)
        client = self._sign_ins.client(connection)
        try:
            code = await begun(client, await self._requests.scopes_to_ask(request, connection))
        except TokenRefused as error:
            raise AuthorizationRefused(
                f"{connection.title} gives no code that could be typed elsewhere ({error.error})."
            ) from None
        row = DeviceSignInRow(
            request_id=request.id,
            tool=tool,
            sealed_code=await self._vault.seal(code.text().encode(), _bound_to(request.id)),
            interval_seconds=code.interval,
            poll_after=now() + timedelta(seconds=code.interval),
            expires_at=datetime.fromtimestamp(code.expires_at, UTC),
        )
        async with self._database.writing() as session:
            await session.merge(row)

    async def look(self, request: AuthorizationRequest, person: Principal) -> DeviceWait | None:
        """Poll the provider about a request's device code, and return the wait if nobody has confirmed it yet.

        Returns None if there is no code, if this person may not answer the request, or if the code was answered just
        now. However many people look in however many processes, the provider is polled no more often than its
        interval allows. Raises AuthorizationExpired if the code expired, AuthorizationRefused if the provider
        withdrew it, and AccountMismatched if it was confirmed with another account than is asked for.
        """
        async with self._database.reading() as session:
            row = await session.get(DeviceSignInRow, request.id)
        asked = await self._standing_in.asked(request.principal_id, person)
        if row is None or asked is None or not request.is_open:
            return None
        connection = await self._catalogue.get(request.connection)
        code = DeviceCode.from_text((await self._vault.open(row.sealed_code, _bound_to(request.id))).decode())
        if row.expires_at <= now():
            await self._forget(request.id)
            raise AuthorizationExpired("The code ran out before anybody confirmed it. Get a new one.")
        wait = DeviceWait(code, row.interval_seconds + 1)
        if not await self._may_ask(row):
            return wait
        by = stand_in(asked, person)
        try:
            tokens = await polled(self._sign_ins.client(connection), code)
        except TokenRefused as error:
            return await self._not_yet(error, request, connection, asked, by, wait)
        except UpstreamUnavailable:
            return replace(wait, look_again=await self._slow_down(request.id) + 1)
        account = await self._sign_ins.client(connection).account(tokens)
        is_answered = await self._answering.grant(
            request, connection, asked, tokens, account, tool=row.tool, by=by
        )
        await self._forget(request.id)
        if not is_answered:
            other = mismatched(request, connection, account)
            await self._trail.append(refusal(person, other, request))
            raise other
        return None

    async def forget(self) -> int:
        """Delete the codes that expired more than a day ago, and return how many."""
        over = delete(DeviceSignInRow).where(col(DeviceSignInRow.expires_at) < now() - _REMEMBERED)
        async with self._database.writing() as session:
            return int((await session.exec(over)).rowcount)

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "device codes",
            DeviceSignInRow,
            "sealed_code",
            lambda row: _bound_to(row.request_id),
            lambda: col(DeviceSignInRow.expires_at) > now(),
        )

    async def _not_yet(
        self,
        error: TokenRefused,
        request: AuthorizationRequest,
        connection: Connection,
        asked: Principal,
        by: Principal | None,
        wait: DeviceWait,
    ) -> DeviceWait | None:
        """Handle a token error response to a poll (RFC 8628 section 3.5): wait on, deny the request, or raise."""
        match error.error:
            case "authorization_pending":
                return wait
            case "slow_down":
                return replace(wait, look_again=await self._slow_down(request.id) + 1)
        await self._forget(request.id)
        match error.error:
            case "access_denied":
                await self._requests.deny(request.id, asked, by=by)
                return None
            case "expired_token":
                raise AuthorizationExpired(
                    "The code ran out before anybody confirmed it. Get a new one."
                ) from None
        raise AuthorizationRefused(
            f"{connection.title} does not take the code any more ({error.error}). Get a new one."
        ) from None

    async def _may_ask(self, row: DeviceSignInRow) -> bool:
        """Claim the next poll if it is due, and return False if it is not or another process claimed it."""
        turn = (
            update(DeviceSignInRow)
            .where(
                col(DeviceSignInRow.request_id) == row.request_id,
                col(DeviceSignInRow.sealed_code) == row.sealed_code,
                col(DeviceSignInRow.poll_after) <= now(),
            )
            .values(poll_after=now() + timedelta(seconds=row.interval_seconds))
        )
        async with self._database.writing() as session:
            return (await session.exec(turn)).rowcount == 1

    async def _slow_down(self, request_id: str) -> int:
        async with self._database.writing() as session:
            row = await session.get(DeviceSignInRow, request_id, with_for_update=True)
            if row is None:
                return int(_SLOWER.total_seconds())
            slower = min(timedelta(seconds=row.interval_seconds) + _SLOWER, _SLOWEST)
            row.interval_seconds = int(slower.total_seconds())
            row.poll_after = now() + slower
            session.add(row)
        return row.interval_seconds

    async def _forget(self, request_id: str) -> None:
        async with self._database.writing() as session:
            await session.exec(delete(DeviceSignInRow).where(col(DeviceSignInRow.request_id) == request_id))


def _bound_to(request_id: str) -> str:
    return f"device:{request_id}"
