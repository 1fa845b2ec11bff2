"""Read what the client of a request is able to do from its protocol version and its declared capabilities."""

from typing import Any, Final, Literal

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

from gateway.mcp.mcp_request import RequestContext

ClientAbility = Literal["form", "url", "sampling", "roots"]

TASKS_EXTENSION: Final = "io.modelcontextprotocol/tasks"
"""The extension of SEP-2663."""


def is_modern_client(context: RequestContext) -> bool:
    """Return whether the protocol is stateless, so that a call can take several requests (2026-07-28 and later)."""
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS


def get_session_state(context: RequestContext) -> dict[str, Any]:
    """Return the state that lives as long as a legacy client's session."""
    # The SDK has no public way from a request to its session's state.
    return context.session._connection.state  # noqa: SLF001


def list_client_abilities(context: RequestContext) -> frozenset[ClientAbility]:
    """List what the client can be asked during a call; empty where the server cannot send it requests."""
    declared_capabilities = context.session.client_capabilities
    if declared_capabilities is None or not (is_modern_client(context) or context.session.can_send_request):
        return frozenset()
    client_abilities: set[ClientAbility] = set()
    if declared_capabilities.sampling is not None:
        client_abilities.add("sampling")
    if declared_capabilities.roots is not None:
        client_abilities.add("roots")
    if declared_capabilities.elicitation is not None:
        if declared_capabilities.elicitation.url is not None:
            client_abilities.add("url")
        # A client that declares elicitation without a mode supports forms, which were the only mode at first.
        if declared_capabilities.elicitation.form is not None or not client_abilities & {"url"}:
            client_abilities.add("form")
    return frozenset(client_abilities)


async def has_client_left(context: RequestContext) -> bool:
    """Return whether the client of this request has disconnected."""
    return context.request is not None and bool(await context.request.is_disconnected())


def has_tasks_extension(context: RequestContext) -> bool:
    """Return whether the client declared the tasks extension, which only modern protocol versions have."""
    declared_capabilities = context.session.client_capabilities
    return (
        is_modern_client(context)
        and declared_capabilities is not None
        and TASKS_EXTENSION in (declared_capabilities.extensions or {})
    )


def require_tasks_extension(context: RequestContext) -> None:
    """Require the tasks extension; raises MCPError (missing required client capability) without it."""
    if not has_tasks_extension(context):
        raise _build_capability_error(
            ClientCapabilities(extensions={TASKS_EXTENSION: {}}), f"the extension {TASKS_EXTENSION}"
        )


def require_capability(
    context: RequestContext, capability: Literal["sampling", "roots", "elicitation"]
) -> None:
    """Require a client capability; raises MCPError (missing required client capability) without it."""
    declared_capabilities = context.session.client_capabilities
    if declared_capabilities is None or getattr(declared_capabilities, capability) is None:
        raise _build_capability_error(_SINGLE_CAPABILITIES[capability], capability)


_SINGLE_CAPABILITIES: Final = {
    "sampling": ClientCapabilities(sampling=SamplingCapability()),
    "roots": ClientCapabilities(roots=RootsCapability()),
    "elicitation": ClientCapabilities(elicitation=ElicitationCapability()),
}


def _build_capability_error(capabilities: ClientCapabilities, capability_name: str) -> MCPError:
    error_data = MissingRequiredClientCapabilityErrorData(required_capabilities=capabilities)
    return MCPError(
        MISSING_REQUIRED_CLIENT_CAPABILITY,
        f"This needs a client that declares {capability_name}.",
        error_data.model_dump(by_alias=True, mode="json", exclude_none=True),
    )
