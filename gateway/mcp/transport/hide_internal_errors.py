"""Hide the details of unexpected errors from MCP clients. The gateway's log has them."""

from typing import Any

import structlog
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import ValidationError

log = structlog.get_logger()


async def hide_internal_errors(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Replace unexpected exceptions by an MCPError, since the SDK would send their text to legacy clients."""
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError):
        raise
    except Exception as error:
        log.exception("mcp_request_failed", method=ctx.method)
        raise MCPError(
            INTERNAL_ERROR,
            "Something went wrong here that is not your request's fault. The gateway's log says what.",
        ) from error
