"""The tokens of a grant: reads them from a token response, and serialises them for sealing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from engine.connections.dpop import ProofKey

_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that a token endpoint issued.

    `expires_at` is in seconds since the epoch. `proof_key` is a private JWK (RFC 9449). `account` is the account that
    the token response itself names, if it does.
    """

    access_token: str
    refresh_token: str | None
    expires_at: float | None
    scopes: tuple[str, ...]
    proof_key: str | None = None
    account: str = ""

    @classmethod
    def from_response(
        cls,
        token: Mapping[str, Any],
        asked: tuple[str, ...],
        previous: Self | None = None,
        proof_key: ProofKey | None = None,
    ) -> Self:
        """Read a token response (RFC 6749 section 5.1).

        A response without a scope grants the requested scopes, and a refresh token that is not replaced stays. Raises
        ValueError if it is not a token response, or if its tokens should be bound to a key and are not.
        """
        access, expires_at, scope = token.get("access_token"), token.get("expires_at"), token.get("scope")
        refresh = token.get("refresh_token") or (previous.refresh_token if previous else None)
        if not (access and isinstance(access, str) and isinstance(refresh, str | None)):
            raise ValueError("there is no token in it")
        if expires_at is not None and not 0 <= expires_at < _END_OF_TIME:
            raise ValueError("it expires at no time that there is")
        if proof_key is not None and str(token.get("token_type")).lower() != "dpop":
            raise ValueError("the token is not bound to the key")
        scopes = tuple(scope.split()) if isinstance(scope, str) and scope else asked
        return cls(access, refresh, expires_at, scopes, proof_key.jwk() if proof_key else None)

    def text(self) -> str:
        """Return all fields as JSON text, to be sealed."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str | bytes) -> Self:
        """Read the fields that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "scopes": tuple(fields["scopes"])})
