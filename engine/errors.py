"""All errors of Byline in one tree. They know nothing of HTTP, MCP or Temporal, whose edges translate them.

A message contains neither a secret nor a response body of an upstream.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

DATA_ERRORS: Final = (ValueError, LookupError, ArithmeticError, RecursionError)
"""The exceptions that Python raises for data of the wrong form. A retry cannot help, so they fail the run for good."""


class BylineError(Exception):
    """An error with a stable `code`, whose public message is `str(error)`.

    `retryable` says whether the same attempt may succeed later although nobody acted.
    """

    code: ClassVar[str] = "byline_error"
    is_retryable: ClassVar[bool] = False

    @property
    def details(self) -> Mapping[str, Any]:
        """Facts for programs in addition to the message; never a secret."""
        return {}


class SettingsInvalid(BylineError):
    """A setting is missing or not valid; the message names it and says what to write."""

    code = "settings_invalid"


class IdentityRefused(BylineError):
    """An action came without an identity that this process could verify."""

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

    def __init__(self, principal_name: str) -> None:
        super().__init__(f"{principal_name} is not active here any more, so nothing is done in their name.")


class FiringRefused(IdentityRefused):
    """A firing does not match its stored schedule, which is unknown, paused or altered, or it started twice."""

    code = "firing_refused"


class PersonRequired(BylineError):
    """A person has to act before the action can continue; the run parks until then."""

    code = "person_required"

    def __init__(
        self,
        message: str,
        *,
        waiter_id: str,
        awaited_id: str,
        asked_principal_ids: Sequence[str],
        expires_at: float,
    ) -> None:
        super().__init__(message)
        self.waiter_id = waiter_id
        self.awaited_id = awaited_id
        """The id of the authorization request or of the question that the run waits for."""
        self.asked_principal_ids = asked_principal_ids
        """The ids of the principals who can act."""
        self.expires_at = expires_at
        self.notify_channels: Sequence[str] = ()
        """The ids of the notification channels that receive a note about this wait; they identify no person."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What the workflow's interceptor needs to park the run; `expires_at` is in seconds since the epoch."""
        notify_details = {"notify": list(self.notify_channels)} if self.notify_channels else {}
        return {"waiter": self.waiter_id, "expires_at": self.expires_at, **notify_details}


class AuthorizationRequired(PersonRequired):
    """A person has to consent before the action can continue."""

    code = "authorization_required"

    def __init__(
        self, *, waiter_id: str, request_id: str, connection_name: str, principal_id: str, expires_at: float
    ) -> None:
        message = f"Waiting for consent on connection '{connection_name}'."
        super().__init__(
            message,
            waiter_id=waiter_id,
            awaited_id=request_id,
            asked_principal_ids=[principal_id],
            expires_at=expires_at,
        )
        self.request_id = request_id
        self.connection_name = connection_name
        self.principal_id = principal_id

    @property
    def details(self) -> Mapping[str, Any]:
        """The details of PersonRequired, with the authorization request, its connection and its principal."""
        request_details = {
            "request": self.request_id,
            "connection": self.connection_name,
            "principal": self.principal_id,
        }
        return {**super().details, **request_details}


class AnswerRequired(PersonRequired):
    """A person has to answer the question that a run asks."""

    code = "answer_required"

    def __init__(
        self,
        *,
        waiter_id: str,
        question_id: str,
        role_name: str | None,
        asked_principal_ids: Sequence[str],
        expires_at: float,
    ) -> None:
        awaited_answer = (
            "an answer" if role_name is None else f"the approval of somebody with the role '{role_name}'"
        )
        message = f"Waiting for {awaited_answer}."
        super().__init__(
            message,
            waiter_id=waiter_id,
            awaited_id=question_id,
            asked_principal_ids=asked_principal_ids,
            expires_at=expires_at,
        )
        self.role_name = role_name

    @property
    def details(self) -> Mapping[str, Any]:
        """The details of PersonRequired, with the question and the role whose holders may answer it."""
        return {**super().details, "question": self.awaited_id, "role": self.role_name}


