"""The MCP endpoints: who calls one of them, what it offers, and which tool a call at it names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token

from engine.errors import ArgumentsInvalid, IdentityMissing
from engine.runs.runs import Caller
from engine.settings import Settings
from engine.tools.registry import Registry
from gateway.bearer.principal_token import PrincipalToken
from gateway.mcp.own_tools import CALL_TOOL_NAME
from gateway.toolsets import MCP_PATH, SEARCH_PATH, read_toolsets


@dataclass(frozen=True, slots=True)
class McpEndpoint:
    """One endpoint.

    `offered_names` is None where everything is offered. `has_search` says that tools are searched for instead of
    listed.
    """

    url_path: str
    title: str
    instructions: str | None = None
    offered_names: frozenset[str] | None = None
    has_search: bool = False

    def identify_caller(self) -> Caller:
        """Return the current request's caller, limited to what the endpoint offers; raises IdentityMissing."""
        personal_token = get_access_token()
        if not isinstance(personal_token, PrincipalToken):
            raise IdentityMissing("The call carries no bearer token of a person known here.")
        name_limits = [
            allowed_names
            for allowed_names in (personal_token.tools, self.offered_names)
            if allowed_names is not None
        ]
        tool_names = frozenset.intersection(*name_limits) if name_limits else None
        return Caller(
            personal_token.principal,
            personal_token.actor,
            "mcp",
            tool_names,
            is_in_person=personal_token.in_person,
        )

    def resolve_call(self, tool_name: str, arguments: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Return the tool that a call names and its arguments, taken out of `byline_call` where tools are searched for.

        Raises ArgumentsInvalid.
        """
        if not self.has_search or tool_name != CALL_TOOL_NAME:
            return tool_name, arguments
        inner_tool_name, inner_arguments = arguments.get("name"), arguments.get("arguments", {})
        if not (isinstance(inner_tool_name, str) and isinstance(inner_arguments, dict)):
            raise ArgumentsInvalid(
                f"{CALL_TOOL_NAME} takes the name of a tool, and its arguments as an object."
            )
        return inner_tool_name, inner_arguments


_SEARCH_INSTRUCTIONS = (
    "There are more tools than are listed. Call byline_search with what you want to do; it answers with tools and "
    "their schemas. Then call the one that fits with byline_call."
)


def list_endpoints(settings: Settings, registry: Registry) -> list[McpEndpoint]:
    """List all endpoints; raises SettingsInvalid where a toolset offers what does not exist."""
    offer_names = (*registry.tools, *registry.prompts, *registry.resources)
    return [
        McpEndpoint(MCP_PATH, "Byline"),
        McpEndpoint(SEARCH_PATH, "Byline", _SEARCH_INSTRUCTIONS, has_search=True),
        *(
            McpEndpoint(url_path, toolset.title, toolset.instructions, toolset.select_names(offer_names))
            for url_path, toolset in read_toolsets(settings.toolsets_file).items()
        ),
    ]
