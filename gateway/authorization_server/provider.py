"""The provider behind the `mcp` package's OAuth handlers. They check the protocol, and it decides and stores."""

from collections.abc import Sequence

from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    IdentityAssertionParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    TokenError,
)
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from typing_extensions import override

from engine.audit.trail import AuditTrail
from engine.identity.model import Principal
from engine.identity.principals import Principals
from gateway.authorization_server.authorization_codes import AuthorizationCodeRecord
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.identity_assertions import IdentityAssertions
from gateway.authorization_server.metadata_documents import MetadataDocuments, is_document_url
from gateway.authorization_server.tables import AuthorizationServerTables
from gateway.authorization_server.tokens import RefreshTokenRecord
from gateway.sign_in.pages import MAX_PATH_CHARS

CONSENT_PATH = "/authorize/"


class IssuedAuthorizationCode(AuthorizationCode):
    """An authorization code with its stored record."""

    record: AuthorizationCodeRecord


class IssuedRefreshToken(RefreshToken):
    """A refresh token with its stored record."""

    record: RefreshTokenRecord


class IssuedAccessToken(AccessToken):
    """An access token with its family, which is the id of its consent."""

    family: str


class AuthorizationServerProvider(
    OAuthAuthorizationServerProvider[IssuedAuthorizationCode, IssuedRefreshToken, IssuedAccessToken]
):
    """Byline's implementation of the authorization server provider."""

    def __init__(
        self,
        *,
        oauth_tables: AuthorizationServerTables,
        metadata_documents: MetadataDocuments,
        identity_assertions: IdentityAssertions,
        principals: Principals,
        audit_trail: AuditTrail,
        resource_identifiers: Sequence[str],
        first_scopes: Sequence[str],
    ) -> None:
        self._oauth_clients = oauth_tables.oauth_clients
        self._authorization_codes = oauth_tables.authorization_codes
        self._client_consents = oauth_tables.client_consents
        self._token_issuer = oauth_tables.token_issuer
        self._metadata_documents = metadata_documents
        self._identity_assertions = identity_assertions
        self._principals = principals
        self._audit_trail = audit_trail
        self._resource_identifiers = resource_identifiers
        self._first_scopes = list(first_scopes)

    @override
    async def get_client(self, client_id: str) -> ClientInformation | None:
        """Return the client with this id; raises a BylineError where its document is missing or invalid."""
        if is_document_url(client_id):
            return await self._metadata_documents.find_client(client_id)
        return await self._oauth_clients.find_client(client_id)

    @override
    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        await self._oauth_clients.register_client(client_info)

    @override
    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        if not self.is_own_resource(params.resource):
            raise AuthorizeError(
                "invalid_target", f"The resources here are {', '.join(self._resource_identifiers)}."
            )
        params.resource = self._resolve_resource(params.resource)
        params.scopes = list(dict.fromkeys(params.scopes or self._first_scopes))
        consent_address = (
            f"{CONSENT_PATH}{await self._authorization_codes.seal_request(client.client_id, params)}"
        )
        if len(consent_address) > MAX_PATH_CHARS:
            raise AuthorizeError("invalid_request", "The request is too long: send a shorter state.")
        return consent_address

    @override
    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> IssuedAuthorizationCode | None:
        code_record = await self._authorization_codes.find_code(authorization_code)
        if code_record is None or code_record.client_id != client.client_id:
            return None
        if code_record.is_used:
            # RFC 6749 section 4.1.2: the second use of a code revokes the tokens of its first use.
            await self._end_copied_consent(code_record.id, "code")
            return None
        authorization_params = code_record.parameters
        return IssuedAuthorizationCode(
            code=authorization_code,
            scopes=authorization_params.scopes or self._first_scopes,
            expires_at=code_record.expires_at.timestamp(),
            client_id=code_record.client_id,
            code_challenge=authorization_params.code_challenge,
            redirect_uri=authorization_params.redirect_uri,
            redirect_uri_provided_explicitly=authorization_params.redirect_uri_provided_explicitly,
            resource=authorization_params.resource,
            record=code_record,
        )

    @override
    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: IssuedAuthorizationCode
    ) -> OAuthToken:
        code_record = authorization_code.record
        if not await self._authorization_codes.redeem_code(code_record):
            await self._end_copied_consent(code_record.id, "code")
            raise TokenError("invalid_grant", "The authorization code was used before.")
        if await self._client_consents.find_consent(code_record.id) is None:
            raise TokenError("invalid_grant", "The person took their consent back.")
        principal = await self._require_active(code_record.principal_id)
        return await self._issue_tokens(
            client, principal, authorization_code.scopes, code_record.id, code_record.parameters.resource
        )

    @override
    async def load_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: str
    ) -> IssuedRefreshToken | None:
        refresh_record = await self._token_issuer.find_refresh_token(refresh_token)
        if refresh_record is None or refresh_record.client_id != client.client_id:
            return None
        if await self._client_consents.find_consent(refresh_record.family) is None:
            return None
        if refresh_record.is_used:
            # RFC 9700 section 4.14.2: the token was copied, and nobody can say who has the copy.
            await self._end_copied_consent(refresh_record.family, "refresh token")
            return None
        return IssuedRefreshToken(
            token=refresh_token,
            client_id=refresh_record.client_id,
            scopes=list(refresh_record.scopes),
            expires_at=int(refresh_record.expires_at.timestamp()),
            resource=self._resolve_resource(refresh_record.resource),
            record=refresh_record,
        )

    @override
    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: IssuedRefreshToken, scopes: list[str]
    ) -> OAuthToken:
        refresh_record = refresh_token.record
        principal = await self._require_active(refresh_record.principal_id)
        if not await self._token_issuer.redeem_refresh_token(refresh_record):
            await self._end_copied_consent(refresh_record.family, "refresh token")
            raise TokenError("invalid_grant", "The refresh token was used before.")
        await self._client_consents.extend_consent(refresh_record.family)
        return await self._issue_tokens(
            client, principal, scopes, refresh_record.family, refresh_record.resource
        )

    @override
    async def exchange_identity_assertion(
        self, client: OAuthClientInformationFull, params: IdentityAssertionParams
    ) -> OAuthToken:
        if not isinstance(client, ClientInformation):
            raise TypeError("get_client gives no other kind of client")
        return await self._identity_assertions.exchange_assertion(client, params)

    @override
    async def load_access_token(self, token: str) -> IssuedAccessToken | None:
        family_and_client_id = await self._token_issuer.read_family(token)
        if family_and_client_id is None:
            return None
        token_family, client_id = family_and_client_id
        return IssuedAccessToken(token=token, client_id=client_id, scopes=[], family=token_family)

    @override
    async def revoke_token(self, token: IssuedAccessToken | IssuedRefreshToken) -> None:
        await self._client_consents.end_consent(
            token.family if isinstance(token, IssuedAccessToken) else token.record.family
        )

    async def _end_copied_consent(self, consent_id: str, credential_name: str) -> None:
        """End a consent whose code or token was used twice, and record that where the consent was valid."""
        client_consent = await self._client_consents.find_consent(consent_id)
        if not await self._client_consents.end_consent(consent_id) or client_consent is None:
            return
        principal = await self._principals.find_principal(client_consent.principal_id)
        if principal is not None:
            circumstances = f", ended: its {credential_name} came a second time, so somebody has a copy"
            await self._audit_trail.append_event(
                client_consent.to_audit_event("client.withdrawn", principal, circumstances)
            )

    def is_own_resource(self, resource_indicator: str | None) -> bool:
        """Whether a resource indicator (RFC 8707) names a resource of this server. True without an indicator."""
        return self._resolve_resource(resource_indicator) in self._resource_identifiers

    def _resolve_resource(self, resource_indicator: str | None) -> str:
        return (
            self._resource_identifiers[0]
            if resource_indicator is None
            else resource_indicator.removesuffix("/")
        )

    async def _require_active(self, principal_id: str) -> Principal:
        principal = await self._principals.find_principal(principal_id)
        if principal is None or not principal.is_active:
            raise TokenError("invalid_grant", "The person was deactivated.")
        return principal

    async def _issue_tokens(
        self,
        oauth_client: OAuthClientInformationFull,
        principal: Principal,
        scopes: list[str],
        token_family: str,
        resource: str | None,
    ) -> OAuthToken:
        await self._oauth_clients.record_use(oauth_client.client_id)
        has_refresh_token = "refresh_token" in oauth_client.grant_types
        return await self._token_issuer.issue_tokens(
            principal,
            oauth_client,
            scopes,
            token_family,
            resource=self._resolve_resource(resource),
            has_refresh_token=has_refresh_token,
        )
