"""The claims of a JWT (RFC 7519). Unverified claims may select an issuer, but prove nothing."""

import json
from base64 import urlsafe_b64decode
from typing import Any, NewType

VerifiedClaims = NewType("VerifiedClaims", dict[str, Any])
"""Claims that a key of their issuer signed. Only what verified the signature makes them of a dict."""


def read_unverified_claims(jwt_text: str) -> dict[str, Any]:
    """Return the claims of a JWT (RFC 7519 section 3), or an empty dict if the text is not a JWT."""
    try:
        payload_segment = jwt_text.split(".")[1]
        claims = json.loads(urlsafe_b64decode(payload_segment + "=" * (-len(payload_segment) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}
