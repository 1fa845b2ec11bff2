"""The device authorization grant (RFC 8628): the person types a code on another device, and the provider is polled.

The provider is polled only while somebody looks at the sign-in. No background task polls it.
"""

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError

from engine.errors import AuthorizationExpired, AuthorizationRefused, UpstreamUnavailable
from engine.oauth.client import TokenRefused
from engine.sign_in.method import SignInAnswer, SignInDeclined, SignInRecords, SignInResult, SignInStart
from engine.sign_in.oauth_sign_in import OAuthSignIn
from engine.sign_in.pending_device_codes import DeviceCode, PendingDeviceCode
from engine.sign_in.steps import CodeStep, StepKind

_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:device_code"
_MAX_LIFETIME_SECONDS: Final = 3600
_DEFAULT_INTERVAL_SECONDS: Final = 5
_EXPIRED_TEXT: Final = "The code ran out before anybody confirmed it. Get a new one."


class _DeviceAuthorizationResponse(BaseModel):
    """A device authorization response (RFC 8628 section 3.2)."""

    model_config = ConfigDict(strict=True)

    device_code: str = Field(min_length=1, max_length=4000)
    user_code: str = Field(min_length=1, max_length=100)
    verification_uri: HttpUrl = Field(strict=False)
    verification_uri_complete: HttpUrl | None = Field(default=None, strict=False)
    expires_in: int = Field(gt=0)
    interval: int = Field(default=_DEFAULT_INTERVAL_SECONDS, ge=0, le=300)


class DeviceCodeSignIn(OAuthSignIn):
    """Signs a person in by a code. No connection declares it: it is an alternative to the provider's page."""

    name: ClassVar[str] = "device_code"
    modes: ClassVar[frozenset[str]] = frozenset()
    step_kind: ClassVar[StepKind | None] = "code"

    async def is_offered(self) -> bool:
        """Return whether the provider has a device authorization endpoint."""
        return (await self.find_endpoints()).device_authorization_endpoint is not None

    async def begin(self, start: SignInStart, records: SignInRecords) -> CodeStep:
        """Get a new device code for a request, and replace an earlier one.

        Raises AuthorizationRefused if the provider issues no code.
        """
        try:
            device_code = await self._request_code(start.scopes)
        except TokenRefused as error:
            raise AuthorizationRefused(
                f"{self._connection.title} gives no code that could be typed elsewhere ({error.error_code})."
            ) from None
        await records.pending_device_codes.store_code(start.request_id, device_code, start.tool_name)
        return _build_step(device_code, device_code.interval)

    async def finish(
        self, answer: SignInAnswer, records: SignInRecords
    ) -> SignInResult | SignInDeclined | CodeStep | None:
        """Poll the provider about the code, and return the code again if nobody has confirmed it yet.

        However many people look in however many processes, the provider is polled no more often than its interval
        allows. Raises AuthorizationExpired if the code expired, and AuthorizationRefused if the provider withdrew it.
        """
        pending_codes = records.pending_device_codes
        pending_code = await pending_codes.find_code(answer.request_id)
        if pending_code is None:
            return None
        if pending_code.is_expired:
            await pending_codes.delete_code(answer.request_id)
            raise AuthorizationExpired(_EXPIRED_TEXT)
        device_code = pending_code.device_code
        if not await pending_codes.try_claim_poll(pending_code):
            return _build_step(device_code, pending_code.interval_seconds)
        try:
            tokens = await self.request_tokens(
                _GRANT_TYPE, device_code.scopes, device_code=device_code.device_code
            )
        except TokenRefused as error:
            return await self._handle_token_error(error, pending_code, records)
        except UpstreamUnavailable:
            return _build_step(device_code, await pending_codes.slow_down_polling(answer.request_id))
        account = await self.find_account(tokens)
        await pending_codes.delete_code(answer.request_id)
        return SignInResult(tokens, account, pending_code.tool_name)

    async def _request_code(self, scopes: tuple[str, ...]) -> DeviceCode:
        try:
            device_response = _DeviceAuthorizationResponse.model_validate(
                await self._request_device_authorization(scopes)
            )
        except ValidationError:
            raise AuthorizationRefused(
                "The sign-in service gives no code that could be typed elsewhere: sign in here instead."
            ) from None
        complete_uri = device_response.verification_uri_complete
        return DeviceCode(
            user_code=device_response.user_code,
            address=str(device_response.verification_uri),
            address_with_code=None if complete_uri is None else str(complete_uri),
            device_code=device_response.device_code,
            interval=device_response.interval,
            expires_at=time.time() + min(device_response.expires_in, _MAX_LIFETIME_SECONDS),
            scopes=scopes,
        )

    async def _request_device_authorization(self, scopes: tuple[str, ...]) -> Mapping[str, Any]:
        """Request a device code and return the provider's response unchanged (RFC 8628 section 3.2).

        Raises AuthorizationRefused if the provider has no device authorization endpoint.
        """
        endpoints = await self.find_endpoints()
        if endpoints.device_authorization_endpoint is None:
            raise AuthorizationRefused(
                f"{self._connection.title} is not signed in to on another device: open the link and sign in there."
            )
        async with self.open_client(endpoints) as authlib_client:
            requested_scopes = tuple(dict.fromkeys((*scopes, *self._provider.added_scopes)))
            return await self.post_form(
                authlib_client,
                endpoints.device_authorization_endpoint,
                self.build_scope_parameter(requested_scopes),
            )

    async def _handle_token_error(
        self, error: TokenRefused, pending_code: PendingDeviceCode, records: SignInRecords
    ) -> SignInDeclined | CodeStep:
        """Handle a token error response to a poll (RFC 8628 section 3.5): wait on, or end the sign-in."""
        request_id, device_code = pending_code.request_id, pending_code.device_code
        match error.error_code:
            case "authorization_pending":
                return _build_step(device_code, pending_code.interval_seconds)
            case "slow_down":
                slower_interval_seconds = await records.pending_device_codes.slow_down_polling(request_id)
                return _build_step(device_code, slower_interval_seconds)
        await records.pending_device_codes.delete_code(request_id)
        match error.error_code:
            case "access_denied":
                return SignInDeclined()
            case "expired_token":
                raise AuthorizationExpired(_EXPIRED_TEXT) from None
        raise AuthorizationRefused(
            f"{self._connection.title} does not take the code any more ({error.error_code}). Get a new one."
        ) from None


def _build_step(device_code: DeviceCode, interval_seconds: int) -> CodeStep:
    return CodeStep(
        device_code.user_code, device_code.address, device_code.address_with_code, interval_seconds + 1
    )
