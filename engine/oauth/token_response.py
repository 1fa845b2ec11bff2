"""Converts providers' token responses to the form of RFC 6749. This module validates no token."""

import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final

import jsonpointer

from engine.connections.connection import ProviderDeclaration
from engine.identity.claims import read_unverified_claims

_SEPARATOR_PATTERNS: Final = {"space": r"\s+", "comma": r"[\s,]+"}


def find_value(document: object, location: str) -> Any:
    """Return the value of a document under a name or at a JSON Pointer (RFC 6901), or None if there is none."""
    if location.startswith("/"):
        return jsonpointer.resolve_pointer(document, location, None)
    return document.get(location) if isinstance(document, Mapping) else None


def find_text(json_body: bytes, location: str) -> str:
    """Return a value of a JSON body as text, or an empty string if there is none or the body is not JSON."""
    try:
        found_value = find_value(json.loads(json_body), location)
    except (ValueError, RecursionError):
        return ""
    return str(found_value) if isinstance(found_value, str | int) else ""


def to_standard_response(provider: ProviderDeclaration, token_response: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a token response to the form of RFC 6749 section 5.1.

    Where the provider's own location is empty, the standard one is read. `expires_at` is in seconds since the epoch.
    """
    relocated_members: dict[str, Any] = {
        member_name: member_value
        for member_name, location in provider.token_response.items()
        if (member_value := find_value(token_response, location)) is not None
    }
    standard_response: dict[str, Any] = {**token_response, **relocated_members}
    if isinstance(relocated_members.get("expires_in"), int | float):
        standard_response["expires_at"] = time.time() + relocated_members["expires_in"]
    if (scope := standard_response.get("scope")) is not None:
        standard_response["scope"] = " ".join(parse_scopes(provider, scope))
    return standard_response


def parse_scopes(provider: ProviderDeclaration, scope_member: object) -> list[str]:
    """Return the scopes of a token response, which may be a list or text with the provider's separator."""
    if isinstance(scope_member, list):
        return [scope_name for scope_name in scope_member if isinstance(scope_name, str)]
    separator_pattern = _SEPARATOR_PATTERNS[provider.granted_scope_separator or provider.scope_separator]
    return (
        [scope_name for scope_name in re.split(separator_pattern, scope_member) if scope_name]
        if isinstance(scope_member, str)
        else []
    )


def find_account(provider: ProviderDeclaration, token_response: Mapping[str, Any]) -> str:
    """Return the account that the token response itself names, or an empty string if it names none."""
    match provider.account_from:
        case "token_response":
            return str(find_value(token_response, provider.account_claim) or "")
        case "id_token":
            # It comes directly from the token endpoint, so it is authentic (OpenID Connect Core 1.0 section 3.1.3.7).
            id_token_claims = read_unverified_claims(str(token_response.get("id_token")))
            return str(
                find_value(id_token_claims, provider.account_claim) or id_token_claims.get("sub") or ""
            )
        case "userinfo":
            return ""
