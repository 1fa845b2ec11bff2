"""What a JWT says of itself, before anybody has verified it: it tells whom to ask, and proves nothing."""

import json
from base64 import urlsafe_b64decode
from typing import Any


def unverified_claims(token: str) -> dict[str, Any]:
    """The claims in a JWT (RFC 7519 section 3); none in what is no JWT."""
    try:
        body = token.split(".")[1]
        claims = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}
