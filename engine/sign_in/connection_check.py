"""Checks a connection's sign-in against its provider and reports what is wrong.

No token is stored, and no person has to act.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engine.connections.connection import SHARED_HOLDER, TYPED_KEY_METHODS, Connection, KeyDeclaration
from engine.errors import (
    AddressRefused,
    BylineError,
    ConnectionMisconfigured,
    KeyRefused,
    RequestRejected,
    UpstreamFailed,
)
from engine.oauth.client import OAuthClient, TokenRefused
from engine.oauth.discovery import Discovery
from engine.oauth.registration import ClientRegistrations
from engine.outgoing.client import OutgoingClient
from engine.sign_in.methods import SignInMethods

_GONE_STATUSES = frozenset({404, 410})
_REQUEST_HINT: Final = "the scopes, and that the redirect URI is registered"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one part of a check. `unclear` means that only a person's sign-in can tell."""

    checked_part: str
    state: Literal["ok", "unclear", "wrong"]
    explanation: str


class ConnectionCheck:
    """Checks one connection from the outside: its secrets, its addresses, and whether the provider knows its client."""

    def __init__(
        self,
        connection: Connection,
        environment: Mapping[str, str],
        outgoing: OutgoingClient,
        redirect_uri: str,
        registrations: ClientRegistrations | None = None,
    ) -> None:
        self._connection = connection
        self._environment = environment
        self._outgoing = outgoing
        self._discovery = Discovery(outgoing)
        self._sign_ins = SignInMethods(environment, self._discovery, outgoing, registrations)
        self._redirect_uri = redirect_uri

    async def run_checks(self) -> list[CheckResult]:
        """Check every possible part and return the results. Parts that depend on a wrong part are skipped."""
        return [*await self._check_sign_in(), await self._check_upstream()]

    async def _check_sign_in(self) -> list[CheckResult]:
        if self._connection.sign_in in TYPED_KEY_METHODS:
            return await self._check_key_sign_in()
        try:
            oauth_client = self._sign_ins.create_oauth_client(self._connection)
        except ConnectionMisconfigured as error:
            return [CheckResult("secret", "wrong", str(error))]
        check_results = [CheckResult("secret", "ok", self._describe_credentials())]
        try:
            endpoints = await self._discovery.find_endpoints(self._connection)
        except BylineError as error:
            return [*check_results, CheckResult("endpoints", "wrong", str(error))]
        check_results.append(
            CheckResult("endpoints", "ok", self._describe_endpoint_source(endpoints.token_endpoint))
        )
        if self._connection.mode == "shared":
            return [*check_results, await self._check_client_by_sign_in(oauth_client)]
        return [
            *check_results,
            await self._check_consent_page(oauth_client),
            await self._check_client_by_invalid_code(oauth_client),
            CheckResult("redirect URI", "ok", f"register {self._redirect_uri} with the provider"),
        ]

    async def _check_upstream(self) -> CheckResult:
        checked_part, base_url = "upstream", str(self._connection.base_url)
        try:
            await self._outgoing.require_callable_url(base_url)
        except BylineError as error:
            return CheckResult(checked_part, "wrong", f"{error} Check base_url.")
        return CheckResult(checked_part, "ok", f"actions may call {base_url}")

    async def _check_key_sign_in(self) -> list[CheckResult]:
        """Check the administrator's key of a shared connection, or an invalid key where people type their own."""
        check_results, key_declaration = [], self._connection.key or KeyDeclaration()
        is_shared = self._connection.mode == "shared"
        if is_shared:
            try:
                await self._sign_ins.create_method(self._connection).tokens_without_person(SHARED_HOLDER, ())
            except ConnectionMisconfigured as error:
                return [CheckResult("secret", "wrong", str(error))]
            check_results.append(CheckResult("secret", "ok", "there is one"))
        if key_declaration.check is None:
            explanation = (
                "the connection declares none, so that a wrong key is found out when it is first used"
            )
            return [*check_results, CheckResult("check", "unclear", explanation)]
        if is_shared and key_declaration.secret is not None:
            key_secret, username = (
                key_declaration.secret.read_secret(self._environment),
                key_declaration.username or "",
            )
        else:
            key_secret, username = secrets.token_urlsafe(24), "nobody"
        return [
            *check_results,
            await self._check_typed_key(key_secret, username, is_invalid_key=not is_shared),
        ]

    async def _check_typed_key(self, key_secret: str, username: str, *, is_invalid_key: bool) -> CheckResult:
        checked_part = "check"
        try:
            tokens = await self._sign_ins.create_typed_key_method(self._connection).accept_typed_key(
                key_secret, username, ()
            )
        except KeyRefused as error:
            if is_invalid_key:
                return CheckResult(checked_part, "ok", "the upstream refuses a key that nobody issued")
            return CheckResult(checked_part, "wrong", str(error))
        except BylineError as error:
            return CheckResult(checked_part, "wrong", f"{error} Check base_url and key.check.path.")
        if is_invalid_key:
            return CheckResult(
                checked_part, "wrong", "it succeeds with a key that nobody issued: name another path"
            )
        return CheckResult(
            checked_part,
            "ok",
            f"the upstream takes the key, which is {tokens.account or 'nobody in particular'}'s",
        )

    def _describe_credentials(self) -> str:
        if self._connection.client_key is not None or self._connection.assertion is not None:
            return "the private key is there"
        if not self._connection.client_id:
            return "none: Byline makes itself known there"
        return "there is one" if self._connection.client_secret is not None else "none: the client is public"

    def _describe_endpoint_source(self, token_endpoint: str) -> str:
        provider, mcp_server = self._connection.provider, self._connection.mcp
        if mcp_server is not None:
            return f"as {mcp_server.url} says: {token_endpoint}"
        return f"as {provider.issuer} publishes" if provider.is_discovered else f"declared: {token_endpoint}"

    async def _check_consent_page(self, oauth_client: OAuthClient) -> CheckResult:
        checked_part = "consent page"
        try:
            consent_page_url = await oauth_client.build_authorization_url(
                redirect_uri=self._redirect_uri,
                state=secrets.token_urlsafe(32),
                code_verifier=secrets.token_urlsafe(48),
                scopes=self._connection.scopes,
            )
            page_status = (
                await self._outgoing.send_request("GET", consent_page_url, headers={"Accept": "text/html"})
            ).status_code
        except TokenRefused as error:
            return _judge_pushed_request(checked_part, error)
        except AddressRefused as error:
            return CheckResult(checked_part, "unclear", str(error))
        except RequestRejected:
            return CheckResult(checked_part, "ok", "it answers")
        except BylineError as error:
            return CheckResult(checked_part, "wrong", str(error))
        return _judge_page_status(checked_part, page_status)

    async def _check_client_by_invalid_code(self, oauth_client: OAuthClient) -> CheckResult:
        """Check the client with an authorization code that nobody issued.

        A token endpoint that knows the client refuses the code (`invalid_grant`) and not the client.
        """
        checked_part = "client"
        try:
            await oauth_client.exchange_code(
                authorization_code=secrets.token_urlsafe(24),
                redirect_uri=self._redirect_uri,
                code_verifier=secrets.token_urlsafe(48),
                requested_scopes=(),
            )
        except TokenRefused as error:
            if error.error_code == "invalid_grant":
                return CheckResult(
                    checked_part, "ok", "the token endpoint knows it, and refuses a code that nobody issued"
                )
            return _judge_refusal(checked_part, error)
        except (UpstreamFailed, ConnectionMisconfigured) as error:
            return CheckResult(checked_part, "wrong", f"{error} Check token_endpoint.")
        return CheckResult(
            checked_part, "wrong", "the token endpoint gives tokens for a code that nobody issued"
        )

    async def _check_client_by_sign_in(self, oauth_client: OAuthClient) -> CheckResult:
        checked_part = "client"
        try:
            await oauth_client.tokens_without_person(SHARED_HOLDER, self._connection.scopes)
        except TokenRefused as error:
            return _judge_refusal(checked_part, error)
        except (UpstreamFailed, ConnectionMisconfigured) as error:
            return CheckResult(checked_part, "wrong", f"{error} Check token_endpoint.")
        return CheckResult(checked_part, "ok", "the token endpoint gives it tokens")


