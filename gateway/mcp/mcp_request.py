"""One request at an MCP endpoint, as its handler gets it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from mcp.server.context import ServerRequestContext

from engine.runs.runs import Caller
from gateway.mcp.endpoints import McpEndpoint

RequestContext = ServerRequestContext[Any, Any]
"""What the SDK knows of a request: its client, session, protocol version and HTTP request."""

ParamsType_co = TypeVar("ParamsType_co", covariant=True)


@dataclass(frozen=True)
class McpRequest(Generic[ParamsType_co]):
    """A request or notification, with its context, its validated parameters and the endpoint it arrived at."""

    context: RequestContext
    params: ParamsType_co
    endpoint: McpEndpoint

    @cached_property
    def caller(self) -> Caller:
        """The caller, limited to what the endpoint offers; raises IdentityMissing."""
        return self.endpoint.identify_caller()
