"""Runs the device authorization flow (RFC 8628): a code that the person types on another device.

The provider is polled only while somebody looks at the sign-in. No background task polls it.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, update
from sqlmodel import col

from engine.audit.trail import AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.delegation import Delegation, acting_administrator
from engine.authorization.refusals import build_mismatch_error, build_refusal_event
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import Connection
from engine.db.database import Database, utc_now
from engine.db.tables import DeviceSignInRow
from engine.errors import (
    AuthorizationExpired,
    AuthorizationRefused,
    UpstreamUnavailable,
)
from engine.identity.model import Principal
from engine.oauth.client import TokenRefused
from engine.sign_in.device_code import DeviceCode, request_device_code, request_device_tokens
from engine.sign_in.methods import SignInMethods
from engine.vault.sealed_column import SealedColumn
from engine.vault.vault import Vault

_SLOW_DOWN_STEP = timedelta(seconds=5)
_MAX_POLL_INTERVAL = timedelta(minutes=1)
_CODE_RETENTION = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DeviceWait:
    """A device code that nobody has confirmed yet, and the seconds to wait before looking again."""

    device_code: DeviceCode
    poll_again_seconds: int


class DeviceSignIns:
    """Begins and polls device sign-ins, and owns their table, which holds at most one per authorization request."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: ConnectionCatalogue,
        authorization_requests: AuthorizationRequests,
        answer_recorder: AnswerRecorder,
        delegation: Delegation,
        trail: AuditTrail,
        sign_in_methods: SignInMethods,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._authorization_requests = authorization_requests
        self._answer_recorder = answer_recorder
        self._delegation = delegation
        self._trail = trail
        self._sign_in_methods = sign_in_methods
        vault.register_column(
            SealedColumn(
                "device codes",
                DeviceSignInRow,
                "sealed_code",
                lambda sign_in_row: _build_associated_data(sign_in_row.request_id),
                lambda: col(DeviceSignInRow.expires_at) > utc_now(),
            )
        )

    async def begin_sign_in(
        self, authorization_request: AuthorizationRequest, *, tool_name: str = ""
    ) -> None:
        """Get a new device code for a request and replace an earlier one.

        `tool_name` is the tool that shall use the account, and is empty if every tool shall. Raises
        AuthorizationRefused if the provider issues no code.
        """
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        oauth_client = self._sign_in_methods.create_oauth_client(connection)
        try:
            device_code = await request_device_code(
                oauth_client,
                await self._authorization_requests.collect_requested_scopes(
                    authorization_request, connection
                ),
            )
        except TokenRefused as error:
            raise AuthorizationRefused(
                f"{connection.title} gives no code that could be typed elsewhere ({error.error_code})."
            ) from None
        sign_in_row = DeviceSignInRow(
            request_id=authorization_request.id,
            tool=tool_name,
            sealed_code=await self._vault.seal_secret(
                device_code.to_json().encode(), _build_associated_data(authorization_request.id)
            ),
            interval_seconds=device_code.interval,
            poll_after=utc_now() + timedelta(seconds=device_code.interval),
            expires_at=datetime.fromtimestamp(device_code.expires_at, UTC),
        )
        async with self._database.open_write_session() as db_session:
            await db_session.merge(sign_in_row)

    async def poll_sign_in(
        self, authorization_request: AuthorizationRequest, person: Principal
    ) -> DeviceWait | None:
        """Poll the provider about a request's device code, and return the wait if nobody has confirmed it yet.

        Returns None if there is no code, if this person may not answer the request, or if the code was answered just
        now. However many people look in however many processes, the provider is polled no more often than its
        interval allows. Raises AuthorizationExpired if the code expired, AuthorizationRefused if the provider
        withdrew it, and AccountMismatched if it was confirmed with another account than is asked for.
        """
        async with self._database.open_read_session() as db_session:
            sign_in_row = await db_session.get(DeviceSignInRow, authorization_request.id)
        asked_principal = await self._delegation.find_asked_principal(
            authorization_request.principal_id, person
        )
        if sign_in_row is None or asked_principal is None or not authorization_request.is_open:
            return None
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        device_code = DeviceCode.from_json(
            (
                await self._vault.open_secret(
                    sign_in_row.sealed_code, _build_associated_data(authorization_request.id)
                )
            ).decode()
        )
        if sign_in_row.expires_at <= utc_now():
            await self._delete_code(authorization_request.id)
            raise AuthorizationExpired("The code ran out before anybody confirmed it. Get a new one.")
        device_wait = DeviceWait(device_code, sign_in_row.interval_seconds + 1)
        if not await self._try_claim_poll(sign_in_row):
            return device_wait
        administrator = acting_administrator(asked_principal, person)
        try:
            oauth_tokens = await request_device_tokens(
                self._sign_in_methods.create_oauth_client(connection), device_code
            )
        except TokenRefused as error:
            return await self._handle_token_error(
                error, authorization_request, connection, asked_principal, administrator, device_wait
            )
        except UpstreamUnavailable:
            return replace(
                device_wait, poll_again_seconds=await self._slow_down_polling(authorization_request.id) + 1
            )
        account = await self._sign_in_methods.create_oauth_client(connection).find_account(oauth_tokens)
        is_answered = await self._answer_recorder.record_grant(
            authorization_request,
            connection,
            asked_principal,
            oauth_tokens,
            account,
            tool_name=sign_in_row.tool,
            administrator=administrator,
        )
        await self._delete_code(authorization_request.id)
        if not is_answered:
            mismatch_error = build_mismatch_error(authorization_request, connection, account)
            await self._trail.append_event(build_refusal_event(person, mismatch_error, authorization_request))
            raise mismatch_error
        return None

    async def delete_expired_codes(self) -> int:
        """Delete the codes that expired more than a day ago, and return how many."""
        statement = delete(DeviceSignInRow).where(
            col(DeviceSignInRow.expires_at) < utc_now() - _CODE_RETENTION
        )
        async with self._database.open_write_session() as db_session:
            return int((await db_session.exec(statement)).rowcount)

    async def _handle_token_error(
        self,
        error: TokenRefused,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        asked_principal: Principal,
        administrator: Principal | None,
        device_wait: DeviceWait,
    ) -> DeviceWait | None:
        """Handle a token error response to a poll (RFC 8628 section 3.5): wait on, deny the request, or raise."""
        match error.error_code:
            case "authorization_pending":
                return device_wait
            case "slow_down":
                return replace(
                    device_wait,
                    poll_again_seconds=await self._slow_down_polling(authorization_request.id) + 1,
                )
        await self._delete_code(authorization_request.id)
        match error.error_code:
            case "access_denied":
                await self._authorization_requests.deny_request(
                    authorization_request.id, asked_principal, administrator=administrator
                )
                return None
            case "expired_token":
                raise AuthorizationExpired(
                    "The code ran out before anybody confirmed it. Get a new one."
                ) from None
        raise AuthorizationRefused(
            f"{connection.title} does not take the code any more ({error.error_code}). Get a new one."
        ) from None

    async def _try_claim_poll(self, sign_in_row: DeviceSignInRow) -> bool:
        """Claim the next poll if it is due, and return False if it is not or another process claimed it."""
        statement = (
            update(DeviceSignInRow)
            .where(
                col(DeviceSignInRow.request_id) == sign_in_row.request_id,
                col(DeviceSignInRow.sealed_code) == sign_in_row.sealed_code,
                col(DeviceSignInRow.poll_after) <= utc_now(),
            )
            .values(poll_after=utc_now() + timedelta(seconds=sign_in_row.interval_seconds))
        )
        async with self._database.open_write_session() as db_session:
            return (await db_session.exec(statement)).rowcount == 1

    async def _slow_down_polling(self, request_id: str) -> int:
        async with self._database.open_write_session() as db_session:
            sign_in_row = await db_session.get(DeviceSignInRow, request_id, with_for_update=True)
            if sign_in_row is None:
                return int(_SLOW_DOWN_STEP.total_seconds())
            slower_interval = min(
                timedelta(seconds=sign_in_row.interval_seconds) + _SLOW_DOWN_STEP, _MAX_POLL_INTERVAL
            )
            sign_in_row.interval_seconds = int(slower_interval.total_seconds())
            sign_in_row.poll_after = utc_now() + slower_interval
            db_session.add(sign_in_row)
        return sign_in_row.interval_seconds

    async def _delete_code(self, request_id: str) -> None:
        async with self._database.open_write_session() as db_session:
            await db_session.exec(
                delete(DeviceSignInRow).where(col(DeviceSignInRow.request_id) == request_id)
            )


def _build_associated_data(request_id: str) -> str:
    return f"device:{request_id}"
