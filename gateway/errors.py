"""How domain errors look at the HTTP and MCP edges: one table each, with every code in it."""

from typing import Final

from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

from engine import errors

HTTP_STATUS: Final[dict[type[errors.BylineError], int]] = {
    errors.BylineError: 500,
    errors.SettingsInvalid: 500,
    errors.IdentityRefused: 401,
    errors.AuthorizationRequired: 409,
    errors.AuthorizationEnded: 410,
    errors.AuthorizationRefused: 400,
    errors.ConnectionUnknown: 404,
    errors.ConnectionMisconfigured: 502,
    errors.UpstreamFailed: 502,
    errors.UpstreamUnavailable: 503,
    errors.VaultSealBroken: 500,
    errors.ToolUnknown: 404,
    errors.ArgumentsInvalid: 422,
    errors.NotAllowed: 403,
    errors.KeyReused: 422,
    errors.RunUnknown: 404,
    errors.TemporalUnreachable: 503,
}

# A tool's own failure is a result that the model reads; only what concerns the request itself is a protocol error.
MCP_CODE: Final[dict[type[errors.BylineError], int | None]] = {
    errors.BylineError: INTERNAL_ERROR,
    errors.SettingsInvalid: INTERNAL_ERROR,
    errors.IdentityRefused: None,
    errors.AuthorizationRequired: None,
    errors.AuthorizationEnded: None,
    errors.AuthorizationRefused: None,
    errors.ConnectionUnknown: None,
    errors.ConnectionMisconfigured: None,
    errors.UpstreamFailed: None,
    errors.UpstreamUnavailable: None,
    errors.VaultSealBroken: INTERNAL_ERROR,
    errors.ToolUnknown: INVALID_PARAMS,
    errors.ArgumentsInvalid: None,
    errors.NotAllowed: None,
    errors.KeyReused: None,
    errors.RunUnknown: None,
    errors.TemporalUnreachable: None,
}


def http_status(error: errors.BylineError) -> int:
    """The HTTP status of a domain error."""
    return next(
        status for kind in type(error).__mro__ for known, status in HTTP_STATUS.items() if kind is known
    )


def mcp_code(error: errors.BylineError) -> int | None:
    """The JSON-RPC code of a domain error; None where it is told as a tool's result."""
    return next(code for kind in type(error).__mro__ for known, code in MCP_CODE.items() if kind is known)
