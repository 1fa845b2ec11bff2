"""Browsers in which nobody is signed in yet: what is known of one is sealed in its cookie, and kept nowhere here."""

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
    """One browser on its way to sign in; `data` is what the way back has to know."""

    csrf_token: str
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """What names it without giving its cookie away."""
        return hashlib.sha256(self.csrf_token.encode()).hexdigest()


class Visits:
    """Reads and hands out the cookie of a visit."""

    def __init__(self, services: Services) -> None:
        self._vault = services.vault
        self._cookie = Cookie("byline-visit", is_secure=services.settings.public_url.startswith("https://"))

    async def current(self, request: Request) -> Visit | None:
        """The visit of this browser, unless it is over."""
        try:
            sealed = urlsafe_b64decode(self._cookie.of(request))
            told = json.loads(await self._vault.open(sealed, _BOUND_TO))
        except (ValueError, VaultSealBroken):
            return None
        return Visit(told["csrf_token"], told["data"]) if told["until"] > now().timestamp() else None

    def begin(self, data: Mapping[str, Any] | None = None) -> Visit:
        """A visit that begins now."""
        return Visit(secrets.token_urlsafe(32), data or {})

    async def keep(self, response: Response, visit: Visit) -> Response:
        """Hand the visit to the browser, for half an hour from now."""
        told = {"csrf_token": visit.csrf_token, "data": visit.data, "until": (now() + _LIFE).timestamp()}
        sealed = await self._vault.seal(json.dumps(told).encode(), _BOUND_TO)
        return self._cookie.keep(
            response, urlsafe_b64encode(sealed).decode(), seconds=int(_LIFE.total_seconds())
        )

    def end(self, response: Response) -> Response:
        """Take the visit from the browser."""
        return self._cookie.forget(response)
