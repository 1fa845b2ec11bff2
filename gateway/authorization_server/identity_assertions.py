"""Enterprise-managed authorization: a client gets an access token for a person whom a trusted issuer names.

The client sends an Identity Assertion Authorization Grant (ID-JAG) as a JWT authorization grant (RFC 7523 section
2.1), and the person is not asked. Byline accepts an assertion only from a confidential client that an administrator
registered, only from an issuer in the settings, and only once.
"""

import hashlib
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from mcp.server.auth.provider import IdentityAssertionParams, TokenError
from mcp.shared.auth import OAuthToken
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from engine.audit.trail import AuditTrail
from engine.db.database import Database, utc_now
from engine.db.tables import UsedAssertionRow
from engine.errors import IdentityForged
from engine.identity.claims import VerifiedClaims
from engine.identity.principals import Principals
from engine.policy.policy import Policy
from engine.settings import Settings
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import ClientConsent, ClientConsents
from gateway.authorization_server.registered_clients import JWT_BEARER_GRANT_TYPE
from gateway.authorization_server.tokens import TokenIssuer
from gateway.protected_resource import build_resource_identifier, list_all_scopes, list_required_scopes
from gateway.sign_in.issuer_client import read_display_name
from gateway.sign_in.issuer_keys import IssuerKeys
from gateway.toolsets import list_mcp_paths

ID_JAG_PROFILE: Final = "urn:ietf:params:oauth:grant-profile:id-jag"

_ID_JAG_TOKEN_TYPE: Final = "oauth-id-jag+jwt"
_MAX_ASSERTION_LIFE_SECONDS: Final = 3600


