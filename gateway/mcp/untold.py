"""What MCP clients are told of an error that nobody expected: that there was one; the rest is in the gateway's log."""

from typing import Any

import structlog
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import ValidationError

log = structlog.get_logger()


async def untold(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware of the server: the SDK would tell clients of the older protocols the text of any exception."""
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
