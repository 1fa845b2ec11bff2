"""The levels of log messages that a client wants: said with each modern request, and once for a legacy session."""

from typing import Final, get_args

from mcp_types import LOG_LEVEL_META_KEY, EmptyResult, LoggingLevel, SetLevelRequestParams

from gateway.mcp.exchange.client_abilities import get_session_state, is_modern_client
from gateway.mcp.mcp_request import McpRequest, RequestContext

_ALL_LOG_LEVELS: Final[tuple[LoggingLevel, ...]] = get_args(LoggingLevel)
_LOG_LEVEL_KEY: Final = "byline_log_level"


async def set_log_level(request: McpRequest[SetLevelRequestParams]) -> EmptyResult:
    """Handle logging/setLevel: set the lowest level of log messages for this session, which gets none before."""
    get_session_state(request.context)[_LOG_LEVEL_KEY] = request.params.level
    return EmptyResult()


def find_log_levels(context: RequestContext) -> frozenset[LoggingLevel]:
    """Return the log levels that the client asked for, with its request or for its session; none without that."""
    lowest_level = (
        (context.meta or {}).get(LOG_LEVEL_META_KEY)
        if is_modern_client(context)
        else get_session_state(context).get(_LOG_LEVEL_KEY)
    )
    if lowest_level not in _ALL_LOG_LEVELS:
        return frozenset()
    return frozenset(_ALL_LOG_LEVELS[_ALL_LOG_LEVELS.index(lowest_level) :])