class IdentityAssertions:
    """Exchanges identity assertions for access tokens. Owner of the table of used assertions."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        principals: Principals,
        policy: Policy,
        audit_trail: AuditTrail,
        client_consents: ClientConsents,
        token_issuer: TokenIssuer,
        trusted_issuers: Sequence[IssuerKeys],
    ) -> None:
        self._settings = settings
        self._database = database
        self._principals = principals
        self._policy = policy
        self._audit_trail = audit_trail
        self._client_consents = client_consents
        self._token_issuer = token_issuer
        self._trusted_issuers = trusted_issuers
        self._access_token_life = settings.gateway.access_token_life
        self._resource_identifiers = [
            build_resource_identifier(settings, mcp_path) for mcp_path in list_mcp_paths(settings)
        ]

    async def exchange_assertion(
        self, oauth_client: ClientInformation, assertion_params: IdentityAssertionParams
    ) -> OAuthToken:
        """Return an access token for the person whom the assertion names.

        Raises TokenError where the client or the assertion does not qualify, and UpstreamUnavailable where the issuer's
        keys cannot be read.
        """
        if oauth_client.known_by != "administrator" or JWT_BEARER_GRANT_TYPE not in oauth_client.grant_types:
            raise TokenError(
                "unauthorized_client", "An administrator has not let this client bring assertions."
            )
        issuer_url, claims = await self._verify_assertion(assertion_params.assertion)
        if claims.get("client_id") != oauth_client.client_id:
            raise TokenError("invalid_grant", "The assertion was issued to another client.")
        resource_url = self._resolve_resource(claims, assertion_params.resource)
        granted_scopes = self._resolve_scopes(claims, assertion_params.scopes)
        await self._record_use(issuer_url, claims)
        principal = await self._principals.resolve_principal(
            issuer_url, claims["sub"], read_display_name(claims)
        )
        if not principal.is_active or principal.kind != "person":
            raise TokenError("invalid_grant", "The person was deactivated.")
        client_consent = ClientConsent(
            id=str(uuid.uuid4()),
            principal_id=principal.id,
            client_id=oauth_client.client_id,
            client_name=oauth_client.display_name,
            asserted_by=issuer_url,
            resource=resource_url,
            scopes=tuple(granted_scopes),
            created_at=utc_now(),
            expires_at=utc_now() + self._access_token_life,
        )
        await self._client_consents.store_consent(client_consent)
        circumstances = f", by the word of {issuer_url}"
        await self._audit_trail.append_event(
            client_consent.to_audit_event("client.asserted", principal, circumstances)
        )
        return await self._token_issuer.issue_tokens(
            principal,
            oauth_client,
            granted_scopes,
            client_consent.id,
            resource=resource_url,
            has_refresh_token=False,
        )

    async def _verify_assertion(self, assertion: str) -> tuple[str, VerifiedClaims]:
        """Verify an assertion (ID-JAG section 4.3) and return its issuer and claims; raises TokenError."""
        for trusted_issuer in self._trusted_issuers:
            try:
                verified_token = await trusted_issuer.verify_token(
                    assertion, audience=self._settings.public_url
                )
            except IdentityForged:
                continue
            token_type = str(verified_token.header.get("typ")).lower().removeprefix("application/")
            expires_at = verified_token.claims["exp"]
            if (
                token_type != _ID_JAG_TOKEN_TYPE
                or not verified_token.claims.get("jti")
                or "iat" not in verified_token.claims
            ):
                break
            if not time.time() < expires_at <= time.time() + _MAX_ASSERTION_LIFE_SECONDS:
                break
            return trusted_issuer.issuer_url, verified_token.claims
        raise TokenError(
            "invalid_grant",
            "The assertion does not hold: it has to be an ID-JAG for this server with jti and iat, from an issuer that "
            "is trusted here, and good for an hour at most.",
        )

    def _resolve_resource(self, claims: VerifiedClaims, requested_resource: str | None) -> str:
        resource_claim = claims.get("resource")
        claimed_resources = {
            str(resource_url).removesuffix("/")
            for resource_url in (resource_claim if isinstance(resource_claim, list) else [resource_claim])
        }
        served_resources = [
            resource_url for resource_url in self._resource_identifiers if resource_url in claimed_resources
        ]
        target_resources = (
            served_resources
            if requested_resource is None
            else [
                resource_url
                for resource_url in served_resources
                if resource_url == requested_resource.removesuffix("/")
            ]
        )
        if len(target_resources) != 1:
            raise TokenError(
                "invalid_target",
                f"Assertion and request have to name one and the same of {', '.join(self._resource_identifiers)}.",
            )
        return target_resources[0]

    def _resolve_scopes(
        self, claims: VerifiedClaims, requested_scopes: Sequence[str] | None
    ) -> Sequence[str]:
        """Return the scopes of the token; raises TokenError where the request exceeds what the assertion allows.

        A request without scopes gets all that the assertion allows. An assertion without a scope claim allows the
        scopes that every token needs.
        """
        initial_scopes, known_scopes = (
            list_required_scopes(self._settings),
            list_all_scopes(self._settings, self._policy),
        )
        scope_claim = claims.get("scope")
        allowed_scopes = [
            scope_name
            for scope_name in known_scopes
            if scope_name in (scope_claim.split() if isinstance(scope_claim, str) else initial_scopes)
        ]
        granted_scopes = [scope_name for scope_name in requested_scopes or allowed_scopes if scope_name]
        if not granted_scopes or not set(granted_scopes) <= set(allowed_scopes):
            raise TokenError(
                "invalid_scope",
                f"The assertion allows no more than: {' '.join(allowed_scopes) or 'nothing'}.",
            )
        return list(dict.fromkeys(granted_scopes))

    async def _record_use(self, issuer_url: str, claims: VerifiedClaims) -> None:
        expires_at = datetime.fromtimestamp(claims["exp"], UTC)
        assertion_row = UsedAssertionRow(
            id_hash=hashlib.sha256(f"{issuer_url}\n{claims['jti']}".encode()).hexdigest(),
            expires_at=expires_at,
        )
        # Kept five minutes longer than the assertion is valid, since clocks differ.
        expired_condition = col(UsedAssertionRow.expires_at) < utc_now() - timedelta(minutes=5)
        try:
            async with self._database.open_write_session() as db_session:
                await db_session.exec(delete(UsedAssertionRow).where(expired_condition))
                db_session.add(assertion_row)
        except IntegrityError:
            raise TokenError("invalid_grant", "The assertion was used before. Bring a new one.") from None
