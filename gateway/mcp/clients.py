"""What the client of a request can do, by its protocol version and the capabilities that it declared."""

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
    """Whether a call can take several rounds: nothing is kept of the client between its requests."""
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS


def session_state(context: Context) -> dict[str, Any]:
    """What lives as long as a legacy client's session."""
    # The SDK has no public way there from a request.
    return context.session._connection.state  # noqa: SLF001


def abilities(context: Context) -> frozenset[Ability]:
    """What the client can be asked in the course of a call; nothing where it could not be reached."""
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
        # A client that declares elicitation and no mode of it has forms: they came first.
        if declared.elicitation.form is not None or not can & {"url"}:
            can.add("form")
    return frozenset(can)


async def has_left(context: Context) -> bool:
    """Whether nobody listens any more to the answer of this request."""
    return context.request is not None and bool(await context.request.is_disconnected())


def knows_tasks(context: Context) -> bool:
    """Whether the client declared the tasks extension, which there is only in modern versions."""
    declared = context.session.client_capabilities
    return is_modern(context) and declared is not None and TASKS in (declared.extensions or {})


def require_tasks(context: Context) -> None:
    """Return where the client declared the tasks extension; raises the MCPError that asks for it."""
    if not knows_tasks(context):
        raise _lacks(ClientCapabilities(extensions={TASKS: {}}), f"the extension {TASKS}")


def require(context: Context, capability: Literal["sampling", "roots", "elicitation"]) -> None:
    """Return where the client declared this capability; raises the MCPError that asks for it."""
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
