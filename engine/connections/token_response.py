"""Converts providers' token responses to the form of RFC 6749. This module validates no token."""

import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final

import jsonpointer

from engine.claims import unverified_claims
from engine.connections.connection import Provider

_SEPARATORS: Final = {"space": r"\s+", "comma": r"[\s,]+"}


def told_at(document: object, place: str) -> Any:
    """Return the value of a document under a name or at a JSON Pointer (RFC 6901), or None if there is none."""
    if place.startswith("/"):
        return jsonpointer.resolve_pointer(document, place, None)
    return document.get(place) if isinstance(document, Mapping) else None


def told_in(body: bytes, place: str) -> str:
    """Return a value of a JSON body as text, or an empty string if there is none or the body is not JSON."""
    try:
        found = told_at(json.loads(body), place)
    except (ValueError, RecursionError):
        return ""
    return str(found) if isinstance(found, str | int) else ""


def in_standard_words(provider: Provider, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a token response to the form of RFC 6749 section 5.1.

    Where the provider's own location is empty, the standard one is read. `expires_at` is in seconds since the epoch.
    """
    moved: dict[str, Any] = {
        name: found
        for name, place in provider.token_response.items()
        if (found := told_at(answer, place)) is not None
    }
    standard: dict[str, Any] = {**answer, **moved}
    if isinstance(moved.get("expires_in"), int | float):
        standard["expires_at"] = time.time() + moved["expires_in"]
    if (scope := standard.get("scope")) is not None:
        standard["scope"] = " ".join(granted(provider, scope))
    return standard


def granted(provider: Provider, scope: object) -> list[str]:
    """Return the scopes of a token response, which may be a list or text with the provider's separator."""
    if isinstance(scope, list):
        return [each for each in scope if isinstance(each, str)]
    separator = _SEPARATORS[provider.granted_scope_separator or provider.scope_separator]
    return [each for each in re.split(separator, scope) if each] if isinstance(scope, str) else []


def account_told(provider: Provider, answer: Mapping[str, Any]) -> str:
    """Return the account that the token response itself names, or an empty string if it names none."""
    match provider.account_from:
        case "token_response":
            return str(told_at(answer, provider.account_claim) or "")
        case "id_token":
            # It comes directly from the token endpoint, so it is authentic (OpenID Connect Core 1.0 section 3.1.3.7).
            claims = unverified_claims(str(answer.get("id_token")))
            return str(told_at(claims, provider.account_claim) or claims.get("sub") or "")
        case "userinfo":
            return ""
