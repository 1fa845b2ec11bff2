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

from engine.audit.trail import Trail
from engine.authorization.answering import Answering
from engine.authorization.refusals import mismatched, refusal
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.authorization.standing_in import StandingIn, stand_in
from engine.connections.catalogue import Catalogue
from engine.connections.connection import Connection
from engine.connections.discovery import Endpoints
from engine.connections.grants import Grants
from engine.connections.oauth import TokenRefused
from engine.connections.sign_in.methods import SignIns
from engine.db.database import Database, now
from engine.db.tables import AuthorizationAttemptRow
from engine.errors import (
    AuthorizationExpired,
    AuthorizationRefused,
    ConnectionMisconfigured,
)
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_ATTEMPT_LIFE = timedelta(minutes=10)
_REMEMBERED = timedelta(days=1)


class Consent:
    """Begins and completes authorization code flows, and owns the table of authorization attempts."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        catalogue: Catalogue,
        grants: Grants,
        requests: AuthorizationRequests,
        answering: Answering,
        principals: Principals,
        standing_in: StandingIn,
        trail: Trail,
        sign_ins: SignIns,
        redirect_uri: str,
    ) -> None:
        self._database = database
        self._vault = vault
        self._catalogue = catalogue
        self._grants = grants
        self._requests = requests
        self._answering = answering
        self._principals = principals
        self._standing_in = standing_in
        self._trail = trail
        self._sign_ins = sign_ins
        self._redirect_uri = redirect_uri

    async def begin(self, request: AuthorizationRequest, session: str, *, tool: str = "") -> str:
        """Return the provider's authorization URL for this browser session.

        A step-up asks for the scopes that are already granted and for the missing ones. `tool_name` is the tool that
        shall use the account, and is empty if every tool shall. Raises ConnectionMisconfigured if the connection's
        OAuth settings do not work, and records that in the audit trail.
        """
        try:
            return await self._begin(request, session, tool)
        except ConnectionMisconfigured as error:
            asked = await self._principals.get(request.principal_id)
            if asked is not None:
                await self._trail.append(refusal(asked, error, request))
            raise

    async def _begin(self, request: AuthorizationRequest, session: str, tool: str) -> str:
        connection = await self._catalogue.get(request.connection)
        client = self._sign_ins.client(connection)
        issuer = (await client.endpoints()).issuer or ""
        state, code_verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        attempt = AuthorizationAttemptRow(
            state_hash=_digest(state),
            request_id=request.id,
            principal_id=request.principal_id,
            tool=tool,
            session_hash=_digest(session),
            sealed_verifier=await self._vault.seal(
                f"{code_verifier} {issuer}".encode(), _bound_to(_digest(state))
            ),
            created_at=now(),
            expires_at=now() + _ATTEMPT_LIFE,
        )
        async with self._database.writing() as database_session:
            database_session.add(attempt)
        return await client.authorization_url(
            redirect_uri=self._redirect_uri,
            state=state,
            code_verifier=code_verifier,
            scopes=await self._requests.scopes_to_ask(request, connection),
            login_hint=request.account or "",
            prompt=await self._prompt(request),
        )

    async def complete(
        self, parameters: Mapping[str, str], principal: Principal, session: str
    ) -> AuthorizationRequest:
        """Handle the provider's callback: store the grant or record the denial, and enqueue the waiters' wake-ups.

        `principal` is the person signed in to this browser: whoever was asked, or an administrator who answers for a
        service. Raises AuthorizationRefused for a callback that is malformed, replayed, late, from another issuer
        (RFC 9207), or from another browser or person than began the flow. Raises AccountMismatched if the sign-in was
        to another account than is asked for, and AuthorizationExpired if nobody waits any more. Refusals are recorded
        in the audit trail.
        """
        try:
            return await self._complete(parameters, principal, session)
        except (AuthorizationRefused, ConnectionMisconfigured) as error:
            await self._trail.append(refusal(principal, error))
            raise

    async def forget(self) -> int:
        """Delete attempts that expired more than a day ago, used or not, and return how many.

        A callback for a deleted attempt is refused as unknown.
        """
        over = delete(AuthorizationAttemptRow).where(
            col(AuthorizationAttemptRow.expires_at) < now() - _REMEMBERED
        )
        async with self._database.writing() as session:
            return int((await session.exec(over)).rowcount)

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "sign-ins under way",
            AuthorizationAttemptRow,
            "sealed_verifier",
            lambda row: _bound_to(row.state_hash),
            lambda: (
                col(AuthorizationAttemptRow.used_at).is_(None)
                & (col(AuthorizationAttemptRow.expires_at) > now())
            ),
        )

    async def _complete(
        self, parameters: Mapping[str, str], principal: Principal, session: str
    ) -> AuthorizationRequest:
        attempt, asked_principal, kept = await self._take_attempt(
            parameters.get("state", ""), principal, session
        )
        code_verifier, _, begun_at = kept.partition(" ")
        by = stand_in(asked_principal, principal)
        request = await self._requests.get(attempt.request_id)
        if request is None:
            raise AuthorizationRefused(
                "This sign-in belongs to a question that is gone. Call the tool again to get a new link."
            )
        connection = await self._catalogue.get(request.connection)
        client = self._sign_ins.client(connection)
        _from_where_it_began(parameters, connection, await client.endpoints(), begun_at)
        if parameters.get("error") == "access_denied":
            await self._requests.deny(request.id, asked_principal, by=by)
            return request
        if "error" in parameters or not parameters.get("code"):
            raise AuthorizationRefused(
                f"{connection.title} did not sign you in. Open the link again, or tell your administrator."
            )
        if not request.is_open and request.state != "granted":
            raise AuthorizationExpired(
                "Nobody waits for this sign-in any more. Call the tool again to get a new link."
            )
        try:
            tokens = await client.exchange(
                code=parameters["code"],
                redirect_uri=self._redirect_uri,
                code_verifier=code_verifier,
                asked=await self._requests.scopes_to_ask(request, connection),
            )
        except TokenRefused as error:
            raise AuthorizationRefused(
                f"{connection.title} did not accept the sign-in ({error.error}). Open the link again."
            ) from None
        account = await client.account(tokens)
        is_answered = await self._answering.grant(
            request, connection, asked_principal, tokens, account, tool=attempt.tool, by=by
        )
        if not is_answered:
            raise mismatched(request, connection, account)
        return request

    async def _prompt(self, request: AuthorizationRequest) -> str:
        """Return the OpenID Connect `prompt`: `login` if another account shall be added to those already connected.

        Without it the provider might send the browser back with an account that is connected already.
        """
        is_another = request.account is None and await self._grants.usable(
            request.principal_id, request.connection
        )
        return "login" if is_another else ""

    async def _take_attempt(
        self, state: str, principal: Principal, session: str
    ) -> tuple[AuthorizationAttemptRow, Principal, str]:
        state_hash = _digest(state)
        async with self._database.writing() as database_session:
            attempt = await _unused(database_session, state_hash)
            if attempt is None:
                raise AuthorizationRefused(
                    "This sign-in is not known, is too old or was used already. Open the link again."
                )
            asked = await self._standing_in.asked(attempt.principal_id, principal)
            if asked is None or attempt.session_hash != _digest(session):
                raise AuthorizationRefused("This sign-in was begun by somebody else or in another browser.")
            attempt.used_at = now()
            database_session.add(attempt)
        verifier = await self._vault.open(attempt.sealed_verifier, _bound_to(state_hash))
        return attempt, asked, verifier.decode()


def _from_where_it_began(
    parameters: Mapping[str, str], connection: Connection, endpoints: Endpoints, begun_at: str
) -> None:
    """Raise AuthorizationRefused unless the callback comes from the issuer that the browser was sent to."""
    expected = endpoints.issuer
    absent = None if endpoints.iss_required else expected
    if begun_at not in {"", expected}:
        # Metadata that names another issuer by now could obtain the first issuer's code (RFC 9700 section 4.4).
        raise AuthorizationRefused(
            f"{connection.title} names another sign-in service than it did before. Open the link again."
        )
    if expected is not None and parameters.get("iss", absent) != expected:
        raise AuthorizationRefused(
            f"The answer did not come from the sign-in service of {connection.title}. Open the link again."
        )
    if expected is None and "iss" in parameters:
        # The callback may come from another provider (RFC 9207 section 2.4).
        raise AuthorizationRefused(
            f"The answer names its issuer, and connection '{connection.name}' declares none: set `issuer` there."
        )


async def _unused(session: AsyncSession, state_hash: str) -> AuthorizationAttemptRow | None:
    attempt = await session.get(AuthorizationAttemptRow, state_hash, with_for_update=True)
    if attempt is None or attempt.used_at is not None or attempt.expires_at <= now():
        return None
    return attempt


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bound_to(state_hash: str) -> str:
    return f"attempt:{state_hash}"
