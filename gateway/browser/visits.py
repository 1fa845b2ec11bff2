"""State of browsers that are signing in. It is sealed in a cookie and not stored on the server."""

import hashlib
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response

from engine.db.database import now
from engine.errors import VaultSealBroken
from engine.services import Services
from gateway.browser.cookies import Cookie

_LIFE: Final = timedelta(minutes=30)
_BOUND_TO: Final = "browser visit"


@dataclass(frozen=True, slots=True)
class Visit:
    """One browser that is signing in. `sign_in_data` is what its return from the identity provider needs."""

    csrf_token: str
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """An identifier that does not reveal the CSRF token: its SHA-256 hash, in hexadecimal."""
        return hashlib.sha256(self.csrf_token.encode()).hexdigest()


class Visits:
    """Reads and sets the cookies of visits."""

    def __init__(self, services: Services) -> None:
        self._vault = services.vault
        self._cookie = Cookie("byline-visit", is_secure=services.settings.public_url.startswith("https://"))

    async def current(self, request: Request) -> Visit | None:
        """Return this browser's visit, or None where it has none, it expired or its cookie cannot be unsealed."""
        try:
            sealed = urlsafe_b64decode(self._cookie.of(request))
            told = json.loads(await self._vault.open(sealed, _BOUND_TO))
        except (ValueError, VaultSealBroken):
            return None
        return Visit(told["csrf_token"], told["data"]) if told["until"] > now().timestamp() else None

    def begin(self, data: Mapping[str, Any] | None = None) -> Visit:
        """Create a visit with a new CSRF token."""
        return Visit(secrets.token_urlsafe(32), data or {})

    async def keep(self, response: Response, visit: Visit) -> Response:
        """Set the visit's cookie in a response, valid for 30 minutes from now."""
        told = {"csrf_token": visit.csrf_token, "data": visit.data, "until": (now() + _LIFE).timestamp()}
        sealed = await self._vault.seal(json.dumps(told).encode(), _BOUND_TO)
        return self._cookie.keep(
            response, urlsafe_b64encode(sealed).decode(), seconds=int(_LIFE.total_seconds())
        )

    def end(self, response: Response) -> Response:
        """Delete the visit's cookie in a response."""
        return self._cookie.forget(response)