def _judge_page_status(checked_part: str, page_status: int) -> CheckResult:
    if page_status in _GONE_STATUSES or page_status >= 500:
        return CheckResult(
            checked_part, "wrong", f"it answers {page_status}: check authorization_endpoint and client_id"
        )
    if page_status >= 400:
        explanation = f"it answers {page_status}: check client_id, {_REQUEST_HINT}"
        return CheckResult(checked_part, "unclear", explanation)
    return CheckResult(checked_part, "ok", "it answers")


def _judge_pushed_request(checked_part: str, error: TokenRefused) -> CheckResult:
    if "client" in error.error_code:
        return _judge_refusal(checked_part, error)
    explanation = f"the provider refuses the request for it ({error.error_code}): check {_REQUEST_HINT}"
    return CheckResult(checked_part, "wrong", explanation)


def _judge_refusal(checked_part: str, error: TokenRefused) -> CheckResult:
    """Judge a refusal by its error code: most providers' own codes contain `client` if they refuse the client."""
    if "client" in error.error_code:
        correction_hint = "check client_id, its secret and token_endpoint_auth_method"
        return CheckResult(
            checked_part, "wrong", f"the provider does not accept it ({error.error_code}): {correction_hint}"
        )
    if error.error_code in {"invalid_scope", "unsupported_grant_type"}:
        return CheckResult(
            checked_part, "wrong", f"the provider refuses what is asked for ({error.error_code})"
        )
    return CheckResult(
        checked_part, "unclear", f"the provider answers {error.error_code}, which says nothing of the client"
    )