class AuthorizationEnded(BylineError):
    """The wait for a person ended without a grant."""

    code = "authorization_ended"


class AuthorizationDenied(AuthorizationEnded):
    """The person declined to consent."""

    code = "authorization_denied"


class AuthorizationExpired(AuthorizationEnded):
    """The person did not answer within the connection's limit."""

    code = "authorization_expired"


class AuthorizationCancelled(AuthorizationEnded):
    """The run that waited was cancelled."""

    code = "authorization_cancelled"


class AuthorizationRefused(BylineError):
    """Byline refused a sign-in at an upstream: wrong person, stale or altered callback, or failed code exchange."""

    code = "authorization_refused"


class KeyRefused(AuthorizationRefused):
    """A key that a person typed has the wrong form, or the upstream does not accept it."""

    code = "key_refused"


class AccountMismatched(AuthorizationRefused):
    """Somebody signed in to another account than the requested one; that account is connected too."""

    code = "account_mismatched"

    def __init__(self, message: str, *, request_id: str) -> None:
        super().__init__(message)
        self.request_id = request_id
        """The id of the authorization request, which stays open."""


class QuestionEnded(BylineError):
    """The wait for a person ended without an answer."""

    code = "question_ended"


class QuestionDeclined(QuestionEnded):
    """The person declined to answer."""

    code = "question_declined"


class QuestionExpired(QuestionEnded):
    """The person did not answer in time."""

    code = "question_expired"


class QuestionCancelled(QuestionEnded):
    """The step that asked was cancelled."""

    code = "question_cancelled"


class ApprovalDenied(QuestionEnded):
    """Somebody who may approve declined."""

    code = "approval_denied"


class ApprovalExpired(QuestionEnded):
    """Nobody who may approve answered in time."""

    code = "approval_expired"


class QuestionUnknown(BylineError):
    """No question with this id is asked of this person."""

    code = "question_unknown"


class QuestionClosed(BylineError):
    """The question can no longer be answered; the message says why."""

    code = "question_closed"


class AnswerInvalid(BylineError):
    """The answer does not match the question's schema; the message names each field."""

    code = "answer_invalid"


class ConnectionUnknown(BylineError):
    """No connection has this name."""

    code = "connection_unknown"


class ConnectionMisconfigured(BylineError):
    """The connection cannot work as it is declared; an administrator has to correct it."""

    code = "connection_misconfigured"


class AccountUnknown(BylineError):
    """The person has connected no account of this name that can be used at the moment."""

    code = "account_unknown"


class AccountUnclear(BylineError):
    """The person has several accounts on the connection; the message names them."""

    code = "account_unclear"


