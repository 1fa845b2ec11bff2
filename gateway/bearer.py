"""Bearer tokens at `/mcp`: only ones issued for this server, to a principal who is still active, are taken."""

from typing import Any, Final

from joserfc.errors import ClaimError
from joserfc.jwt import JWTClaimsRegistry
from mcp.server.auth.provider import AccessToken, TokenVerifier

from engine.errors import IdentityForged
from engine.identity.model import Principal
from engine.services import Services
from engine.settings import IssuerSettings
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.openid import Issuer, display_name
from gateway.protected_resource import resource_identifier

CLIENT_NAME_CLAIM: Final = "client_name"


class PersonalToken(AccessToken):
    """An access token together with the principal that it was issued to, and what the client calls itself."""

    principal: Principal
    client_name: str


def bearer_tokens(services: Services) -> "BuiltInTokens | ExternalTokens":
    """The verifier for the sign-in that settings choose."""
    issuer = services.settings.gateway.issuer
    return BuiltInTokens(services) if issuer is None else ExternalTokens(services, issuer)


class BuiltInTokens(TokenVerifier):
    """Tokens that the built-in authorization server signed; a check costs one query."""

    def __init__(self, services: Services) -> None:
        self._keys = services.keys
        self._principals = services.principals
        self._resource = resource_identifier(services.settings)
        self._claims = JWTClaimsRegistry(
            iss={"essential": True, "value": services.settings.public_url},
            aud={"essential": True, "value": self._resource},
            sub={"essential": True},
            exp={"essential": True},
            client_id={"essential": True},
        )

    async def verify_token(self, token: str) -> PersonalToken | None:
        """The token with its principal, or None."""
        try:
            claims = await self._keys.verify(token, ACCESS_TOKEN_TYPE)
            self._claims.validate(claims)
        except (IdentityForged, ClaimError):
            return None
        principal = await self._principals.find(claims["iss"], claims["sub"])
        return None if principal is None else _accepted(token, claims, self._resource, principal)


class ExternalTokens(TokenVerifier):
    """Tokens of the issuer that settings name; keys are read again only when they are old or one is unknown."""

    def __init__(self, services: Services, settings: IssuerSettings) -> None:
        self._issuer = Issuer(settings, services.http)
        self._audience = settings.audience
        # An ID token has the client as its audience. Where access tokens have the same one, only their type differs.
        self._only_typed = settings.audience == settings.client_id
        self._principals = services.principals
        self._resource = resource_identifier(services.settings)

    async def verify_token(self, token: str) -> PersonalToken | None:
        """The token with its principal, created when first seen, or None; raises UpstreamUnavailable without keys."""
        try:
            verified = await self._issuer.verified(token, audience=self._audience)
        except IdentityForged:
            return None
        if not self._is_access_token(verified.header.get("typ")):
            return None
        claims = dict(verified.claims)
        principal = await self._principals.resolve(claims["iss"], claims["sub"], display_name(claims))
        return _accepted(token, claims, self._resource, principal)

    def _is_access_token(self, typ: object) -> bool:
        # RFC 9068 section 4 asks for this type; many issuers still write JWT, or nothing.
        kind = typ.lower().removeprefix("application/") if isinstance(typ, str) else "jwt"
        return kind == ACCESS_TOKEN_TYPE or (kind == "jwt" and not self._only_typed)


def _accepted(
    token: str, claims: dict[str, Any], resource: str, principal: Principal
) -> PersonalToken | None:
    if not principal.active:
        return None
    scope = claims.get("scope") or claims.get("scp") or ""
    client_id = str(claims.get("client_id") or claims.get("azp") or "unknown")
    return PersonalToken(
        token=token,
        client_id=client_id,
        client_name=str(claims.get(CLIENT_NAME_CLAIM) or client_id),
        scopes=scope.split() if isinstance(scope, str) else [str(each) for each in scope],
        expires_at=int(claims["exp"]),
        resource=resource,
        subject=claims["sub"],
        claims={"iss": claims["iss"]},
        principal=principal,
    )
