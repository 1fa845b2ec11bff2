"""Create one MCP server for each endpoint over shared handlers. Each serves modern and legacy protocol versions."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.models import InitializationOptions
from mcp_types import CallToolRequestParams, NotificationParams, SetLevelRequestParams
from temporalio.client import Client
from typing_extensions import override

from engine.registry import Registry
from engine.services import Services
from gateway.mcp.calls import Calls
from gateway.mcp.changes import Changes
from gateway.mcp.clients import TASKS
from gateway.mcp.completion import Completions
from gateway.mcp.endpoints import Endpoint, endpoints
from gateway.mcp.fetching import Fetching
from gateway.mcp.listing import Listing, own_schema
from gateway.mcp.prompts import Prompts
from gateway.mcp.resources import Resources
from gateway.mcp.rounds import Rounds, request_states
from gateway.mcp.steps import Steps, set_log_level
from gateway.mcp.tasks import TaskParams, Tasks, TaskUpdateParams
from gateway.mcp.untold import untold
from gateway.runs.control import RunControl
from gateway.runs.runs import Runs

# Lists depend on the caller. Clients that subscribe are notified of changes; others refresh after a minute.
_FRESH: Final = CacheHint(ttl_ms=60_000, scope="private")
_CACHE_HINTS: Final[Mapping[CacheableMethod, CacheHint]] = {
    "tools/list": _FRESH,
    "prompts/list": _FRESH,
    "resources/list": _FRESH,
    "resources/templates/list": _FRESH,
    # A resource of an upstream system may change at any time.
    "resources/read": CacheHint(ttl_ms=0, scope="private"),
}


def mcp_servers(
    services: Services, registry: Registry, runs: Runs, control: RunControl, temporal: Client
) -> dict[str, Server[Any]]:
    """Create the MCP servers, by the path of their endpoint."""
    steps, listing = Steps(temporal), Listing(runs)
    rounds = Rounds(services, runs, steps)
    tasks = Tasks(services, registry, runs, control)
    calls = Calls(services, registry, runs, control, rounds, tasks, listing)
    fetching = Fetching(services, rounds)
    prompts, resources = Prompts(registry, runs, fetching), Resources(registry, runs, fetching)
    completions = Completions(registry, runs)
    changes = Changes(services, registry, runs)

    def schema(name: str) -> Mapping[str, Any] | None:
        tool = registry.tools.get(name)
        return own_schema(name) if tool is None else tool.input_schema

    def server(at: Endpoint) -> Server[Any]:
        serving = _Server(
            "byline",
            version=version("byline"),
            title=at.title,
            instructions=at.instructions,
            cache_hints=_CACHE_HINTS,
            get_tool_input_schema=schema,
            on_list_tools=partial(listing.listed, at=at),
            on_list_prompts=partial(prompts.listed, at=at),
            on_get_prompt=partial(prompts.get, at=at),
            on_list_resources=partial(resources.listed, at=at),
            on_list_resource_templates=partial(resources.templates, at=at),
            on_read_resource=partial(resources.read, at=at),
            on_completion=partial(completions.complete, at=at),
            on_subscribe_resource=partial(changes.subscribe_resource, at=at),
            on_unsubscribe_resource=partial(changes.unsubscribe_resource, at=at),
            on_subscriptions_listen=partial(changes.listen, at=at),
        )
        # Added by name, since the constructor supports neither tasks as an answer nor methods that 2026-07-28 removed.
        serving.add_request_handler("tools/call", CallToolRequestParams, partial(calls.call, at=at))
        serving.add_request_handler("tasks/get", TaskParams, partial(tasks.get, at=at))
        serving.add_request_handler("tasks/update", TaskUpdateParams, partial(tasks.update, at=at))
        serving.add_request_handler("tasks/cancel", TaskParams, partial(tasks.cancel, at=at))
        serving.add_request_handler("logging/setLevel", SetLevelRequestParams, set_log_level)
        serving.add_notification_handler(
            "notifications/initialized", NotificationParams, partial(changes.initialized, at=at)
        )
        serving.extensions[TASKS] = {}
        serving.middleware.insert(0, untold)
        serving.middleware.append(request_states(services))
        return serving

    return {at.path: server(at) for at in endpoints(services.settings, registry)}


class _Server(Server[Any]):
    """An MCP server that announces list change notifications to legacy sessions as well."""

    @override
    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        changes = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
        # Only 2026-07-28 has extensions, and server/discover announces them there.
        return super().create_initialization_options(
            notification_options or changes, experimental_capabilities, {}
        )
