"""State of browsers that are signing in. It is sealed in a cookie and not stored on the server."""

import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response

from engine.db.database import utc_now
from engine.errors import VaultSealBroken
from engine.vault.digests import digest_secret
from engine.vault.vault import Vault
from engine.wire import VISIT_SEAL
from gateway.browser.cookies import BrowserCookie

_VISIT_LIFETIME: Final = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class BrowserVisit:
    """One browser that is signing in. `sign_in_data` is what its return from the identity provider needs."""

    csrf_token: str
    sign_in_data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """An identifier that does not reveal the CSRF token: its SHA-256 hash, in hexadecimal."""
        return digest_secret(self.csrf_token)


class BrowserVisits:
    """Reads and sets the cookies of visits."""

    def __init__(self, vault: Vault, *, is_secure: bool) -> None:
        self._vault = vault
        self._visit_cookie = BrowserCookie("byline-visit", is_secure=is_secure)

    async def find_visit(self, request: Request) -> BrowserVisit | None:
        """Return this browser's visit, or None where it has none, it expired or its cookie cannot be unsealed."""
        try:
            sealed_visit = urlsafe_b64decode(self._visit_cookie.read_value(request))
            visit_document = json.loads(await self._vault.open_secret(sealed_visit, VISIT_SEAL))
        except (ValueError, VaultSealBroken):
            return None
        return (
            BrowserVisit(visit_document["csrf_token"], visit_document["data"])
            if visit_document["until"] > utc_now().timestamp()
            else None
        )

    def create_visit(self, sign_in_data: Mapping[str, Any] | None = None) -> BrowserVisit:
        """Create a visit with a new CSRF token."""
        return BrowserVisit(secrets.token_urlsafe(32), sign_in_data or {})

    async def store_visit(self, response: Response, visit: BrowserVisit) -> Response:
        """Set the visit's cookie in a response, valid for 30 minutes from now."""
        visit_document = {
            "csrf_token": visit.csrf_token,
            "data": visit.sign_in_data,
            "until": (utc_now() + _VISIT_LIFETIME).timestamp(),
        }
        sealed_visit = await self._vault.seal_secret(json.dumps(visit_document).encode(), VISIT_SEAL)
        return self._visit_cookie.store_value(
            response,
            urlsafe_b64encode(sealed_visit).decode(),
            max_age_seconds=int(_VISIT_LIFETIME.total_seconds()),
        )

    def delete_visit(self, response: Response) -> Response:
        """Delete the visit's cookie in a response."""
        return self._visit_cookie.delete_value(response)
