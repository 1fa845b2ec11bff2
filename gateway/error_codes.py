"""Maps domain errors to HTTP statuses and JSON-RPC codes, in one table. A subclass without a row has its base's."""

from typing import Final, NamedTuple

from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

from engine import errors


class ErrorCodes(NamedTuple):
    """How an error is reported over HTTP and over MCP.

    Without an MCP code it is a tool result, which the model reads. Only an error of the request itself has a code.
    """

    http_status: int
    mcp_code: int | None = None


CODES_BY_ERROR: Final[dict[type[errors.BylineError], ErrorCodes]] = {
    errors.BylineError: ErrorCodes(500, INTERNAL_ERROR),
    errors.SettingsInvalid: ErrorCodes(500, INTERNAL_ERROR),
    errors.IdentityRefused: ErrorCodes(401),
    errors.PersonRequired: ErrorCodes(409),
    errors.AuthorizationEnded: ErrorCodes(410),
    errors.AuthorizationRefused: ErrorCodes(400),
    errors.QuestionEnded: ErrorCodes(410),
    errors.QuestionUnknown: ErrorCodes(404),
    errors.QuestionClosed: ErrorCodes(409),
    errors.AnswerInvalid: ErrorCodes(422),
    errors.ConnectionUnknown: ErrorCodes(404),
    errors.ConnectionMisconfigured: ErrorCodes(502),
    errors.AccountUnknown: ErrorCodes(404),
    errors.AccountUnclear: ErrorCodes(409),
    errors.UpstreamFailed: ErrorCodes(502),
    errors.UpstreamUnavailable: ErrorCodes(503),
    errors.VaultSealBroken: ErrorCodes(500, INTERNAL_ERROR),
    errors.KeyServiceUnavailable: ErrorCodes(503),
    errors.AddressRefused: ErrorCodes(422),
    errors.ClientRefused: ErrorCodes(400),
    errors.ChannelUnknown: ErrorCodes(404),
    errors.TooSoon: ErrorCodes(429),
    errors.WebhookUnknown: ErrorCodes(404),
    errors.WebhookInvalid: ErrorCodes(422),
    errors.DeliveryRefused: ErrorCodes(401),
    errors.DeliveryUnfit: ErrorCodes(422),
    errors.ToolUnknown: ErrorCodes(404, INVALID_PARAMS),
    errors.PromptUnknown: ErrorCodes(404, INVALID_PARAMS),
    errors.ResourceUnknown: ErrorCodes(404, INVALID_PARAMS),
    errors.ArgumentsInvalid: ErrorCodes(422),
    errors.NotAllowed: ErrorCodes(403),
    errors.ReadOnlyViolated: ErrorCodes(500),
    errors.KeyReused: ErrorCodes(422),
    errors.ApiTokenUnknown: ErrorCodes(404),
    errors.ApiTokenInvalid: ErrorCodes(422),
    errors.ServiceUnknown: ErrorCodes(404),
    errors.NameTaken: ErrorCodes(409),
    errors.ScheduleUnknown: ErrorCodes(404),
    errors.SchedulePaused: ErrorCodes(409),
    errors.TimingInvalid: ErrorCodes(422),
    errors.RunUnknown: ErrorCodes(404),
    errors.RunForgotten: ErrorCodes(410),
    errors.RunEnded: ErrorCodes(409),
    errors.RunUnfinished: ErrorCodes(409),
    errors.TemporalUnreachable: ErrorCodes(503),
}


def to_http_status(error: errors.BylineError) -> int:
    """Return the HTTP status of a domain error."""
    return _find_codes(type(error)).http_status


def to_mcp_code(error: errors.BylineError) -> int | None:
    """Return the JSON-RPC code of a domain error, or None where it is reported as a tool result."""
    return _find_codes(type(error)).mcp_code


def find_mcp_code(error_code: str) -> int | None:
    """Return the JSON-RPC code of the domain error with this code, or None where it is reported as a tool result."""
    return _MCP_CODE_BY_ERROR_CODE.get(error_code)


def _find_codes(error_class: type[errors.BylineError]) -> ErrorCodes:
    return next(
        CODES_BY_ERROR[base_class] for base_class in error_class.__mro__ if base_class in CODES_BY_ERROR
    )


def _collect_mcp_codes(error_class: type[errors.BylineError]) -> dict[str, int | None]:
    codes_by_error_code = {error_class.code: _find_codes(error_class).mcp_code}
    for error_subclass in error_class.__subclasses__():
        codes_by_error_code |= _collect_mcp_codes(error_subclass)
    return codes_by_error_code


_MCP_CODE_BY_ERROR_CODE: Final = _collect_mcp_codes(errors.BylineError)
