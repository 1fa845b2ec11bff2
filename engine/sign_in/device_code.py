"""The device authorization grant (RFC 8628): requests a code to type on another device, and polls for the tokens."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError

from engine.errors import AuthorizationRefused
from engine.oauth.client import OAuthClient
from engine.oauth.tokens import UpstreamTokens

DEVICE_CODE_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:device_code"
_MAX_LIFETIME_SECONDS: Final = 3600
_DEFAULT_INTERVAL_SECONDS: Final = 5


class _DeviceAuthorizationResponse(BaseModel):
    """A device authorization response (RFC 8628 section 3.2)."""

    model_config = ConfigDict(strict=True)

    device_code: str = Field(min_length=1, max_length=4000)
    user_code: str = Field(min_length=1, max_length=100)
    verification_uri: HttpUrl = Field(strict=False)
    verification_uri_complete: HttpUrl | None = Field(default=None, strict=False)
    expires_in: int = Field(gt=0)
    interval: int = Field(default=_DEFAULT_INTERVAL_SECONDS, ge=0, le=300)


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """A device code and its user code.

    It is valid until `expires_at`, in seconds since the epoch. `interval` is in seconds. `repr` shows only what the
    person sees.
    """

    user_code: str
    address: str
    address_with_code: str | None
    device_code: str
    interval: int
    expires_at: float
    scopes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"DeviceCode(user_code={self.user_code!r}, address={self.address!r})"

    def to_json(self) -> str:
        """Return all fields as JSON text, to be sealed."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, json_text: str) -> Self:
        """Read the fields that `to_json` wrote."""
        fields = json.loads(json_text)
        return cls(**{**fields, "scopes": tuple(fields["scopes"])})


async def request_device_code(oauth_client: OAuthClient, scopes: tuple[str, ...]) -> DeviceCode:
    """Request a new code. Raises AuthorizationRefused if the provider gives none or its response is invalid."""
    try:
        device_response = _DeviceAuthorizationResponse.model_validate(
            await oauth_client.request_device_authorization(scopes)
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


async def request_device_tokens(oauth_client: OAuthClient, device_code: DeviceCode) -> UpstreamTokens:
    """Request the tokens of a device code once.

    Raises TokenRefused with `authorization_pending`, `slow_down` or a final error (RFC 8628 section 3.5).
    """
    return await oauth_client.request_tokens(
        DEVICE_CODE_GRANT_TYPE, device_code.scopes, device_code=device_code.device_code
    )
