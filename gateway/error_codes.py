"""Maps domain errors to HTTP status codes and JSON-RPC error codes: one table each, with every error class in it."""

from collections.abc import Iterator
from typing import Final

from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

from engine import errors

HTTP_STATUS_BY_ERROR: Final[dict[type[errors.BylineError], int]] = {
    errors.BylineError: 500,
    errors.SettingsInvalid: 500,
    errors.IdentityRefused: 401,
    errors.PersonRequired: 409,
    errors.AuthorizationEnded: 410,
    errors.AuthorizationRefused: 400,
    errors.QuestionEnded: 410,
    errors.QuestionUnknown: 404,
    errors.QuestionClosed: 409,
    errors.AnswerInvalid: 422,
    errors.ConnectionUnknown: 404,
    errors.ConnectionMisconfigured: 502,
    errors.AccountUnknown: 404,
    errors.AccountUnclear: 409,
    errors.UpstreamFailed: 502,
    errors.UpstreamUnavailable: 503,
    errors.VaultSealBroken: 500,
    errors.KeyServiceUnavailable: 503,
    errors.AddressRefused: 422,
    errors.ClientRefused: 400,
    errors.ChannelUnknown: 404,
    errors.TooSoon: 429,
    errors.WebhookUnknown: 404,
    errors.WebhookInvalid: 422,
    errors.DeliveryRefused: 401,
    errors.DeliveryUnfit: 422,
    errors.ToolUnknown: 404,
    errors.PromptUnknown: 404,
    errors.ResourceUnknown: 404,
    errors.ArgumentsInvalid: 422,
    errors.NotAllowed: 403,
    errors.ReadOnlyViolated: 500,
    errors.KeyReused: 422,
    errors.ApiTokenUnknown: 404,
    errors.ApiTokenInvalid: 422,
    errors.ServiceUnknown: 404,
    errors.NameTaken: 409,
    errors.ScheduleUnknown: 404,
    errors.SchedulePaused: 409,
    errors.TimingInvalid: 422,
    errors.RunUnknown: 404,
    errors.RunForgotten: 410,
    errors.RunEnded: 409,
    errors.RunUnfinished: 409,
    errors.TemporalUnreachable: 503,
}

# A tool's own failure is a result that the model reads (None). Only an error of the request itself has a code.
MCP_CODE_BY_ERROR: Final[dict[type[errors.BylineError], int | None]] = {
    errors.BylineError: INTERNAL_ERROR,
    errors.SettingsInvalid: INTERNAL_ERROR,
    errors.IdentityRefused: None,
    errors.PersonRequired: None,
    errors.AuthorizationEnded: None,
    errors.AuthorizationRefused: None,
    errors.QuestionEnded: None,
    errors.QuestionUnknown: None,
    errors.QuestionClosed: None,
    errors.AnswerInvalid: None,
    errors.ConnectionUnknown: None,
    errors.ConnectionMisconfigured: None,
    errors.AccountUnknown: None,
    errors.AccountUnclear: None,
    errors.UpstreamFailed: None,
    errors.UpstreamUnavailable: None,
    errors.VaultSealBroken: INTERNAL_ERROR,
    errors.KeyServiceUnavailable: None,
    errors.AddressRefused: None,
    errors.ClientRefused: None,
    errors.ChannelUnknown: None,
    errors.TooSoon: None,
    errors.WebhookUnknown: None,
    errors.WebhookInvalid: None,
    errors.DeliveryRefused: None,
    errors.DeliveryUnfit: None,
    errors.ToolUnknown: INVALID_PARAMS,
    errors.PromptUnknown: INVALID_PARAMS,
    errors.ResourceUnknown: INVALID_PARAMS,
    errors.ArgumentsInvalid: None,
    errors.NotAllowed: None,
    errors.ReadOnlyViolated: None,
    errors.KeyReused: None,
    errors.ApiTokenUnknown: None,
    errors.ApiTokenInvalid: None,
    errors.ServiceUnknown: None,
    errors.NameTaken: None,
    errors.ScheduleUnknown: None,
    errors.SchedulePaused: None,
    errors.TimingInvalid: None,
    errors.RunUnknown: None,
    errors.RunForgotten: None,
    errors.RunEnded: None,
    errors.RunUnfinished: None,
    errors.TemporalUnreachable: None,
}


def find_mcp_code(error_code: str) -> int | None:
    """Return the JSON-RPC code of the domain error with this code, or None where it is reported as a tool result."""
    return _MCP_CODE_BY_ERROR_CODE.get(error_code)


def to_http_status(error: errors.BylineError) -> int:
    """Return the HTTP status of a domain error."""
    return next(
        status_code
        for error_class in type(error).__mro__
        for listed_class, status_code in HTTP_STATUS_BY_ERROR.items()
        if error_class is listed_class
    )


def to_mcp_code(error: errors.BylineError) -> int | None:
    """Return the JSON-RPC code of a domain error, or None where it is reported as a tool result."""
    return next(
        json_rpc_code
        for error_class in type(error).__mro__
        for listed_class, json_rpc_code in MCP_CODE_BY_ERROR.items()
        if error_class is listed_class
    )


def _walk_error_classes(error_class: type[errors.BylineError]) -> Iterator[type[errors.BylineError]]:
    yield error_class
    for error_subclass in error_class.__subclasses__():
        yield from _walk_error_classes(error_subclass)


_MCP_CODE_BY_ERROR_CODE: Final = {
    error_class.code: json_rpc_code
    for error_class in _walk_error_classes(errors.BylineError)
    for json_rpc_code in [
        next(
            json_rpc_code
            for base_class in error_class.__mro__
            for listed_class, json_rpc_code in MCP_CODE_BY_ERROR.items()
            if base_class is listed_class
        )
    ]
    if json_rpc_code is not None
}