class UpstreamFailed(BylineError):
    """An upstream system did not do what was asked."""

    code = "upstream_failed"

    def __init__(self, message: str, *, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code

    @property
    def details(self) -> Mapping[str, Any]:
        """The upstream's HTTP status, or None if it did not respond."""
        return {"status": self.status_code}


class PermissionDenied(UpstreamFailed):
    """The upstream does not permit this to the account (403)."""

    code = "permission_denied"


class RecordNotFound(UpstreamFailed):
    """The upstream has no such record, or hides it from the account (404, 410)."""

    code = "record_not_found"


class RequestRejected(UpstreamFailed):
    """The upstream rejected the request (any other 4xx, or a redirect)."""

    code = "request_rejected"


class UpstreamUnavailable(UpstreamFailed):
    """The upstream could not be reached, or failed (5xx)."""

    code = "upstream_unavailable"
    is_retryable = True


class RateLimited(UpstreamFailed):
    """The upstream limits the rate of requests (429); `retry_after` is in seconds, if it says how long to wait."""

    code = "rate_limited"
    is_retryable = True

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(message, status_code=429)
        self.retry_after = retry_after


class OutcomeUnknown(UpstreamFailed):
    """No response came to a request, which may have taken effect; it is retried only if it is idempotent."""

    code = "outcome_unknown"


class VaultSealBroken(BylineError):
    """A stored secret does not open: its key no longer exists, or its row was altered or moved."""

    code = "vault_seal_broken"


class KeyServiceUnavailable(BylineError):
    """The service that holds the master key does not answer, or refuses; no sealed secret is lost."""

    code = "key_service_unavailable"
    is_retryable = True


class AddressRefused(BylineError):
    """Byline does not call this address; the message says why."""

    code = "address_refused"


class ClientRefused(BylineError):
    """The metadata document of a client does not describe a client that Byline accepts; the message says why."""

    code = "client_refused"


class ChannelUnknown(BylineError):
    """No notification channel of this person has this id."""

    code = "channel_unknown"


class TooSoon(BylineError):
    """The same was done a moment ago; the message says when it may be done again."""

    code = "too_soon"


class WebhookUnknown(BylineError):
    """No webhook has this id, or it is somebody else's."""

    code = "webhook_unknown"


class WebhookInvalid(BylineError):
    """The webhook's declaration is not valid; the message says what is wrong."""

    code = "webhook_invalid"


class DeliveryRefused(BylineError):
    """The delivery is not signed with the webhook's secret."""

    code = "delivery_refused"


class DeliveryStale(DeliveryRefused):
    """The delivery was signed too long ago, or for a time in the future."""

    code = "delivery_stale"


class DeliveryUnfit(BylineError):
    """A signed delivery does not contain what the webhook's mapping or its tool needs."""

    code = "delivery_unfit"


class ToolUnknown(BylineError):
    """No composite tool has this name."""

    code = "tool_unknown"


class PromptUnknown(BylineError):
    """No prompt has this name."""

    code = "prompt_unknown"


class ResourceUnknown(BylineError):
    """No resource is at this address."""

    code = "resource_unknown"


class ArgumentsInvalid(BylineError):
    """The arguments do not match the tool's input schema."""

    code = "arguments_invalid"


class NotAllowed(BylineError):
    """The caller's roles or the scopes of their token do not permit this; the message says what would."""

    code = "not_allowed"


class ReadOnlyViolated(BylineError):
    """A tool or an action that only reads would have changed something upstream; nothing was sent."""

    code = "read_only_violated"


class KeyReused(BylineError):
    """The idempotency key was used before, for a call with another tool or other arguments."""

    code = "key_reused"


class ApiTokenUnknown(BylineError):
    """The principal has no API token with this id."""

    code = "api_token_unknown"


class ApiTokenInvalid(BylineError):
    """The requested API token is not valid; the message says what is wrong."""

    code = "api_token_invalid"


class ServiceUnknown(BylineError):
    """No service has this name or id."""

    code = "service_unknown"


class NameTaken(BylineError):
    """The name is already in use, or is not valid."""

    code = "name_taken"


class ScheduleUnknown(BylineError):
    """No schedule that this person may see has this id."""

    code = "schedule_unknown"


class SchedulePaused(BylineError):
    """The schedule is paused, so that it does not fire; the message says why."""

    code = "schedule_paused"


class TimingInvalid(BylineError):
    """The times of the schedule are not valid; the message says which."""

    code = "timing_invalid"


class RunUnknown(BylineError):
    """No run of this person has this id."""

    code = "run_unknown"


class RunForgotten(BylineError):
    """Temporal no longer keeps this run; the audit trail contains what it did."""

    code = "run_forgotten"


class RunEnded(BylineError):
    """The run has already ended."""

    code = "run_ended"


class RunUnfinished(BylineError):
    """The run has not ended; only an ended run can be retried."""

    code = "run_unfinished"


class TemporalUnreachable(BylineError):
    """The Temporal server does not answer."""

    code = "temporal_unreachable"
    is_retryable = True
