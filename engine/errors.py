"""Everything that can go wrong, as one tree; it knows nothing of HTTP, MCP or Temporal, whose edges translate it.

    BylineError
    ├── SettingsInvalid
    ├── IdentityRefused
    │   ├── IdentityMissing · IdentityForged · IdentityMisplaced · PrincipalInactive
    ├── AuthorizationRequired
    ├── AuthorizationEnded
    │   ├── AuthorizationDenied · AuthorizationExpired · AuthorizationCancelled
    ├── AuthorizationRefused
    ├── ConnectionUnknown · ConnectionMisconfigured
    ├── UpstreamFailed
    │   ├── PermissionDenied · RecordNotFound · RequestRejected
    │   └── UpstreamUnavailable · RateLimited · OutcomeUnknown
    ├── VaultSealBroken
    ├── ToolUnknown · ArgumentsInvalid · NotAllowed · KeyReused
    └── RunUnknown · TemporalUnreachable

A message holds neither a secret nor a body that an upstream sent.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

UNFIT: Final = (ValueError, LookupError, ArithmeticError)
"""What Python raises over data that does not fit: it would not fit another time either, so it fails for good."""


class BylineError(Exception):
    """A failure with a stable `code` that is told to people as `str(error)`.

    `retryable` says whether the same attempt may succeed later without anyone acting.
    """

    code: ClassVar[str] = "byline_error"
    retryable: ClassVar[bool] = False

    @property
    def details(self) -> Mapping[str, Any]:
        """What a program may want to know beyond the message; never a secret."""
        return {}


class SettingsInvalid(BylineError):
    """A setting is missing or makes no sense; the message names it and says what to write."""

    code = "settings_invalid"


class IdentityRefused(BylineError):
    """An action came without a name that this process could verify."""

    code = "identity_refused"


class IdentityMissing(IdentityRefused):
    """No identity header came with the action."""

    code = "identity_missing"


class IdentityForged(IdentityRefused):
    """The identity header is malformed, or no key in force signed it."""

    code = "identity_forged"


class IdentityMisplaced(IdentityRefused):
    """The identity header was made for another run."""

    code = "identity_misplaced"


class PrincipalInactive(IdentityRefused):
    """The person was deactivated, or was never known here."""

    code = "principal_inactive"


class AuthorizationRequired(BylineError):
    """A person has to consent before the action can go on; the run parks until they did."""

    code = "authorization_required"

    def __init__(
        self, *, waiter: str, request: str, connection: str, principal: str, expires_at: float
    ) -> None:
        super().__init__(f"Waiting for consent on connection '{connection}'.")
        self.waiter = waiter
        self.request = request
        self.connection = connection
        self.principal = principal
        self.expires_at = expires_at

    @property
    def details(self) -> Mapping[str, Any]:
        """What the workflow's interceptor needs to park; `expires_at` in seconds since the epoch."""
        return {
            "waiter": self.waiter,
            "request": self.request,
            "connection": self.connection,
            "principal": self.principal,
            "expires_at": self.expires_at,
        }


class AuthorizationEnded(BylineError):
    """The wait for a person is over without a grant."""

    code = "authorization_ended"


class AuthorizationDenied(AuthorizationEnded):
    """The person said no."""

    code = "authorization_denied"


class AuthorizationExpired(AuthorizationEnded):
    """The person did not answer within the connection's limit."""

    code = "authorization_expired"


class AuthorizationCancelled(AuthorizationEnded):
    """The run that waited was cancelled."""

    code = "authorization_cancelled"


class AuthorizationRefused(BylineError):
    """A sign-in at an upstream was refused by Byline: wrong person, stale or altered callback, failed exchange."""

    code = "authorization_refused"


class ConnectionUnknown(BylineError):
    """No connection has this name."""

    code = "connection_unknown"


class ConnectionMisconfigured(BylineError):
    """The connection cannot work as it is declared; an administrator has to mend it."""

    code = "connection_misconfigured"


class UpstreamFailed(BylineError):
    """An upstream system did not do what was asked."""

    code = "upstream_failed"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def details(self) -> Mapping[str, Any]:
        """The upstream's HTTP status, where it answered."""
        return {"status": self.status}


class PermissionDenied(UpstreamFailed):
    """The upstream's own permissions forbid this to this account (403)."""

    code = "permission_denied"


class RecordNotFound(UpstreamFailed):
    """The upstream has no such record, or hides it from this account (404, 410)."""

    code = "record_not_found"


class RequestRejected(UpstreamFailed):
    """The upstream calls the request wrong (any other 4xx, or a redirect)."""

    code = "request_rejected"


class UpstreamUnavailable(UpstreamFailed):
    """The upstream could not be reached, or failed (5xx)."""

    code = "upstream_unavailable"
    retryable = True


class RateLimited(UpstreamFailed):
    """The upstream asks for patience (429); `retry_after` in seconds where it says how much."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(message, status=429)
        self.retry_after = retry_after


class OutcomeUnknown(UpstreamFailed):
    """The request left and no answer came, so it may or may not have taken effect; not retried unless idempotent."""

    code = "outcome_unknown"


class VaultSealBroken(BylineError):
    """A stored secret does not open: its key is not in the keyring, or the row was altered or moved."""

    code = "vault_seal_broken"


class ToolUnknown(BylineError):
    """No composite tool has this name."""

    code = "tool_unknown"


class ArgumentsInvalid(BylineError):
    """The arguments do not fit the tool's input schema."""

    code = "arguments_invalid"


class NotAllowed(BylineError):
    """The caller's role, or the scope of their token, does not reach this far; the message says what would."""

    code = "not_allowed"


class KeyReused(BylineError):
    """The idempotency key was used before, for a call with another tool or other arguments."""

    code = "key_reused"


class RunUnknown(BylineError):
    """No run of this person has this id."""

    code = "run_unknown"


class TemporalUnreachable(BylineError):
    """The Temporal server does not answer."""

    code = "temporal_unreachable"
    retryable = True
