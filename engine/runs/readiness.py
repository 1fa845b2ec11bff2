"""Reports which sign-ins a tool call would wait for, before the call is made. No run is started."""

from typing import Final, Literal

from pydantic import BaseModel, Field

from engine.runs.caller import Caller
from engine.runs.permissions import CallPermissions
from engine.tools.readiness import ConnectionReadiness, ReadinessChecker
from engine.tools.registry import Registry
from engine.waiting.page_paths import PageLinks

_DETAIL_BY_STATE: Final = {
    "connected": "{title} is connected.",
    "missing": "{title} is not connected yet.",
    "lapsed": "The sign-in at {title} has lapsed.",
    "too_narrow": "{title} is connected, without what this tool needs there: {lacking}.",
    "choice_needed": "More than one account at {title} is connected, and it is not said which one this tool uses.",
}


class ConnectionState(BaseModel):
    """The state of one connection that a tool may use."""

    name: str
    title: str
    mode: Literal["user", "shared"]
    state: Literal["connected", "missing", "lapsed", "too_narrow", "choice_needed"]
    account: str | None = Field(description="The account that would be used, if there is one.")
    lacking: list[str] = Field(description="The scopes that a sign-in would request.")
    detail: str


class ToolReadiness(BaseModel):
    """Whether a call of a tool would wait for its caller to sign in somewhere."""

    tool: str
    would_wait: bool = Field(
        description="Branches of the tool that are not taken count as well. A grant that the upstream revoked "
        "without notice still counts as usable."
    )
    connections: list[ConnectionState]
    url: str | None = Field(
        description="The page on which the caller connects everything, so that a call then waits for nothing."
    )


async def report_readiness(
    readiness_checker: ReadinessChecker,
    page_links: PageLinks,
    registry: Registry,
    permissions: CallPermissions,
    caller: Caller,
    tool_name: str,
) -> ToolReadiness:
    """Report what a call of this tool by the caller would wait for. Raises ToolUnknown or NotAllowed."""
    tool = registry.find_tool(tool_name)
    await permissions.require_allowed(tool_name, caller)
    connections = await readiness_checker.check_connections(
        caller.principal.id, tool_name, registry.needs[tool_name]
    )
    has_to_wait = not all(connection.is_ready for connection in connections)
    connect_url = page_links.build_tool_link(tool.name)
    return ToolReadiness(
        tool=tool.name,
        would_wait=has_to_wait,
        connections=[_to_connection_state(connection) for connection in connections],
        url=connect_url if has_to_wait else None,
    )


def _to_connection_state(readiness: ConnectionReadiness) -> ConnectionState:
    connection = readiness.connection
    detail = _DETAIL_BY_STATE[readiness.state].format(
        title=connection.title, lacking=" ".join(readiness.missing_scopes)
    )
    return ConnectionState(
        name=connection.name,
        title=connection.title,
        mode=connection.mode,
        state=readiness.state,
        account=readiness.account,
        lacking=list(readiness.missing_scopes),
        detail=detail,
    )
