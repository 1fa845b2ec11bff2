"""The external issuer as the identity provider that asserts its people's identities to other authorization servers.

Each assertion rests on the person's own sign-in at the issuer. This module stores no tokens.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from engine.connections.connection import Connection
from engine.connections.secret_reader import SecretReader
from engine.db.lease import FreshRow, StaleRow
from engine.errors import ConnectionMisconfigured, UpstreamUnavailable
from engine.identity.claims import read_unverified_claims
from engine.oauth.client import OAuthClient, TokenRefused
from engine.oauth.discovery import Discovery
from engine.settings import IssuerSettings
from engine.sign_in.idp_sessions import IdpSession, IdpSessions, select_version

TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"
ID_JAG: Final = "urn:ietf:params:oauth:token-type:id-jag"

_RENEW_BEFORE_SECONDS: Final = 60.0
_CLIENT_SECRET_VARIABLE: Final = "BYLINE_GATEWAY__ISSUER__CLIENT_SECRET"


class IdentityProvider:
    """The issuer that the settings name, with Byline as its client."""

    def __init__(
        self, settings: IssuerSettings | None, discovery: Discovery, idp_sessions: IdpSessions
    ) -> None:
        self._settings = settings
        self._discovery = discovery
        self._idp_sessions = idp_sessions

    async def find_id_token(self, principal_id: str) -> str | None:
        """Return the person's ID token, renewed if it expires within a minute.

        Returns None if the settings let the issuer assert nobody, or if the person has no sign-in there that is valid
        or can be renewed. Raises UpstreamUnavailable if another process takes too long to renew it.
        """
        if self._settings is None or not self._settings.vouches:
            return None
        settings = self._settings

        async def read_session() -> FreshRow[str | None] | StaleRow[Mapping[str, Any] | None, str | None]:
            idp_session = await self._idp_sessions.find_session(principal_id)
            if idp_session is None:
                return FreshRow(None)
            if idp_session.expires_at > time.time() + _RENEW_BEFORE_SECONDS:
                return FreshRow(idp_session.id_token)
            if idp_session.refresh_token is None:
                return FreshRow(None)
            return StaleRow(
                select_version(principal_id, idp_session.version),
                lambda: self._request_renewal(settings, idp_session),
                lambda token_response: self._store_renewal(
                    settings, principal_id, idp_session, token_response
                ),
            )

        try:
            return await self._idp_sessions.lease.renew_once(read_session)
        except TimeoutError:
            raise UpstreamUnavailable(
                "A company sign-in is being renewed elsewhere and is not done yet."
            ) from None

    async def request_id_jag(
        self, principal_id: str, *, audience: str, resource: str | None, scopes: tuple[str, ...]
    ) -> str | None:
        """Request an identity assertion (ID-JAG) of this person for an authorization server.

        Returns None if the person has no valid sign-in at the issuer. Raises TokenRefused if the issuer refuses the
        assertion, and ConnectionMisconfigured if it issues none.
        """
        id_token = await self.find_id_token(principal_id)
        if id_token is None or self._settings is None:
            return None
        oauth_client = await self._create_oauth_client(self._settings)
        target_parameters = {"audience": audience, **({} if resource is None else {"resource": resource})}
        token_response = await oauth_client.request_token_response(
            TOKEN_EXCHANGE,
            requested_token_type=ID_JAG,
            subject_token=id_token,
            subject_token_type=ID_TOKEN,
            **target_parameters,
            **oauth_client.build_scope_parameter(scopes),
        )
        assertion = token_response.get("access_token")
        if token_response.get("issued_token_type") != ID_JAG or not isinstance(assertion, str):
            raise ConnectionMisconfigured(f"{self._settings.issuer} issues no identity assertions.")
        return assertion

    async def _request_renewal(
        self, settings: IssuerSettings, idp_session: IdpSession
    ) -> Mapping[str, Any] | None:
        """Request a new ID token, and return None if the issuer refuses."""
        try:
            oauth_client = await self._create_oauth_client(settings)
            return await oauth_client.request_token_response(
                "refresh_token", refresh_token=idp_session.refresh_token or ""
            )
        except TokenRefused:
            return None

    async def _store_renewal(
        self,
        settings: IssuerSettings,
        principal_id: str,
        idp_session: IdpSession,
        token_response: Mapping[str, Any] | None,
    ) -> str | None:
        if token_response is None:
            await self._idp_sessions.delete_session(principal_id)
            return None
        id_token, previous_claims = (
            token_response.get("id_token"),
            read_unverified_claims(idp_session.id_token),
        )
        claims = read_unverified_claims(str(id_token))
        is_same_person = (claims.get("iss"), claims.get("sub")) == (
            settings.issuer,
            previous_claims.get("sub"),
        )
        expires_at = claims.get("exp")
        if not (is_same_person and isinstance(id_token, str) and isinstance(expires_at, int | float)):
            # OpenID Connect Core 1.0 section 12.2: a refreshed ID token must have the same issuer and subject.
            await self._idp_sessions.delete_session(principal_id)
            return None
        refresh_token = token_response.get("refresh_token") or idp_session.refresh_token
        await self._idp_sessions.store_session(principal_id, id_token, str(refresh_token), float(expires_at))
        return id_token

    async def _create_oauth_client(self, settings: IssuerSettings) -> OAuthClient:
        """Return the OAuth client with which Byline signs people in at the issuer."""
        client_secret = settings.client_secret
        provider: dict[str, object] = {"issuer": settings.issuer}
        declaration = {
            "name": "company sign-in",
            "title": settings.issuer,
            "system": "company",
            "mode": "user",
            "base_url": settings.issuer,
            "client_id": settings.client_id,
            "client_secret": None if client_secret is None else {"env": _CLIENT_SECRET_VARIABLE},
            "provider": provider,
        }
        environment = (
            {} if client_secret is None else {_CLIENT_SECRET_VARIABLE: client_secret.get_secret_value()}
        )
        auth_methods = (
            await self._discovery.find_endpoints(Connection.model_validate(declaration))
        ).auth_methods
        if "client_secret_basic" not in auth_methods:
            provider["token_endpoint_auth_method"] = "client_secret_post"
        return OAuthClient(Connection.model_validate(declaration), SecretReader(environment), self._discovery)
