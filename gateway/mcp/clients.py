"""Read what the client of a request is able to do from its protocol version and its declared capabilities."""

from typing import Any, Final, Literal

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    ClientCapabilities,
    ElicitationCapability,
    MissingRequiredClientCapabilityErrorData,
    RootsCapability,
    SamplingCapability,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

Context = ServerRequestContext[Any, Any]
Ability = Literal["form", "url", "sampling", "roots"]

TASKS: Final = "io.modelcontextprotocol/tasks"
"""The extension of SEP-2663."""


def is_modern(context: Context) -> bool:
    """Return whether the protocol is stateless, so that a call can take several requests (2026-07-28 and later)."""
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS


def session_state(context: Context) -> dict[str, Any]:
    """Return the state that lives as long as a legacy client's session."""
    # The SDK has no public way from a request to its session's state.
    return context.session._connection.state  # noqa: SLF001


def abilities(context: Context) -> frozenset[Ability]:
    """List what the client can be asked during a call; empty where the server cannot send it requests."""
    declared = context.session.client_capabilities
    if declared is None or not (is_modern(context) or context.session.can_send_request):
        return frozenset()
    can: set[Ability] = set()
    if declared.sampling is not None:
        can.add("sampling")
    if declared.roots is not None:
        can.add("roots")
    if declared.elicitation is not None:
        if declared.elicitation.url is not None:
            can.add("url")
        # A client that declares elicitation without a mode supports forms, which were the only mode at first.
        if declared.elicitation.form is not None or not can & {"url"}:
            can.add("form")
    return frozenset(can)


async def has_left(context: Context) -> bool:
    """Return whether the client of this request has disconnected."""
    return context.request is not None and bool(await context.request.is_disconnected())


def knows_tasks(context: Context) -> bool:
    """Return whether the client declared the tasks extension, which only modern protocol versions have."""
    declared = context.session.client_capabilities
    return is_modern(context) and declared is not None and TASKS in (declared.extensions or {})


def require_tasks(context: Context) -> None:
    """Require the tasks extension; raises MCPError (missing required client capability) without it."""
    if not knows_tasks(context):
        raise _lacks(ClientCapabilities(extensions={TASKS: {}}), f"the extension {TASKS}")


def require(context: Context, capability: Literal["sampling", "roots", "elicitation"]) -> None:
    """Require a client capability; raises MCPError (missing required client capability) without it."""
    declared = context.session.client_capabilities
    if declared is None or getattr(declared, capability) is None:
        raise _lacks(_ONLY[capability], capability)


_ONLY: Final = {
    "sampling": ClientCapabilities(sampling=SamplingCapability()),
    "roots": ClientCapabilities(roots=RootsCapability()),
    "elicitation": ClientCapabilities(elicitation=ElicitationCapability()),
}


def _lacks(capabilities: ClientCapabilities, name: str) -> MCPError:
    data = MissingRequiredClientCapabilityErrorData(required_capabilities=capabilities)
    return MCPError(
        MISSING_REQUIRED_CLIENT_CAPABILITY,
        f"This needs a client that declares {name}.",
        data.model_dump(by_alias=True, mode="json", exclude_none=True),
    )
