"""The tokens of a grant: reads them from a token response, and serialises them for sealing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self

from engine.oauth.dpop import ProofKey

_MAX_EXPIRES_AT_SECONDS: Final = datetime.max.replace(tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class UpstreamTokens:
    """The tokens that a token endpoint issued.

    `expires_at` is in seconds since the epoch. `proof_key` is a private JWK (RFC 9449). `account` is the account that
    the token response itself names, if it does.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float | None
    scopes: tuple[str, ...]
    proof_key: str | None = field(default=None, repr=False)
    account: str = ""

    @classmethod
    def from_response(
        cls,
        token_response: Mapping[str, Any],
        requested_scopes: tuple[str, ...],
        previous_tokens: Self | None = None,
        proof_key: ProofKey | None = None,
    ) -> Self:
        """Read a token response (RFC 6749 section 5.1).

        A response without a scope grants the requested scopes, and a refresh token that is not replaced stays. Raises
        ValueError if it is not a token response, or if its tokens should be bound to a key and are not.
        """
        access_token, expires_at, scope = (
            token_response.get("access_token"),
            token_response.get("expires_at"),
            token_response.get("scope"),
        )
        refresh_token = token_response.get("refresh_token") or (
            previous_tokens.refresh_token if previous_tokens else None
        )
        if not (access_token and isinstance(access_token, str) and isinstance(refresh_token, str | None)):
            raise ValueError("there is no token in it")
        if expires_at is not None and not 0 <= expires_at < _MAX_EXPIRES_AT_SECONDS:
            raise ValueError("it expires at no time that there is")
        if proof_key is not None and str(token_response.get("token_type")).lower() != "dpop":
            raise ValueError("the token is not bound to the key")
        scopes = tuple(scope.split()) if isinstance(scope, str) and scope else requested_scopes
        return cls(
            access_token, refresh_token, expires_at, scopes, proof_key.to_private_jwk() if proof_key else None
        )

    def to_json(self) -> str:
        """Return all fields as JSON text, to be sealed."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, json_text: str | bytes) -> Self:
        """Read the fields that `to_json` wrote."""
        fields = json.loads(json_text)
        return cls(**{**fields, "scopes": tuple(fields["scopes"])})
