"""The provider behind the `mcp` package's OAuth handlers. They check the protocol, and it decides and stores."""

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

from engine.identity.model import Principal
from engine.services import Services
from gateway.authorization_server.assertions import Assertions
from gateway.authorization_server.clients import Client, Clients
from gateway.authorization_server.codes import Code, Codes
from gateway.authorization_server.consents import Consents
from gateway.authorization_server.metadata_documents import MetadataDocuments, is_document_address
from gateway.authorization_server.tokens import Refresh, Tokens
from gateway.protected_resource import first_scopes, resources
from gateway.sign_in.pages import LONGEST_PATH

CONSENT_PATH = "/authorize/"


class IssuedCode(AuthorizationCode):
    """An authorization code with its stored record."""

    record: Code


class IssuedRefreshToken(RefreshToken):
    """A refresh token with its stored record."""

    record: Refresh


class IssuedAccessToken(AccessToken):
    """An access token with its family, which is the id of its consent."""

    family: str


class Provider(OAuthAuthorizationServerProvider[IssuedCode, IssuedRefreshToken, IssuedAccessToken]):
    """Byline's implementation of the authorization server provider."""

    def __init__(self, services: Services) -> None:
        self._clients = Clients(services)
        self._documents = MetadataDocuments(services)
        self._codes = Codes(services)
        self._consents = Consents(services.database)
        self._assertions = Assertions(services)
        self._tokens = Tokens(services)
        self._principals = services.principals
        self._trail = services.trail
        self._resources = resources(services.settings)
        self._first_scopes = list(first_scopes(services.settings))

    @override
    async def get_client(self, client_id: str) -> Client | None:
        """Return the client with this id; raises a BylineError where its document is missing or invalid."""
        if is_document_address(client_id):
            return await self._documents.get(client_id)
        return await self._clients.get(client_id)

    @override
    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        await self._clients.register(client_info)

    @override
    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        if not self.serves(params.resource):
            raise AuthorizeError("invalid_target", f"The resources here are {', '.join(self._resources)}.")
        params.resource = self._named(params.resource)
        params.scopes = list(dict.fromkeys(params.scopes or self._first_scopes))
        question = f"{CONSENT_PATH}{await self._codes.ask(client.client_id, params)}"
        if len(question) > LONGEST_PATH:
            raise AuthorizeError("invalid_request", "The request is too long: send a shorter state.")
        return question

    @override
    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> IssuedCode | None:
        code = await self._codes.find(authorization_code)
        if code is None or code.client_id != client.client_id:
            return None
        if code.used:
            # RFC 6749 section 4.1.2: the second use of a code revokes the tokens of its first use.
            await self._end_of_copied(code.id, "code")
            return None
        asked = code.parameters
        return IssuedCode(
            code=authorization_code,
            scopes=asked.scopes or self._first_scopes,
            expires_at=code.expires_at.timestamp(),
            client_id=code.client_id,
            code_challenge=asked.code_challenge,
            redirect_uri=asked.redirect_uri,
            redirect_uri_provided_explicitly=asked.redirect_uri_provided_explicitly,
            resource=asked.resource,
            record=code,
        )

    @override
    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: IssuedCode
    ) -> OAuthToken:
        code = authorization_code.record
        if not await self._codes.use(code):
            await self._end_of_copied(code.id, "code")
            raise TokenError("invalid_grant", "The authorization code was used before.")
        if await self._consents.get(code.id) is None:
            raise TokenError("invalid_grant", "The person took their consent back.")
        principal = await self._active(code.principal_id)
        return await self._issue(
            client, principal, authorization_code.scopes, code.id, code.parameters.resource
        )

    @override
    async def load_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: str
    ) -> IssuedRefreshToken | None:
        refresh = await self._tokens.find(refresh_token)
        if refresh is None or refresh.client_id != client.client_id:
            return None
        if await self._consents.get(refresh.family) is None:
            return None
        if refresh.used:
            # RFC 9700 section 4.14.2: the token was copied, and nobody can say who has the copy.
            await self._end_of_copied(refresh.family, "refresh token")
            return None
        return IssuedRefreshToken(
            token=refresh_token,
            client_id=refresh.client_id,
            scopes=list(refresh.scopes),
            expires_at=int(refresh.expires_at.timestamp()),
            resource=self._named(refresh.resource),
            record=refresh,
        )

    @override
    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: IssuedRefreshToken, scopes: list[str]
    ) -> OAuthToken:
        refresh = refresh_token.record
        principal = await self._active(refresh.principal_id)
        if not await self._tokens.use(refresh):
            await self._end_of_copied(refresh.family, "refresh token")
            raise TokenError("invalid_grant", "The refresh token was used before.")
        await self._consents.prolong(refresh.family)
        return await self._issue(client, principal, scopes, refresh.family, refresh.resource)

    @override
    async def exchange_identity_assertion(
        self, client: OAuthClientInformationFull, params: IdentityAssertionParams
    ) -> OAuthToken:
        if not isinstance(client, Client):
            raise TypeError("get_client gives no other kind of client")
        return await self._assertions.exchange(client, params)

    @override
    async def load_access_token(self, token: str) -> IssuedAccessToken | None:
        found = await self._tokens.family(token)
        if found is None:
            return None
        family, client_id = found
        return IssuedAccessToken(token=token, client_id=client_id, scopes=[], family=family)

    @override
    async def revoke_token(self, token: IssuedAccessToken | IssuedRefreshToken) -> None:
        await self._consents.end(
            token.family if isinstance(token, IssuedAccessToken) else token.record.family
        )

    async def _end_of_copied(self, family: str, what: str) -> None:
        """End a consent whose code or token was used twice, and record that where the consent was valid."""
        consent = await self._consents.get(family)
        if not await self._consents.end(family) or consent is None:
            return
        principal = await self._principals.get(consent.principal_id)
        if principal is not None:
            why = f", ended: its {what} came a second time, so somebody has a copy"
            await self._trail.append(consent.event("client.withdrawn", principal, why))

    def serves(self, resource: str | None) -> bool:
        """Whether a resource indicator (RFC 8707) names a resource of this server. True without an indicator."""
        return self._named(resource) in self._resources

    def _named(self, resource: str | None) -> str:
        return self._resources[0] if resource is None else resource.removesuffix("/")

    async def _active(self, principal_id: str) -> Principal:
        principal = await self._principals.get(principal_id)
        if principal is None or not principal.active:
            raise TokenError("invalid_grant", "The person was deactivated.")
        return principal

    async def _issue(
        self,
        client: OAuthClientInformationFull,
        principal: Principal,
        scopes: list[str],
        family: str,
        resource: str | None,
    ) -> OAuthToken:
        await self._clients.note_use(client.client_id)
        with_refresh = "refresh_token" in client.grant_types
        return await self._tokens.issue(
            principal, client, scopes, family, resource=self._named(resource), with_refresh=with_refresh
        )
