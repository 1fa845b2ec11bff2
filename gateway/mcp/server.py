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

from engine.runs.control import RunControl
from engine.runs.runs import Runs
from engine.services import Services
from engine.tools.registry import Registry
from gateway.bearer.verifiers import TokenVerifiers
from gateway.mcp.endpoints import McpEndpoint, list_endpoints
from gateway.mcp.exchange.call_exchange import CallExchange, create_request_state_boundary
from gateway.mcp.exchange.client_abilities import TASKS_EXTENSION
from gateway.mcp.exchange.progress import ProgressReporters, set_log_level
from gateway.mcp.methods.completion import CompletionHandler
from gateway.mcp.methods.list_changes import ChangeNotifier
from gateway.mcp.methods.offer_fetching import OfferFetcher
from gateway.mcp.methods.prompts import PromptHandler
from gateway.mcp.methods.resources import ResourceHandler
from gateway.mcp.methods.tasks import TaskHandler, TaskParams, TaskUpdateParams
from gateway.mcp.methods.tool_calls import ToolCallHandler
from gateway.mcp.methods.tool_list import ToolListHandler, find_own_input_schema
from gateway.mcp.transport.hide_internal_errors import hide_internal_errors

# Lists depend on the caller. Clients that subscribe are notified of changes; others refresh after a minute.
_LIST_CACHE_HINT: Final = CacheHint(ttl_ms=60_000, scope="private")
_CACHE_HINTS: Final[Mapping[CacheableMethod, CacheHint]] = {
    "tools/list": _LIST_CACHE_HINT,
    "prompts/list": _LIST_CACHE_HINT,
    "resources/list": _LIST_CACHE_HINT,
    "resources/templates/list": _LIST_CACHE_HINT,
    # A resource of an upstream system may change at any time.
    "resources/read": CacheHint(ttl_ms=0, scope="private"),
}


def create_mcp_servers(
    services: Services,
    token_verifiers: TokenVerifiers,
    registry: Registry,
    runs: Runs,
    run_control: RunControl,
    temporal_client: Client,
) -> dict[str, Server[Any]]:
    """Create the MCP servers, by the path of their endpoint."""
    progress_reporters, tool_list_handler = ProgressReporters(temporal_client), ToolListHandler(runs)
    call_exchange = CallExchange(services, runs, progress_reporters)
    task_handler = TaskHandler(services, registry, runs, run_control)
    call_handler = ToolCallHandler(
        services, registry, runs, run_control, call_exchange, task_handler, tool_list_handler
    )
    offer_fetcher = OfferFetcher(services, call_exchange)
    prompt_handler, resource_handler = (
        PromptHandler(registry, runs, offer_fetcher),
        ResourceHandler(registry, runs, offer_fetcher),
    )
    completion_handler = CompletionHandler(registry, runs)
    change_notifier = ChangeNotifier(services, token_verifiers, registry, runs)

    def find_input_schema(tool_name: str) -> Mapping[str, Any] | None:
        tool = registry.tools.get(tool_name)
        return find_own_input_schema(tool_name) if tool is None else tool.input_schema

    def create_server(endpoint: McpEndpoint) -> Server[Any]:
        mcp_server = _EndpointServer(
            "byline",
            version=version("byline"),
            title=endpoint.title,
            instructions=endpoint.instructions,
            cache_hints=_CACHE_HINTS,
            get_tool_input_schema=find_input_schema,
            on_list_tools=partial(tool_list_handler.list_tools, endpoint=endpoint),
            on_list_prompts=partial(prompt_handler.list_prompts, endpoint=endpoint),
            on_get_prompt=partial(prompt_handler.get_prompt, endpoint=endpoint),
            on_list_resources=partial(resource_handler.list_resources, endpoint=endpoint),
            on_list_resource_templates=partial(resource_handler.list_templates, endpoint=endpoint),
            on_read_resource=partial(resource_handler.read_resource, endpoint=endpoint),
            on_completion=partial(completion_handler.complete_argument, endpoint=endpoint),
            on_subscribe_resource=partial(change_notifier.subscribe_resource, endpoint=endpoint),
            on_unsubscribe_resource=partial(change_notifier.unsubscribe_resource, endpoint=endpoint),
            on_subscriptions_listen=partial(change_notifier.open_listen_stream, endpoint=endpoint),
        )
        # Added by name, since the constructor supports neither tasks as an answer nor methods that 2026-07-28 removed.
        mcp_server.add_request_handler(
            "tools/call", CallToolRequestParams, partial(call_handler.handle_call, endpoint=endpoint)
        )
        mcp_server.add_request_handler(
            "tasks/get", TaskParams, partial(task_handler.get_task, endpoint=endpoint)
        )
        mcp_server.add_request_handler(
            "tasks/update", TaskUpdateParams, partial(task_handler.update_task, endpoint=endpoint)
        )
        mcp_server.add_request_handler(
            "tasks/cancel", TaskParams, partial(task_handler.cancel_task, endpoint=endpoint)
        )
        mcp_server.add_request_handler("logging/setLevel", SetLevelRequestParams, set_log_level)
        mcp_server.add_notification_handler(
            "notifications/initialized",
            NotificationParams,
            partial(change_notifier.handle_initialized, endpoint=endpoint),
        )
        mcp_server.extensions[TASKS_EXTENSION] = {}
        mcp_server.middleware.insert(0, hide_internal_errors)
        mcp_server.middleware.append(create_request_state_boundary(services))
        return mcp_server

    return {
        endpoint.url_path: create_server(endpoint) for endpoint in list_endpoints(services.settings, registry)
    }


class _EndpointServer(Server[Any]):
    """An MCP server that announces list change notifications to legacy sessions as well."""

    @override
    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        change_options = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
        # Only 2026-07-28 has extensions, and server/discover announces them there.
        return super().create_initialization_options(
            notification_options or change_options, experimental_capabilities, {}
        )
