"""What all ways to sign in have in common that get their tokens from an OAuth token endpoint."""

from typing import ClassVar

from pydantic import HttpUrl

from engine.connections.connection import SHARED_HOLDER, Connection, TokenPlace
from engine.errors import BylineError, ConnectionMisconfigured, UpstreamFailed
from engine.oauth.client import OAuthClient, TokenRefused
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.method import CheckResult, SignInResources
from engine.sign_in.steps import StepKind


class OAuthSignIn(OAuthClient):
    """A client of a connection's token endpoint that no person takes part in, unless a way says otherwise."""

    step_kind: ClassVar[StepKind | None] = None
    alternatives: ClassVar[tuple[str, ...]] = ()
    is_asserted_by_idp: ClassVar[bool] = False
    is_page_required: ClassVar[bool] = False
    """Whether a declaration must name a page at which people sign in, or an issuer whose metadata names it."""

    def __init__(self, connection: Connection, resources: SignInResources) -> None:
        super().__init__(connection, resources.secret_reader, resources.discovery, resources.registrations)
        self._resources = resources

    @classmethod
    def validate_declaration(cls, connection: Connection) -> None:
        """Raise ValueError if the declaration lacks a client, endpoints or a page that this way needs."""
        provider = connection.provider
        is_client_id_optional = connection.mcp is not None and connection.mode == "user"
        if not connection.client_id and not is_client_id_optional:
            raise ValueError("client_id is missing: write the id that the provider knows Byline by")
        if provider.is_discovered and provider.issuer is None and connection.mcp is None:
            raise ValueError(
                "write authorization_endpoint and token_endpoint, or the issuer whose metadata tells them"
            )
        if provider.issuer is not None and provider.is_discovered:
            HttpUrl(provider.issuer)
        sign_in_pages = (provider.authorization_endpoint, provider.device_authorization_endpoint)
        if cls.is_page_required and sign_in_pages == (None, None) and not provider.is_discovered:
            raise ValueError(
                "people sign in at an authorization_endpoint: write it, or declare the connection as shared"
            )
        if (provider.token_endpoint_auth_method == "private_key_jwt") != (connection.client_key is not None):
            raise ValueError("client_key and the token_endpoint_auth_method private_key_jwt go together")

    @classmethod
    def find_token_place(cls, connection: Connection) -> TokenPlace:
        """Return the header that the provider declares, by default the one for bearer tokens (RFC 6750)."""
        return connection.provider.token_place

    async def request_tokens_without_person(
        self, principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return None: a person has to act."""
        del principal_id, scopes
        return None

    async def renew(self, principal_id: str, tokens: UpstreamTokens) -> UpstreamTokens | None:
        """Return new tokens in place of these, or None if a person has to act."""
        if tokens.refresh_token is not None:
            return await self.refresh_tokens(tokens)
        is_shared = self._connection.mode == "shared"
        return await self.request_tokens_without_person(
            principal_id, self._connection.scopes if is_shared else tokens.scopes
        )

    async def run_checks(self) -> list[CheckResult]:
        """Check the secret, the endpoints, and that the service can sign in, up to the first part that is wrong."""
        check_results = await self.check_endpoints()
        if check_results[-1].state == "wrong":
            return check_results
        return [*check_results, await self._check_client_by_sign_in()]

    async def check_endpoints(self) -> list[CheckResult]:
        """Check the secret, and the endpoints that the provider declares or publishes."""
        check_results = [CheckResult("secret", "ok", _describe_credentials(self._connection))]
        try:
            endpoints = await self.find_endpoints()
        except BylineError as error:
            return [*check_results, CheckResult("endpoints", "wrong", str(error))]
        endpoint_source = _describe_endpoint_source(self._connection, endpoints.token_endpoint)
        return [*check_results, CheckResult("endpoints", "ok", endpoint_source)]

    async def _check_client_by_sign_in(self) -> CheckResult:
        checked_part = "client"
        try:
            await self.request_tokens_without_person(SHARED_HOLDER, self._connection.scopes)
        except TokenRefused as error:
            return judge_refusal(checked_part, error)
        except (UpstreamFailed, ConnectionMisconfigured) as error:
            return CheckResult(checked_part, "wrong", f"{error} Check token_endpoint.")
        return CheckResult(checked_part, "ok", "the token endpoint gives it tokens")


def judge_refusal(checked_part: str, error: TokenRefused) -> CheckResult:
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


def _describe_credentials(connection: Connection) -> str:
    if connection.client_key is not None or connection.assertion is not None:
        return "the private key is there"
    if not connection.client_id:
        return "none: Byline makes itself known there"
    return "there is one" if connection.client_secret is not None else "none: the client is public"


def _describe_endpoint_source(connection: Connection, token_endpoint: str) -> str:
    provider, mcp_server = connection.provider, connection.mcp
    if mcp_server is not None:
        return f"as {mcp_server.url} says: {token_endpoint}"
    return f"as {provider.issuer} publishes" if provider.is_discovered else f"declared: {token_endpoint}"
