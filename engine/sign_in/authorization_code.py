"""Runs the authorization code flow: sends a browser to the provider's consent page and handles its callback.

A callback counts only from the browser in which the flow began and from a person who may answer the request.
"""

import hashlib
import secrets
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import delete
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.delegation import Delegation, acting_administrator
from engine.authorization.refusals import build_mismatch_error, build_refusal_event
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import Connection
from engine.db.database import Database, utc_now
from engine.db.tables import AuthorizationAttemptRow
from engine.errors import (
    AuthorizationExpired,
    AuthorizationRefused,
    ConnectionMisconfigured,
)
from engine.grants.grants import Grants
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.oauth.client import TokenRefused
from engine.oauth.discovery import ProviderEndpoints
from engine.sign_in.methods import SignInMethods
from engine.vault.sealed_column import SealedColumn
from engine.vault.vault import Vault

_ATTEMPT_LIFETIME = timedelta(minutes=10)
_ATTEMPT_RETENTION = timedelta(days=1)


class AuthorizationCodeFlow:
    """Begins and completes authorization code flows, and owns the table of authorization attempts."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: ConnectionCatalogue,
        grants: Grants,
        authorization_requests: AuthorizationRequests,
        answer_recorder: AnswerRecorder,
        principals: Principals,
        delegation: Delegation,
        trail: AuditTrail,
        sign_in_methods: SignInMethods,
        redirect_uri: str,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._grants = grants
        self._authorization_requests = authorization_requests
        self._answer_recorder = answer_recorder
        self._principals = principals
        self._delegation = delegation
        self._trail = trail
        self._sign_in_methods = sign_in_methods
        self._redirect_uri = redirect_uri
        vault.register_column(
            SealedColumn(
                "sign-ins under way",
                AuthorizationAttemptRow,
                "sealed_verifier",
                lambda attempt_row: _build_associated_data(attempt_row.state_hash),
                lambda: (
                    col(AuthorizationAttemptRow.used_at).is_(None)
                    & (col(AuthorizationAttemptRow.expires_at) > utc_now())
                ),
            )
        )

    async def begin_sign_in(
        self, authorization_request: AuthorizationRequest, browser_session: str, *, tool_name: str = ""
    ) -> str:
        """Return the provider's authorization URL for this browser session.

        A step-up asks for the scopes that are already granted and for the missing ones. `tool_name` is the tool that
        shall use the account, and is empty if every tool shall. Raises ConnectionMisconfigured if the connection's
        OAuth settings do not work, and records that in the audit trail.
        """
        try:
            return await self._begin_sign_in(authorization_request, browser_session, tool_name)
        except ConnectionMisconfigured as error:
            asked_principal = await self._principals.find_principal(authorization_request.principal_id)
            if asked_principal is not None:
                await self._trail.append_event(
                    build_refusal_event(asked_principal, error, authorization_request)
                )
            raise

    async def _begin_sign_in(
        self, authorization_request: AuthorizationRequest, browser_session: str, tool_name: str
    ) -> str:
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        oauth_client = self._sign_in_methods.create_oauth_client(connection)
        issuer = (await oauth_client.find_endpoints()).issuer or ""
        oauth_state, code_verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        attempt_row = AuthorizationAttemptRow(
            state_hash=_digest_text(oauth_state),
            request_id=authorization_request.id,
            principal_id=authorization_request.principal_id,
            tool=tool_name,
            session_hash=_digest_text(browser_session),
            sealed_verifier=await self._vault.seal_secret(
                f"{code_verifier} {issuer}".encode(), _build_associated_data(_digest_text(oauth_state))
            ),
            created_at=utc_now(),
            expires_at=utc_now() + _ATTEMPT_LIFETIME,
        )
        async with self._database.open_write_session() as db_session:
            db_session.add(attempt_row)
        return await oauth_client.build_authorization_url(
            redirect_uri=self._redirect_uri,
            state=oauth_state,
            code_verifier=code_verifier,
            scopes=await self._authorization_requests.collect_requested_scopes(
                authorization_request, connection
            ),
            login_hint=authorization_request.account or "",
            prompt=await self._choose_prompt(authorization_request),
        )

    async def complete_sign_in(
        self, callback_parameters: Mapping[str, str], principal: Principal, browser_session: str
    ) -> AuthorizationRequest:
        """Handle the provider's callback: store the grant or record the denial, and enqueue the waiters' wake-ups.

        `principal` is the person signed in to this browser: whoever was asked, or an administrator who answers for a
        service. Raises AuthorizationRefused for a callback that is malformed, replayed, late, from another issuer
        (RFC 9207), or from another browser or person than began the flow. Raises AccountMismatched if the sign-in was
        to another account than is asked for, and AuthorizationExpired if nobody waits any more. Refusals are recorded
        in the audit trail.
        """
        try:
            return await self._complete_sign_in(callback_parameters, principal, browser_session)
        except (AuthorizationRefused, ConnectionMisconfigured) as error:
            await self._trail.append_event(build_refusal_event(principal, error))
            raise

    async def delete_expired_attempts(self) -> int:
        """Delete attempts that expired more than a day ago, used or not, and return how many.

        A callback for a deleted attempt is refused as unknown.
        """
        statement = delete(AuthorizationAttemptRow).where(
            col(AuthorizationAttemptRow.expires_at) < utc_now() - _ATTEMPT_RETENTION
        )
        async with self._database.open_write_session() as db_session:
            return int((await db_session.exec(statement)).rowcount)

    async def _complete_sign_in(
        self, callback_parameters: Mapping[str, str], principal: Principal, browser_session: str
    ) -> AuthorizationRequest:
        attempt_row, asked_principal, verifier_and_issuer = await self._claim_attempt(
            callback_parameters.get("state", ""), principal, browser_session
        )
        code_verifier, _, initial_issuer = verifier_and_issuer.partition(" ")
        administrator = acting_administrator(asked_principal, principal)
        authorization_request = await self._authorization_requests.find_request(attempt_row.request_id)
        if authorization_request is None:
            raise AuthorizationRefused(
                "This sign-in belongs to a question that is gone. Call the tool again to get a new link."
            )
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        oauth_client = self._sign_in_methods.create_oauth_client(connection)
        _check_issuer(callback_parameters, connection, await oauth_client.find_endpoints(), initial_issuer)
        if callback_parameters.get("error") == "access_denied":
            await self._authorization_requests.deny_request(
                authorization_request.id, asked_principal, administrator=administrator
            )
            return authorization_request
        if "error" in callback_parameters or not callback_parameters.get("code"):
            raise AuthorizationRefused(
                f"{connection.title} did not sign you in. Open the link again, or tell your administrator."
            )
        if not authorization_request.is_open and authorization_request.state != "granted":
            raise AuthorizationExpired(
                "Nobody waits for this sign-in any more. Call the tool again to get a new link."
            )
        try:
            oauth_tokens = await oauth_client.exchange_code(
                authorization_code=callback_parameters["code"],
                redirect_uri=self._redirect_uri,
                code_verifier=code_verifier,
                requested_scopes=await self._authorization_requests.collect_requested_scopes(
                    authorization_request, connection
                ),
            )
        except TokenRefused as error:
            raise AuthorizationRefused(
                f"{connection.title} did not accept the sign-in ({error.error_code}). Open the link again."
            ) from None
        account = await oauth_client.find_account(oauth_tokens)
        is_answered = await self._answer_recorder.record_grant(
            authorization_request,
            connection,
            asked_principal,
            oauth_tokens,
            account,
            tool_name=attempt_row.tool,
            administrator=administrator,
        )
        if not is_answered:
            raise build_mismatch_error(authorization_request, connection, account)
        return authorization_request

    async def _choose_prompt(self, authorization_request: AuthorizationRequest) -> str:
        """Return the OpenID Connect `prompt`: `login` if another account shall be added to those already connected.

        Without it the provider might send the browser back with an account that is connected already.
        """
        is_additional_account = (
            authorization_request.account is None
            and await self._grants.list_active_grants(
                authorization_request.principal_id, authorization_request.connection_name
            )
        )
        return "login" if is_additional_account else ""

    async def _claim_attempt(
        self, oauth_state: str, principal: Principal, browser_session: str
    ) -> tuple[AuthorizationAttemptRow, Principal, str]:
        state_hash = _digest_text(oauth_state)
        async with self._database.open_write_session() as db_session:
            attempt_row = await _find_unused_attempt(db_session, state_hash)
            if attempt_row is None:
                raise AuthorizationRefused(
                    "This sign-in is not known, is too old or was used already. Open the link again."
                )
            asked_principal = await self._delegation.find_asked_principal(attempt_row.principal_id, principal)
            if asked_principal is None or attempt_row.session_hash != _digest_text(browser_session):
                raise AuthorizationRefused("This sign-in was begun by somebody else or in another browser.")
            attempt_row.used_at = utc_now()
            db_session.add(attempt_row)
        unsealed_verifier = await self._vault.open_secret(
            attempt_row.sealed_verifier, _build_associated_data(state_hash)
        )
        return attempt_row, asked_principal, unsealed_verifier.decode()


def _check_issuer(
    callback_parameters: Mapping[str, str],
    connection: Connection,
    endpoints: ProviderEndpoints,
    initial_issuer: str,
) -> None:
    """Raise AuthorizationRefused unless the callback comes from the issuer that the browser was sent to."""
    expected_issuer = endpoints.issuer
    default_issuer = None if endpoints.is_iss_required else expected_issuer
    if initial_issuer not in {"", expected_issuer}:
        # Metadata that names another issuer by now could obtain the first issuer's code (RFC 9700 section 4.4).
        raise AuthorizationRefused(
            f"{connection.title} names another sign-in service than it did before. Open the link again."
        )
    if expected_issuer is not None and callback_parameters.get("iss", default_issuer) != expected_issuer:
        raise AuthorizationRefused(
            f"The answer did not come from the sign-in service of {connection.title}. Open the link again."
        )
    if expected_issuer is None and "iss" in callback_parameters:
        # The callback may come from another provider (RFC 9207 section 2.4).
        raise AuthorizationRefused(
            f"The answer names its issuer, and connection '{connection.name}' declares none: set `issuer` there."
        )


async def _find_unused_attempt(db_session: AsyncSession, state_hash: str) -> AuthorizationAttemptRow | None:
    attempt_row = await db_session.get(AuthorizationAttemptRow, state_hash, with_for_update=True)
    if attempt_row is None or attempt_row.used_at is not None or attempt_row.expires_at <= utc_now():
        return None
    return attempt_row


def _digest_text(plain_text: str) -> str:
    return hashlib.sha256(plain_text.encode()).hexdigest()


def _build_associated_data(state_hash: str) -> str:
    return f"attempt:{state_hash}"
