"""Byline as an OAuth 2.0 client of upstreams, built on Authlib. This module stores nothing."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from engine.connections.client_keys import assertion, read_private_key
from engine.connections.connection import Connection
from engine.connections.discovery import Discovery, Endpoints
from engine.connections.dpop import ProofKey, ProvingTransport, sign
from engine.connections.json_requests import JsonTransport
from engine.connections.registration import ClientIdentity, Registrations
from engine.connections.token_response import account_told, in_standard_words, told_at
from engine.connections.tokens import Tokens
from engine.errors import (
    AddressRefused,
    AuthorizationRefused,
    BylineError,
    ConnectionMisconfigured,
    RequestRejected,
    UpstreamUnavailable,
)
from engine.outgoing.client import OutgoingTransport

_TIMEOUT_SECONDS = 15.0
_ERROR = re.compile(r"[a-z_]{1,40}")
# GitHub and Slack send these instead of invalid_grant, for a code and for a refresh token that is used or revoked.
_OWN_WORDS: Final = dict.fromkeys(
    ("bad_verification_code", "bad_refresh_token", "invalid_code", "invalid_refresh_token"), "invalid_grant"
)


class TokenRefused(BylineError):
    """The token endpoint refused. `error_code` is the error code of RFC 6749 section 5.2."""

    code = "token_refused"

    def __init__(self, connection: str, error: str) -> None:
        super().__init__(f"The sign-in service of connection '{connection}' refused: {error}.")
        self.error = error


class OAuthClient:
    """The OAuth client of one connection at its provider."""

    def __init__(
        self,
        connection: Connection,
        environment: Mapping[str, str],
        discovery: Discovery,
        registrations: Registrations | None = None,
    ) -> None:
        self._connection = connection
        # A token that is valid at an MCP server only is refused by a userinfo endpoint.
        by_id_token = {} if connection.mcp is None else {"account_from": "id_token"}
        self._provider = connection.provider.model_copy(update=by_id_token)
        self._discovery = discovery
        self._registrations = registrations
        self._secret = connection.client_secret.read(environment) if connection.client_secret else None
        key = connection.client_key
        self._key = (
            read_private_key(key.read(environment), f"client_key of connection '{connection.name}'")
            if key
            else None
        )

    async def authorization_url(
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
        endpoints = await self.endpoints()
        if not endpoints.authorization:
            raise AuthorizationRefused(
                f"{self._connection.title} has no page to sign in at here. Where your company vouches for you, sign "
                "out of Byline and in again; otherwise use another device."
            )
        wanted = tuple(dict.fromkeys((*(scopes or endpoints.scopes), *self._provider.added_scopes)))
        asked = self._joined(wanted)
        told = {"login_hint": login_hint, "prompt": prompt} if "openid" in wanted else {}
        async with self._calling(
            endpoints, redirect_uri=redirect_uri, code_challenge_method="S256"
        ) as client:
            url, _ = client.create_authorization_url(
                endpoints.authorization,
                state=state,
                code_verifier=code_verifier if self._provider.pkce else None,
                **{self._provider.scope_parameter: asked},
                **_resource(endpoints),
                **{name: value for name, value in told.items() if value},
            )
            # Merged last, since a provider may need other values for standard parameters.
            url = httpx2.URL(str(url)).copy_merge_params(self._provider.authorization_parameters)
            if endpoints.pushed_authorization_request is None:
                return str(url)
            return await self._pushed(client, endpoints, url)

    async def _pushed(self, client: AsyncOAuth2Client, endpoints: Endpoints, url: httpx2.URL) -> str:
        address = endpoints.pushed_authorization_request or ""
        answer = await self._posted(client, address, dict(url.params))
        if isinstance(answer.get("request_uri"), str):
            given = {"client_id": client.client_id, "request_uri": answer["request_uri"]}
            return str(httpx2.URL(endpoints.authorization).copy_merge_params(given))
        raise OAuthError(None)

    async def _posted(
        self, client: AsyncOAuth2Client, address: str, form: dict[str, str]
    ) -> Mapping[str, Any]:
        """Post a form with client authentication to an endpoint other than the token endpoint. Returns the response."""
        method = client.token_endpoint_auth_method
        form = {"client_id": client.client_id, **form}
        if method in {"client_secret_post", "none"}:
            # These methods add client_id themselves, and a parameter must not appear twice (RFC 6749 section 3.1).
            del form["client_id"]
        response = await client.request(
            "POST", address, data=form, auth=client.client_auth(method), withhold_token=True
        )
        answer = response.json()
        if response.is_success and isinstance(answer, dict):
            return answer
        raise OAuthError(answer.get("error") if isinstance(answer, dict) else None)

    async def exchange(
        self, *, code: str, redirect_uri: str, code_verifier: str, asked: tuple[str, ...]
    ) -> Tokens:
        """Exchange an authorization code for tokens."""
        endpoints, key = await self.endpoints(), self._new_key()
        proof = {"code_verifier": code_verifier} if self._provider.pkce else {}
        async with self._calling(endpoints, key, redirect_uri=redirect_uri) as client:
            token = await client.fetch_token(endpoints.token, code=code, **proof, **_resource(endpoints))
            tokens = Tokens.from_response(in_standard_words(self._provider, token), asked, proof_key=key)
            return replace(tokens, account=account_told(self._provider, token))

    async def refresh(self, tokens: Tokens) -> Tokens:
        """Request new tokens with the refresh token."""
        endpoints, key = await self.endpoints(), _key_of(tokens)
        async with self._calling(endpoints, key) as client:
            token = await client.refresh_token(
                endpoints.token, refresh_token=tokens.refresh_token, **_resource(endpoints)
            )
            standard = in_standard_words(self._provider, token)
            return Tokens.from_response(standard, tokens.scopes, previous=tokens, proof_key=key)

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """Return None: a person has to consent at the provider's page."""
        del principal_id, scopes
        return None

    async def renewed(self, principal_id: str, tokens: Tokens) -> Tokens | None:
        """Return new tokens in place of these, or None if a person has to act."""
        if tokens.refresh_token is not None:
            return await self.refresh(tokens)
        is_shared = self._connection.mode == "shared"
        return await self.unasked(principal_id, self._connection.scopes if is_shared else tokens.scopes)

    async def device_authorization(self, scopes: tuple[str, ...]) -> Mapping[str, Any]:
        """Request a device code and return the provider's response unchanged (RFC 8628 section 3.2).

        Raises AuthorizationRefused if the provider has no device authorization endpoint.
        """
        endpoints = await self.endpoints()
        if endpoints.device_authorization is None:
            raise AuthorizationRefused(
                f"{self._connection.title} is not signed in to on another device: open the link and sign in there."
            )
        async with self._calling(endpoints) as client:
            asked = tuple(dict.fromkeys((*scopes, *self._provider.added_scopes)))
            return await self._posted(client, endpoints.device_authorization, self.scoped(asked))

    def scoped(self, asked: tuple[str, ...]) -> dict[str, str]:
        """Return the request parameter for these scopes. It is empty if there are none."""
        return {self._provider.scope_parameter: self._joined(asked)} if asked else {}

    async def granted(self, grant_type: str, asked: tuple[str, ...], **parameters: str) -> Tokens:
        """Request tokens with a grant of any type (RFC 6749 section 4.5) and its parameters."""
        endpoints, key = await self.endpoints(), self._new_key()
        parameters = {**_resource(endpoints), **parameters}
        async with self._calling(endpoints, key) as client:
            token = await client.fetch_token(endpoints.token, grant_type=grant_type, **parameters)
            tokens = Tokens.from_response(in_standard_words(self._provider, token), asked, proof_key=key)
            return replace(tokens, account=account_told(self._provider, token))

    async def answer(self, grant_type: str, **parameters: str) -> Mapping[str, Any]:
        """Request a grant of any type and return the token endpoint's response unchanged.

        It is for responses that carry something other than an access token.
        """
        endpoints = await self.endpoints()
        async with self._calling(endpoints) as client:
            answer: Mapping[str, Any] = await client.fetch_token(
                endpoints.token, grant_type=grant_type, **parameters
            )
            return answer

    async def revoke(self, tokens: Tokens) -> bool:
        """Revoke the tokens upstream (RFC 7009). Returns False if the provider has no endpoint for it or refuses."""
        endpoints = await self.endpoints()
        if endpoints.revocation is None:
            return False
        token, hint = (
            (tokens.refresh_token, "refresh_token")
            if tokens.refresh_token
            else (tokens.access_token, "access_token")
        )
        async with self._calling(endpoints) as client:
            response = await client.revoke_token(endpoints.revocation, token=token, token_type_hint=hint)
            if response.is_server_error:
                response.raise_for_status()
        return bool(response.is_success)

    async def account(self, tokens: Tokens) -> str:
        """Return the upstream's name for the account that consented, or an empty string if the provider cannot tell.

        Raises ConnectionMisconfigured if the userinfo endpoint does not answer with claims.
        """
        endpoints = await self.endpoints()
        if endpoints.userinfo is None or self._provider.account_from != "userinfo":
            return tokens.account
        async with self._calling(endpoints) as client:
            request = client.build_request("GET", endpoints.userinfo)
            sign(request, tokens.access_token, _key_of(tokens), place=self._connection.token_place)
            response = await client.send(request)
            claims = response.json() if response.is_success else None
        if not isinstance(claims, dict):
            status = response.status_code
            raise ConnectionMisconfigured(
                f"Connection '{self._connection.name}' does not tell whose account it is (userinfo: {status})."
            )
        return str(told_at(claims, self._provider.account_claim) or claims.get("sub") or "")

    def _joined(self, scopes: tuple[str, ...]) -> str:
        return {"space": " ", "comma": ","}[self._provider.scope_separator].join(scopes)

    async def endpoints(self) -> Endpoints:
        """Return the provider's endpoints."""
        return await self._discovery.endpoints(self._connection)

    def _new_key(self) -> ProofKey | None:
        return ProofKey.generate() if self._provider.dpop else None

    async def _identity(self, endpoints: Endpoints) -> ClientIdentity:
        """Return the declared client identity, or without a `client_id` the one from the client registrations."""
        if not self._connection.client_id:
            if self._registrations is None:
                raise ConnectionMisconfigured(
                    f"Connection '{self._connection.name}' has no client_id: write it."
                )
            return await self._registrations.of(self._connection.name, endpoints)
        is_known = self._secret is not None or self._key is not None
        method = self._provider.token_endpoint_auth_method if is_known else "none"
        return ClientIdentity(self._connection.client_id, method, self._secret)

    def _client(
        self, identity: ClientIdentity, endpoints: Endpoints, key: ProofKey | None, **options: Any
    ) -> AsyncOAuth2Client:
        transport: httpx2.AsyncBaseTransport = OutgoingTransport(self._discovery.outgoing)
        if self._provider.token_request == "json":
            transport = JsonTransport(transport, endpoints.token)
        client = AsyncOAuth2Client(
            client_id=identity.client_id,
            client_secret=identity.secret or self._key,
            token_endpoint_auth_method=identity.method,
            revocation_endpoint_auth_method=identity.method,
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
            transport=transport if key is None else ProvingTransport(key, transport),
            **options,
        )
        if self._key is not None:
            client.register_client_auth_method(assertion(self._key, endpoints.token))
        return client

    async def _refused(self, code: str, identity: ClientIdentity, endpoints: Endpoints) -> TokenRefused:
        # An error code of RFC 6749 is a few words. Anything else is the provider's own text, which is not passed on.
        known = _OWN_WORDS.get(code, code) if _ERROR.fullmatch(code) else "unknown_error"
        if known == "invalid_client" and identity.is_registered and self._registrations is not None:
            # The grants of a client that the issuer deleted are gone too. The next sign-in registers a new client.
            await self._registrations.forget(endpoints.issuer or "")
            known = "invalid_grant"
        return TokenRefused(self._connection.name, known)

    @asynccontextmanager
    async def _calling(
        self, endpoints: Endpoints, key: ProofKey | None = None, **options: Any
    ) -> AsyncIterator[AsyncOAuth2Client]:
        identity = await self._identity(endpoints)
        try:
            async with self._client(identity, endpoints, key, **options) as client:
                yield client
        except OAuthError as error:
            raise await self._refused(str(error.error), identity, endpoints) from None
        except httpx2.HTTPStatusError as error:
            raise UpstreamUnavailable(
                f"The sign-in service of connection '{self._connection.name}' failed ({error.response.status_code}).",
                status=error.response.status_code,
            ) from None
        except AddressRefused as error:
            raise ConnectionMisconfigured(
                f"The sign-in service of connection '{self._connection.name}' is not called: {error}"
            ) from None
        except (UpstreamUnavailable, RequestRejected) as error:
            raise type(error)(
                f"The sign-in service of connection '{self._connection.name}' does not answer: {error}",
                status=error.status,
            ) from None
        except httpx2.HTTPError as error:
            reason = type(error).__name__
            raise UpstreamUnavailable(
                f"The sign-in service of connection '{self._connection.name}' does not answer ({reason})."
            ) from None
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = type(error).__name__
            raise UpstreamUnavailable(
                f"The sign-in service of connection '{self._connection.name}' answers with no tokens ({reason})."
            ) from None


def _key_of(tokens: Tokens) -> ProofKey | None:
    return ProofKey.from_jwk(tokens.proof_key) if tokens.proof_key else None


def _resource(endpoints: Endpoints) -> dict[str, str]:
    """Return the `resource` parameter, for which the tokens are requested (RFC 8707). It is empty if unknown."""
    return {} if endpoints.resource is None else {"resource": endpoints.resource}
