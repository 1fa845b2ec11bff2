"""The authorization code grant (RFC 6749 section 4.1): a person consents at the provider's page.

A callback counts only if it comes from the issuer that the browser was sent to (RFC 9207).
"""

import secrets
from typing import ClassVar, Final

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from engine.errors import (
    AddressRefused,
    AuthorizationExpired,
    AuthorizationRefused,
    BylineError,
    ConnectionMisconfigured,
    RequestRejected,
    UpstreamFailed,
)
from engine.oauth.client import TokenRefused, build_resource_parameter
from engine.oauth.discovery import ProviderEndpoints
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.method import (
    CheckResult,
    SignInAnswer,
    SignInDeclined,
    SignInRecords,
    SignInResult,
    SignInStart,
)
from engine.sign_in.oauth_sign_in import OAuthSignIn, judge_refusal
from engine.sign_in.steps import RedirectStep, StepKind

_GONE_STATUSES: Final = frozenset({404, 410})
_REQUEST_HINT: Final = "the scopes, and that the redirect URI is registered"


class AuthorizationCodeSignIn(OAuthSignIn):
    """Sends a browser to the provider's consent page, and exchanges the code that it brings back."""

    name: ClassVar[str] = "authorization_code"
    modes: ClassVar[frozenset[str]] = frozenset({"user"})
    step_kind: ClassVar[StepKind | None] = "redirect"
    alternatives: ClassVar[tuple[str, ...]] = ("device_code",)
    is_page_required: ClassVar[bool] = True

    async def is_offered(self) -> bool:
        """Return whether the provider has a page for a browser."""
        return bool((await self.find_endpoints()).authorization_endpoint)

    async def begin(self, start: SignInStart, records: SignInRecords) -> RedirectStep:
        """Return the provider's authorization URL for this browser session.

        A person who adds an account to those already connected is asked to sign in anew (OpenID Connect Core 1.0
        section 3.1.2.1): otherwise the provider might send the browser back with one of those.
        """
        code_verifier, issuer = secrets.token_urlsafe(48), (await self.find_endpoints()).issuer or ""
        oauth_state = await records.authorization_attempts.store_attempt(
            start.request_id,
            start.principal_id,
            start.browser_session,
            start.tool_name,
            f"{code_verifier} {issuer}",
        )
        authorization_url = await self.build_authorization_url(
            redirect_uri=self._resources.redirect_uri,
            state=oauth_state,
            code_verifier=code_verifier,
            scopes=start.scopes,
            login_hint=start.account,
            prompt="login" if start.is_additional_account else "",
        )
        return RedirectStep(authorization_url)

    async def finish(self, answer: SignInAnswer, records: SignInRecords) -> SignInResult | SignInDeclined:
        """Exchange the code of a callback for tokens.

        Raises AuthorizationRefused for a callback from another issuer or without a code that the provider accepts, and
        AuthorizationExpired if nobody waits any more.
        """
        del records
        code_verifier, _, initial_issuer = answer.attempt_secret.partition(" ")
        self._check_issuer(answer.fields.get("iss"), await self.find_endpoints(), initial_issuer)
        if answer.fields.get("error") == "access_denied":
            return SignInDeclined()
        if "error" in answer.fields or not answer.fields.get("code"):
            raise AuthorizationRefused(
                f"{self._connection.title} did not sign you in. Open the link again, or tell your administrator."
            )
        if not answer.is_awaited:
            raise AuthorizationExpired(
                "Nobody waits for this sign-in any more. Call the tool again to get a new link."
            )
        try:
            tokens = await self.exchange_code(
                authorization_code=answer.fields["code"],
                redirect_uri=self._resources.redirect_uri,
                code_verifier=code_verifier,
                requested_scopes=answer.scopes,
            )
        except TokenRefused as error:
            raise AuthorizationRefused(
                f"{self._connection.title} did not accept the sign-in ({error.error_code}). Open the link again."
            ) from None
        return SignInResult(tokens, await self.find_account(tokens), answer.tool_name)

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
        scope_text = self.join_scopes(requested_scopes)
        hint_parameters = {"login_hint": login_hint, "prompt": prompt} if "openid" in requested_scopes else {}
        async with self.open_client(
            endpoints, redirect_uri=redirect_uri, code_challenge_method="S256"
        ) as authlib_client:
            authorization_url, _ = authlib_client.create_authorization_url(
                endpoints.authorization_endpoint,
                state=state,
                code_verifier=code_verifier if self._provider.pkce else None,
                **{self._provider.scope_parameter: scope_text},
                **build_resource_parameter(endpoints),
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

    async def exchange_code(
        self,
        *,
        authorization_code: str,
        redirect_uri: str,
        code_verifier: str,
        requested_scopes: tuple[str, ...],
    ) -> UpstreamTokens:
        """Exchange an authorization code for tokens (RFC 6749 section 4.1.3). Raises TokenRefused."""
        pkce_parameters = {"code_verifier": code_verifier} if self._provider.pkce else {}
        return await self.request_tokens(
            "authorization_code",
            requested_scopes,
            code=authorization_code,
            redirect_uri=redirect_uri,
            **pkce_parameters,
        )

    async def run_checks(self) -> list[CheckResult]:
        """Check the secret, the endpoints, the consent page, and whether the provider knows the client."""
        check_results = await self.check_endpoints()
        if check_results[-1].state == "wrong":
            return check_results
        return [
            *check_results,
            await self._check_consent_page(),
            await self._check_client_by_invalid_code(),
            CheckResult("redirect URI", "ok", f"register {self._resources.redirect_uri} with the provider"),
        ]

    async def _check_consent_page(self) -> CheckResult:
        checked_part = "consent page"
        try:
            consent_page_url = await self.build_authorization_url(
                redirect_uri=self._resources.redirect_uri,
                state=secrets.token_urlsafe(32),
                code_verifier=secrets.token_urlsafe(48),
                scopes=self._connection.scopes,
            )
            page_status = (
                await self._resources.outgoing.send_request(
                    "GET", consent_page_url, headers={"Accept": "text/html"}
                )
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

    async def _check_client_by_invalid_code(self) -> CheckResult:
        """Check the client with an authorization code that nobody issued.

        A token endpoint that knows the client refuses the code (`invalid_grant`) and not the client.
        """
        checked_part = "client"
        try:
            await self.exchange_code(
                authorization_code=secrets.token_urlsafe(24),
                redirect_uri=self._resources.redirect_uri,
                code_verifier=secrets.token_urlsafe(48),
                requested_scopes=(),
            )
        except TokenRefused as error:
            if error.error_code == "invalid_grant":
                return CheckResult(
                    checked_part, "ok", "the token endpoint knows it, and refuses a code that nobody issued"
                )
            return judge_refusal(checked_part, error)
        except (UpstreamFailed, ConnectionMisconfigured) as error:
            return CheckResult(checked_part, "wrong", f"{error} Check token_endpoint.")
        return CheckResult(
            checked_part, "wrong", "the token endpoint gives tokens for a code that nobody issued"
        )

    async def _push_authorization_request(
        self, authlib_client: AsyncOAuth2Client, endpoints: ProviderEndpoints, authorization_url: httpx2.URL
    ) -> str:
        endpoint_url = endpoints.pushed_authorization_request_endpoint or ""
        pushed_response = await self.post_form(authlib_client, endpoint_url, dict(authorization_url.params))
        if isinstance(pushed_response.get("request_uri"), str):
            page_parameters = {
                "client_id": authlib_client.client_id,
                "request_uri": pushed_response["request_uri"],
            }
            return str(httpx2.URL(endpoints.authorization_endpoint).copy_merge_params(page_parameters))
        raise OAuthError(None)

    def _check_issuer(
        self, callback_issuer: str | None, endpoints: ProviderEndpoints, initial_issuer: str
    ) -> None:
        """Raise AuthorizationRefused unless the callback comes from the issuer that the browser was sent to."""
        connection, expected_issuer = self._connection, endpoints.issuer
        if initial_issuer not in {"", expected_issuer}:
            # Metadata that names another issuer by now could obtain the first issuer's code (RFC 9700 section 4.4).
            raise AuthorizationRefused(
                f"{connection.title} names another sign-in service than it did before. Open the link again."
            )
        if expected_issuer is None:
            if callback_issuer is not None:
                # The callback may come from another provider (RFC 9207 section 2.4).
                raise AuthorizationRefused(
                    f"The answer names its issuer, and connection '{connection.name}' declares none: "
                    "set `issuer` there."
                )
            return
        is_missing_allowed = callback_issuer is None and not endpoints.is_iss_required
        if callback_issuer != expected_issuer and not is_missing_allowed:
            raise AuthorizationRefused(
                f"The answer did not come from the sign-in service of {connection.title}. Open the link again."
            )


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
        return judge_refusal(checked_part, error)
    explanation = f"the provider refuses the request for it ({error.error_code}): check {_REQUEST_HINT}"
    return CheckResult(checked_part, "wrong", explanation)
