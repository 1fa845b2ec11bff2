"""The MCP endpoints: who calls one of them, what it offers, and which tool a call at it names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token

from engine.errors import ArgumentsInvalid, IdentityMissing
from engine.registry import Registry
from engine.settings import Settings
from gateway.bearer import PersonalToken
from gateway.mcp.search import CALL
from gateway.runs.runs import Caller
from gateway.toolsets import MCP_PATH, SEARCH_PATH, read_toolsets


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint.

    `offered_names` is None where everything is offered. `has_search` says that tools are searched for instead of
    listed.
    """

    path: str
    title: str
    instructions: str | None = None
    offers: frozenset[str] | None = None
    searches: bool = False

    def caller(self) -> Caller:
        """Return the current request's caller, limited to what the endpoint offers; raises IdentityMissing."""
        token = get_access_token()
        if not isinstance(token, PersonalToken):
            raise IdentityMissing("The call carries no bearer token of a person known here.")
        both = [names for names in (token.tools, self.offers) if names is not None]
        tools = frozenset.intersection(*both) if both else None
        return Caller(token.principal, token.actor, "mcp", tools, in_person=token.in_person)

    def meant(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Return the tool that a call names and its arguments, taken out of `byline_call` where tools are searched for.

        Raises ArgumentsInvalid.
        """
        if not self.searches or name != CALL:
            return name, arguments
        tool, given = arguments.get("name"), arguments.get("arguments", {})
        if not (isinstance(tool, str) and isinstance(given, dict)):
            raise ArgumentsInvalid(f"{CALL} takes the name of a tool, and its arguments as an object.")
        return tool, given


_SEARCHES = (
    "There are more tools than are listed. Call byline_search with what you want to do; it answers with tools and "
    "their schemas. Then call the one that fits with byline_call."
)


def endpoints(settings: Settings, registry: Registry) -> list[Endpoint]:
    """List all endpoints; raises SettingsInvalid where a toolset offers what does not exist."""
    names = (*registry.tools, *registry.prompts, *registry.resources)
    return [
        Endpoint(MCP_PATH, "Byline"),
        Endpoint(SEARCH_PATH, "Byline", _SEARCHES, searches=True),
        *(
            Endpoint(path, toolset.title, toolset.instructions, toolset.chosen(names))
            for path, toolset in read_toolsets(settings.toolsets_file).items()
        ),
    ]
