"""Byline as an OAuth 2.0 client of upstreams, built on Authlib. This module stores nothing."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from engine.connections.connection import Connection
from engine.connections.secret_reader import SecretReader
from engine.errors import (
    AddressRefused,
    BylineError,
    ConnectionMisconfigured,
    RequestRejected,
    UpstreamUnavailable,
)
from engine.oauth.client_keys import create_private_key_jwt, read_private_key
from engine.oauth.discovery import Discovery, ProviderEndpoints
from engine.oauth.dpop import DpopTransport, ProofKey, attach_token
from engine.oauth.json_form_transport import JsonFormTransport
from engine.oauth.registration import ClientIdentity, ClientRegistrations
from engine.oauth.token_response import find_account, find_value, to_standard_response
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingTransport

_TIMEOUT_SECONDS = 15.0
_ERROR_CODE_PATTERN = re.compile(r"[a-z_]{1,40}")
# GitHub and Slack send these instead of invalid_grant, for a code and for a refresh token that is used or revoked.
_PROVIDER_ERROR_CODES: Final = dict.fromkeys(
    ("bad_verification_code", "bad_refresh_token", "invalid_code", "invalid_refresh_token"), "invalid_grant"
)


class TokenRefused(BylineError):
    """The token endpoint refused. `error_code` is the error code of RFC 6749 section 5.2."""

    code = "token_refused"

    def __init__(self, connection_name: str, error_code: str) -> None:
        super().__init__(f"The sign-in service of connection '{connection_name}' refused: {error_code}.")
        self.error_code = error_code


class OAuthClient:
    """The OAuth client of one connection at its provider."""

    def __init__(
        self,
        connection: Connection,
        secret_reader: SecretReader,
        discovery: Discovery,
        registrations: ClientRegistrations | None = None,
    ) -> None:
        self._connection = connection
        # A token that is valid at an MCP server only is refused by a userinfo endpoint.
        account_override = {} if connection.mcp is None else {"account_from": "id_token"}
        self._provider = connection.provider.model_copy(update=account_override)
        self._discovery = discovery
        self._registrations = registrations
        self._client_secret = (
            secret_reader.read_secret(connection.name, connection.client_secret)
            if connection.client_secret
            else None
        )
        key_reference = connection.client_key
        self._client_key = (
            read_private_key(
                secret_reader.read_secret(connection.name, key_reference),
                f"client_key of connection '{connection.name}'",
            )
            if key_reference
            else None
        )

    async def post_form(
        self, authlib_client: AsyncOAuth2Client, endpoint_url: str, form_fields: dict[str, str]
    ) -> Mapping[str, Any]:
        """Post a form with client authentication to an endpoint other than the token endpoint. Returns the response."""
        auth_method = authlib_client.token_endpoint_auth_method
        form_fields = {"client_id": authlib_client.client_id, **form_fields}
        if auth_method in {"client_secret_post", "none"}:
            # These methods add client_id themselves, and a parameter must not appear twice (RFC 6749 section 3.1).
            del form_fields["client_id"]
        response = await authlib_client.request(
            "POST",
            endpoint_url,
            data=form_fields,
            auth=authlib_client.client_auth(auth_method),
            withhold_token=True,
        )
        response_body = response.json()
        if response.is_success and isinstance(response_body, dict):
            return response_body
        raise OAuthError(response_body.get("error") if isinstance(response_body, dict) else None)

    async def refresh_tokens(self, tokens: UpstreamTokens) -> UpstreamTokens:
        """Request new tokens with the refresh token."""
        endpoints, proof_key = await self.find_endpoints(), _read_proof_key(tokens)
        async with self.open_client(endpoints, proof_key) as authlib_client:
            token_response = await authlib_client.refresh_token(
                endpoints.token_endpoint,
                refresh_token=tokens.refresh_token,
                **build_resource_parameter(endpoints),
            )
            standard_response = to_standard_response(self._provider, token_response)
            return UpstreamTokens.from_response(
                standard_response, tokens.scopes, previous_tokens=tokens, proof_key=proof_key
            )

    def build_scope_parameter(self, requested_scopes: tuple[str, ...]) -> dict[str, str]:
        """Return the request parameter for these scopes. It is empty if there are none."""
        return (
            {self._provider.scope_parameter: self.join_scopes(requested_scopes)} if requested_scopes else {}
        )

    async def request_tokens(
        self, grant_type: str, requested_scopes: tuple[str, ...], **parameters: str
    ) -> UpstreamTokens:
        """Request tokens with a grant of any type (RFC 6749 section 4.5) and its parameters."""
        endpoints, proof_key = await self.find_endpoints(), self._generate_proof_key()
        parameters = {**build_resource_parameter(endpoints), **parameters}
        async with self.open_client(endpoints, proof_key) as authlib_client:
            token_response = await authlib_client.fetch_token(
                endpoints.token_endpoint, grant_type=grant_type, **parameters
            )
            tokens = UpstreamTokens.from_response(
                to_standard_response(self._provider, token_response), requested_scopes, proof_key=proof_key
            )
            return replace(tokens, account=find_account(self._provider, token_response))

    async def request_token_response(self, grant_type: str, **parameters: str) -> Mapping[str, Any]:
        """Request a grant of any type and return the token endpoint's response unchanged.

        It is for responses that carry something other than an access token.
        """
        endpoints = await self.find_endpoints()
        async with self.open_client(endpoints) as authlib_client:
            token_response: Mapping[str, Any] = await authlib_client.fetch_token(
                endpoints.token_endpoint, grant_type=grant_type, **parameters
            )
            return token_response

    async def revoke(self, tokens: UpstreamTokens) -> bool:
        """Revoke the tokens upstream (RFC 7009). Returns False if the provider has no endpoint for it or refuses."""
        endpoints = await self.find_endpoints()
        if endpoints.revocation_endpoint is None:
            return False
        revoked_token, token_type_hint = (
            (tokens.refresh_token, "refresh_token")
            if tokens.refresh_token
            else (tokens.access_token, "access_token")
        )
        async with self.open_client(endpoints) as authlib_client:
            response = await authlib_client.revoke_token(
                endpoints.revocation_endpoint, token=revoked_token, token_type_hint=token_type_hint
            )
            if response.is_server_error:
                response.raise_for_status()
        return bool(response.is_success)

    async def find_account(self, tokens: UpstreamTokens) -> str:
        """Return the upstream's name for the account that consented, or an empty string if the provider cannot tell.

        Raises ConnectionMisconfigured if the userinfo endpoint does not answer with claims.
        """
        endpoints = await self.find_endpoints()
        if endpoints.userinfo_endpoint is None or self._provider.account_from != "userinfo":
            return tokens.account
        async with self.open_client(endpoints) as authlib_client:
            request = authlib_client.build_request("GET", endpoints.userinfo_endpoint)
            attach_token(
                request,
                tokens.access_token,
                _read_proof_key(tokens),
                token_place=self._provider.token_place,
            )
            response = await authlib_client.send(request)
            claims = response.json() if response.is_success else None
        if not isinstance(claims, dict):
            status = response.status_code
            raise ConnectionMisconfigured(
                f"Connection '{self._connection.name}' does not tell whose account it is (userinfo: {status})."
            )
        return str(find_value(claims, self._provider.account_claim) or claims.get("sub") or "")

    def join_scopes(self, scopes: tuple[str, ...]) -> str:
        """Return these scopes as this provider separates them."""
        return {"space": " ", "comma": ","}[self._provider.scope_separator].join(scopes)

    async def find_endpoints(self) -> ProviderEndpoints:
        """Return the provider's endpoints."""
        return await self._discovery.find_endpoints(self._connection)

    def _generate_proof_key(self) -> ProofKey | None:
        return ProofKey.generate() if self._provider.dpop else None

    async def _find_client_identity(self, endpoints: ProviderEndpoints) -> ClientIdentity:
        """Return the declared client identity, or without a `client_id` the one from the client registrations."""
        if not self._connection.client_id:
            if self._registrations is None:
                raise ConnectionMisconfigured(
                    f"Connection '{self._connection.name}' has no client_id: write it."
                )
            return await self._registrations.find_identity(self._connection.name, endpoints)
        is_confidential = self._client_secret is not None or self._client_key is not None
        auth_method = self._provider.token_endpoint_auth_method if is_confidential else "none"
        return ClientIdentity(self._connection.client_id, auth_method, self._client_secret)

    def _create_authlib_client(
        self,
        client_identity: ClientIdentity,
        endpoints: ProviderEndpoints,
        proof_key: ProofKey | None,
        **client_options: Any,
    ) -> AsyncOAuth2Client:
        transport: httpx2.AsyncBaseTransport = OutgoingTransport(self._discovery.outgoing)
        if self._provider.token_request == "json":
            transport = JsonFormTransport(transport, endpoints.token_endpoint)
        authlib_client = AsyncOAuth2Client(
            client_id=client_identity.client_id,
            client_secret=client_identity.client_secret or self._client_key,
            token_endpoint_auth_method=client_identity.auth_method,
            revocation_endpoint_auth_method=client_identity.auth_method,
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
            transport=transport if proof_key is None else DpopTransport(proof_key, transport),
            **client_options,
        )
        if self._client_key is not None:
            authlib_client.register_client_auth_method(
                create_private_key_jwt(self._client_key, endpoints.token_endpoint)
            )
        return authlib_client

    async def _to_token_refused(
        self, provider_error_code: str, client_identity: ClientIdentity, endpoints: ProviderEndpoints
    ) -> TokenRefused:
        # An error code of RFC 6749 is a few words. Anything else is the provider's own text, which is not passed on.
        error_code = (
            _PROVIDER_ERROR_CODES.get(provider_error_code, provider_error_code)
            if _ERROR_CODE_PATTERN.fullmatch(provider_error_code)
            else "unknown_error"
        )
        if (
            error_code == "invalid_client"
            and client_identity.is_registered
            and self._registrations is not None
        ):
            # The grants of a client that the issuer deleted are gone too. The next sign-in registers a new client.
            await self._registrations.delete_registration(endpoints.issuer or "")
            error_code = "invalid_grant"
        return TokenRefused(self._connection.name, error_code)

    @asynccontextmanager
    async def open_client(
        self, endpoints: ProviderEndpoints, proof_key: ProofKey | None = None, **client_options: Any
    ) -> AsyncIterator[AsyncOAuth2Client]:
        """Open an HTTP client that authenticates as this OAuth client.

        Raises TokenRefused for an error response to the block's requests, ConnectionMisconfigured if the provider must
        not be called, and UpstreamUnavailable or RequestRejected if it does not answer as it should.
        """
        client_identity = await self._find_client_identity(endpoints)
        try:
            async with self._create_authlib_client(
                client_identity, endpoints, proof_key, **client_options
            ) as authlib_client:
                yield authlib_client
        except OAuthError as error:
            raise await self._to_token_refused(str(error.error), client_identity, endpoints) from None
        except httpx2.HTTPStatusError as error:
            raise UpstreamUnavailable(
                f"The sign-in service of connection '{self._connection.name}' failed ({error.response.status_code}).",
                status_code=error.response.status_code,
            ) from None
        except AddressRefused as error:
            raise ConnectionMisconfigured(
                f"The sign-in service of connection '{self._connection.name}' is not called: {error}"
            ) from None
        except (UpstreamUnavailable, RequestRejected) as error:
            raise type(error)(
                f"The sign-in service of connection '{self._connection.name}' does not answer: {error}",
                status_code=error.status_code,
            ) from None
        except httpx2.HTTPError as error:
            error_type = type(error).__name__
            raise UpstreamUnavailable(
                f"The sign-in service of connection '{self._connection.name}' does not answer ({error_type})."
            ) from None
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            error_type = type(error).__name__
            raise UpstreamUnavailable(
                f"The sign-in service of connection '{self._connection.name}' answers with no tokens ({error_type})."
            ) from None


def _read_proof_key(tokens: UpstreamTokens) -> ProofKey | None:
    return ProofKey.from_jwk(tokens.proof_key) if tokens.proof_key else None


def build_resource_parameter(endpoints: ProviderEndpoints) -> dict[str, str]:
    """Return the `resource` parameter, for which the tokens are requested (RFC 8707). It is empty if unknown."""
    return {} if endpoints.resource is None else {"resource": endpoints.resource}
