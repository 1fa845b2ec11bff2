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
from engine.errors import (
    AddressRefused,
    AuthorizationRefused,
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
        environment: Mapping[str, str],
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
            connection.client_secret.read_secret(environment) if connection.client_secret else None
        )
        key_reference = connection.client_key
        self._client_key = (
            read_private_key(
                key_reference.read_secret(environment), f"client_key of connection '{connection.name}'"
            )
            if key_reference
            else None
        )

    async def build_authorization_url(
        self,
        *,
        redirect_uri: str,
        state: str,
        code_verifier: str,
        scopes: tuple[str, ...],
        login_hint: str = "",
        prompt: str = "",
    ) -> str:
        """Return the URL of the consent page, for the authorization code grant with PKCE S256 (RFC 7636).

        `login_hint` and `prompt` are sent if `openid` is requested (OpenID Connect Core 1.0 section 3.1.2.1). If the
        provider supports pushed authorization requests (RFC 9126), the URL carries only the reference to the request.
        Raises AuthorizationRefused if the provider has no authorization endpoint.
        """
        endpoints = await self.find_endpoints()
        if not endpoints.authorization_endpoint:
            raise AuthorizationRefused(
                f"{self._connection.title} has no page to sign in at here. Where your company vouches for you, sign "
                "out of Byline and in again; otherwise use another device."
            )
        requested_scopes = tuple(dict.fromkeys((*(scopes or endpoints.scopes), *self._provider.added_scopes)))
        scope_text = self._join_scopes(requested_scopes)
        hint_parameters = {"login_hint": login_hint, "prompt": prompt} if "openid" in requested_scopes else {}
        async with self._open_client(
            endpoints, redirect_uri=redirect_uri, code_challenge_method="S256"
        ) as authlib_client:
            authorization_url, _ = authlib_client.create_authorization_url(
                endpoints.authorization_endpoint,
                state=state,
                code_verifier=code_verifier if self._provider.pkce else None,
                **{self._provider.scope_parameter: scope_text},
                **_build_resource_parameter(endpoints),
                **{
                    parameter_name: parameter_value
                    for parameter_name, parameter_value in hint_parameters.items()
                    if parameter_value
                },
            )
            # Merged last, since a provider may need other values for standard parameters.
            authorization_url = httpx2.URL(str(authorization_url)).copy_merge_params(
                self._provider.authorization_parameters
            )
            if endpoints.pushed_authorization_request_endpoint is None:
                return str(authorization_url)
            return await self._push_authorization_request(authlib_client, endpoints, authorization_url)

    async def _push_authorization_request(
        self, authlib_client: AsyncOAuth2Client, endpoints: ProviderEndpoints, authorization_url: httpx2.URL
    ) -> str:
        endpoint_url = endpoints.pushed_authorization_request_endpoint or ""
        pushed_response = await self._post_form(authlib_client, endpoint_url, dict(authorization_url.params))
        if isinstance(pushed_response.get("request_uri"), str):
            page_parameters = {
                "client_id": authlib_client.client_id,
                "request_uri": pushed_response["request_uri"],
            }
            return str(httpx2.URL(endpoints.authorization_endpoint).copy_merge_params(page_parameters))
        raise OAuthError(None)

    async def _post_form(
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

    async def exchange_code(
        self,
        *,
        authorization_code: str,
        redirect_uri: str,
        code_verifier: str,
        requested_scopes: tuple[str, ...],
    ) -> UpstreamTokens:
        """Exchange an authorization code for tokens."""
        endpoints, proof_key = await self.find_endpoints(), self._generate_proof_key()
        pkce_parameters = {"code_verifier": code_verifier} if self._provider.pkce else {}
        async with self._open_client(endpoints, proof_key, redirect_uri=redirect_uri) as authlib_client:
            token_response = await authlib_client.fetch_token(
                endpoints.token_endpoint,
                code=authorization_code,
                **pkce_parameters,
                **_build_resource_parameter(endpoints),
            )
            tokens = UpstreamTokens.from_response(
                to_standard_response(self._provider, token_response), requested_scopes, proof_key=proof_key
            )
            return replace(tokens, account=find_account(self._provider, token_response))

    async def refresh_tokens(self, tokens: UpstreamTokens) -> UpstreamTokens:
        """Request new tokens with the refresh token."""
        endpoints, proof_key = await self.find_endpoints(), _read_proof_key(tokens)
        async with self._open_client(endpoints, proof_key) as authlib_client:
            token_response = await authlib_client.refresh_token(
                endpoints.token_endpoint,
                refresh_token=tokens.refresh_token,
                **_build_resource_parameter(endpoints),
            )
            standard_response = to_standard_response(self._provider, token_response)
            return UpstreamTokens.from_response(
                standard_response, tokens.scopes, previous_tokens=tokens, proof_key=proof_key
            )

    async def tokens_without_person(
        self, _principal_id: str, _scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return None: a person has to consent at the provider's page."""
        return None

    async def renew(self, principal_id: str, tokens: UpstreamTokens) -> UpstreamTokens | None:
        """Return new tokens in place of these, or None if a person has to act."""
        if tokens.refresh_token is not None:
            return await self.refresh_tokens(tokens)
        is_shared = self._connection.mode == "shared"
        return await self.tokens_without_person(
            principal_id, self._connection.scopes if is_shared else tokens.scopes
        )

    async def request_device_authorization(self, scopes: tuple[str, ...]) -> Mapping[str, Any]:
        """Request a device code and return the provider's response unchanged (RFC 8628 section 3.2).

        Raises AuthorizationRefused if the provider has no device authorization endpoint.
        """
        endpoints = await self.find_endpoints()
        if endpoints.device_authorization_endpoint is None:
            raise AuthorizationRefused(
                f"{self._connection.title} is not signed in to on another device: open the link and sign in there."
            )
        async with self._open_client(endpoints) as authlib_client:
            requested_scopes = tuple(dict.fromkeys((*scopes, *self._provider.added_scopes)))
            return await self._post_form(
                authlib_client,
                endpoints.device_authorization_endpoint,
                self.build_scope_parameter(requested_scopes),
            )

    def build_scope_parameter(self, requested_scopes: tuple[str, ...]) -> dict[str, str]:
        """Return the request parameter for these scopes. It is empty if there are none."""
        return (
            {self._provider.scope_parameter: self._join_scopes(requested_scopes)} if requested_scopes else {}
        )

    async def request_tokens(
        self, grant_type: str, requested_scopes: tuple[str, ...], **parameters: str
    ) -> UpstreamTokens:
        """Request tokens with a grant of any type (RFC 6749 section 4.5) and its parameters."""
        endpoints, proof_key = await self.find_endpoints(), self._generate_proof_key()
        parameters = {**_build_resource_parameter(endpoints), **parameters}
        async with self._open_client(endpoints, proof_key) as authlib_client:
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
        async with self._open_client(endpoints) as authlib_client:
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
        async with self._open_client(endpoints) as authlib_client:
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
        async with self._open_client(endpoints) as authlib_client:
            request = authlib_client.build_request("GET", endpoints.userinfo_endpoint)
            attach_token(
                request,
                tokens.access_token,
                _read_proof_key(tokens),
                token_place=self._connection.token_place,
            )
            response = await authlib_client.send(request)
            claims = response.json() if response.is_success else None
        if not isinstance(claims, dict):
            status = response.status_code
            raise ConnectionMisconfigured(
                f"Connection '{self._connection.name}' does not tell whose account it is (userinfo: {status})."
            )
        return str(find_value(claims, self._provider.account_claim) or claims.get("sub") or "")

    def _join_scopes(self, scopes: tuple[str, ...]) -> str:
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
    async def _open_client(
        self, endpoints: ProviderEndpoints, proof_key: ProofKey | None = None, **client_options: Any
    ) -> AsyncIterator[AsyncOAuth2Client]:
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


def _build_resource_parameter(endpoints: ProviderEndpoints) -> dict[str, str]:
    """Return the `resource` parameter, for which the tokens are requested (RFC 8707). It is empty if unknown."""
    return {} if endpoints.resource is None else {"resource": endpoints.resource}
