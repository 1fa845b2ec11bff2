"""The external issuer as the identity provider that asserts its people's identities to other authorization servers.

Each assertion rests on the person's own sign-in at the issuer. This module stores no tokens.
"""

import asyncio
import time
from typing import Final

from engine.claims import unverified_claims
from engine.connections.connection import Connection
from engine.connections.discovery import Discovery
from engine.connections.oauth import OAuthClient, TokenRefused
from engine.errors import ConnectionMisconfigured, UpstreamUnavailable
from engine.identity.company_sign_ins import CompanySignIn, CompanySignIns
from engine.settings import IssuerSettings

TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"
ID_JAG: Final = "urn:ietf:params:oauth:token-type:id-jag"

_RENEW_BEFORE_SECONDS: Final = 60.0
_OTHERS_TURN_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.05
_SECRET: Final = "BYLINE_GATEWAY__ISSUER__CLIENT_SECRET"


class Company:
    """The issuer that the settings name, with Byline as its client."""

    def __init__(
        self, settings: IssuerSettings | None, discovery: Discovery, sign_ins: CompanySignIns
    ) -> None:
        self._settings = settings
        self._discovery = discovery
        self._sign_ins = sign_ins

    async def id_token(self, principal_id: str) -> str | None:
        """Return the person's ID token, renewed if it expires within a minute.

        Returns None if the settings let the issuer assert nobody, or if the person has no sign-in there that is valid
        or can be renewed. Raises UpstreamUnavailable if another process takes too long to renew it.
        """
        if self._settings is None or not self._settings.vouches:
            return None
        deadline = time.monotonic() + _OTHERS_TURN_SECONDS
        while time.monotonic() < deadline:
            signed_in = await self._sign_ins.of(principal_id)
            if signed_in is None:
                return None
            if signed_in.expires_at > time.time() + _RENEW_BEFORE_SECONDS:
                return signed_in.id_token
            if signed_in.refresh_token is None:
                return None
            if await self._sign_ins.take_turn(principal_id, signed_in.version):
                # Rotation has invalidated the old refresh token, so the response is stored even if the caller is gone.
                return await asyncio.shield(self._renewed(self._settings, principal_id, signed_in))
            await asyncio.sleep(_LOOK_SECONDS)
        raise UpstreamUnavailable("A company sign-in is being renewed elsewhere and is not done yet.")

    async def assertion(
        self, principal_id: str, *, audience: str, resource: str | None, scopes: tuple[str, ...]
    ) -> str | None:
        """Request an identity assertion (ID-JAG) of this person for an authorization server.

        Returns None if the person has no valid sign-in at the issuer. Raises TokenRefused if the issuer refuses the
        assertion, and ConnectionMisconfigured if it issues none.
        """
        id_token = await self.id_token(principal_id)
        if id_token is None or self._settings is None:
            return None
        client = await self._client(self._settings)
        parameters = {"audience": audience, **({} if resource is None else {"resource": resource})}
        answer = await client.answer(
            TOKEN_EXCHANGE,
            requested_token_type=ID_JAG,
            subject_token=id_token,
            subject_token_type=ID_TOKEN,
            **parameters,
            **client.scoped(scopes),
        )
        found = answer.get("access_token")
        if answer.get("issued_token_type") != ID_JAG or not isinstance(found, str):
            raise ConnectionMisconfigured(f"{self._settings.issuer} issues no identity assertions.")
        return found

    async def _renewed(
        self, settings: IssuerSettings, principal_id: str, signed_in: CompanySignIn
    ) -> str | None:
        try:
            client = await self._client(settings)
            answer = await client.answer("refresh_token", refresh_token=signed_in.refresh_token or "")
        except TokenRefused:
            await self._sign_ins.forget(principal_id)
            return None
        except Exception:
            await self._sign_ins.end_turn(principal_id)
            raise
        id_token, before = answer.get("id_token"), unverified_claims(signed_in.id_token)
        claims = unverified_claims(str(id_token))
        is_theirs = (claims.get("iss"), claims.get("sub")) == (settings.issuer, before.get("sub"))
        expires_at = claims.get("exp")
        if not (is_theirs and isinstance(id_token, str) and isinstance(expires_at, int | float)):
            # OpenID Connect Core 1.0 section 12.2: a refreshed ID token must have the same issuer and subject.
            await self._sign_ins.forget(principal_id)
            return None
        refresh_token = answer.get("refresh_token") or signed_in.refresh_token
        await self._sign_ins.keep(principal_id, id_token, str(refresh_token), float(expires_at))
        return id_token

    async def _client(self, settings: IssuerSettings) -> OAuthClient:
        """Return the OAuth client with which Byline signs people in at the issuer."""
        secret = settings.client_secret
        provider: dict[str, object] = {"issuer": settings.issuer}
        declared = {
            "name": "company sign-in",
            "title": settings.issuer,
            "system": "company",
            "mode": "user",
            "base_url": settings.issuer,
            "client_id": settings.client_id,
            "client_secret": None if secret is None else {"env": _SECRET},
            "provider": provider,
        }
        environment = {} if secret is None else {_SECRET: secret.get_secret_value()}
        methods = (await self._discovery.endpoints(Connection.model_validate(declared))).auth_methods
        if "client_secret_basic" not in methods:
            provider["token_endpoint_auth_method"] = "client_secret_post"
        return OAuthClient(Connection.model_validate(declared), environment, self._discovery)
