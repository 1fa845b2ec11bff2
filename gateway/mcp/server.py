"""Create one MCP server for each endpoint over shared handlers. Each serves modern and legacy protocol versions."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, TypeVar

from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary
from mcp_types import CallToolRequestParams, NotificationParams, SetLevelRequestParams
from temporalio.client import Client
from typing_extensions import override

from engine.runs.control import RunControl
from engine.runs.runs import Runs
from engine.services import Services
from engine.tools.registry import Registry
from gateway.bearer.verifiers import TokenVerifiers
from gateway.mcp.endpoints import McpEndpoint, list_endpoints
from gateway.mcp.exchange.client_abilities import TASKS_EXTENSION
from gateway.mcp.exchange.elicitation import ElicitationBuilder
from gateway.mcp.exchange.exchange_opener import ExchangeOpener
from gateway.mcp.exchange.log_levels import set_log_level
from gateway.mcp.exchange.request_state import create_request_state_boundary
from gateway.mcp.exchange.results import PendingResults
from gateway.mcp.mcp_request import McpRequest, RequestContext
from gateway.mcp.methods.completion import CompletionHandler
from gateway.mcp.methods.list_changes import ChangeNotifier
from gateway.mcp.methods.offer_fetching import OfferFetcher
from gateway.mcp.methods.prompts import PromptHandler
from gateway.mcp.methods.resources import ResourceHandler
from gateway.mcp.methods.tasks import TaskHandler, TaskParams, TaskUpdateParams
from gateway.mcp.methods.tool_calls import ToolCallHandler
from gateway.mcp.methods.tool_check import ToolCheckHandler
from gateway.mcp.methods.tool_list import ToolListHandler
from gateway.mcp.own_tools import find_own_input_schema
from gateway.mcp.transport.hide_internal_errors import hide_internal_errors

ParamsType = TypeVar("ParamsType")
ResultType = TypeVar("ResultType")

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
    handlers = _create_handlers(services, token_verifiers, registry, runs, run_control, temporal_client)
    state_boundary = create_request_state_boundary(services.vault, services.settings.public_url)

    def find_input_schema(tool_name: str) -> Mapping[str, Any] | None:
        tool = registry.tools.get(tool_name)
        return find_own_input_schema(tool_name) if tool is None else tool.input_schema

    return {
        endpoint.url_path: _create_server(endpoint, handlers, state_boundary, find_input_schema)
        for endpoint in list_endpoints(services.settings, registry)
    }


@dataclass(frozen=True, slots=True)
class _MethodHandlers:
    """The handlers of all methods, which all endpoints share."""

    tool_list: ToolListHandler
    tool_calls: ToolCallHandler
    tasks: TaskHandler
    prompts: PromptHandler
    resources: ResourceHandler
    completion: CompletionHandler
    changes: ChangeNotifier


def _create_handlers(
    services: Services,
    token_verifiers: TokenVerifiers,
    registry: Registry,
    runs: Runs,
    run_control: RunControl,
    temporal_client: Client,
) -> _MethodHandlers:
    settings = services.settings
    elicitation_builder = ElicitationBuilder(
        services.catalogue, services.authorization_requests, services.questions, services.page_links
    )
    exchange_opener = ExchangeOpener(
        runs, services.waiters, elicitation_builder, temporal_client, settings.gateway
    )
    pending_results = PendingResults(elicitation_builder, services.page_links)
    offer_fetcher = OfferFetcher(exchange_opener, pending_results)
    tool_list_handler = ToolListHandler(runs)
    task_handler = TaskHandler(
        registry,
        runs,
        run_control,
        services.run_records,
        services.waiters,
        exchange_opener,
        pending_results,
    )
    return _MethodHandlers(
        tool_list=tool_list_handler,
        tool_calls=ToolCallHandler(
            registry,
            runs,
            run_control,
            exchange_opener,
            pending_results,
            task_handler,
            tool_list_handler,
            ToolCheckHandler(services, registry, runs),
        ),
        tasks=task_handler,
        prompts=PromptHandler(registry, runs, offer_fetcher),
        resources=ResourceHandler(registry, runs, offer_fetcher),
        completion=CompletionHandler(registry, runs),
        changes=ChangeNotifier(
            registry,
            runs,
            services.policy,
            services.roles,
            services.resource_changes,
            token_verifiers,
        ),
    )


def _create_server(
    endpoint: McpEndpoint,
    handlers: _MethodHandlers,
    state_boundary: RequestStateBoundary,
    find_input_schema: Callable[[str], Mapping[str, Any] | None],
) -> Server[Any]:
    def bind(
        handle_request: Callable[[McpRequest[ParamsType]], Awaitable[ResultType]],
    ) -> Callable[[RequestContext, ParamsType], Awaitable[ResultType]]:
        """Return the handler as the SDK calls it."""

        async def handle_at_endpoint(context: RequestContext, params: ParamsType) -> ResultType:
            return await handle_request(McpRequest(context, params, endpoint))

        return handle_at_endpoint

    mcp_server = _EndpointServer(
        "byline",
        version=version("byline"),
        title=endpoint.title,
        instructions=endpoint.instructions,
        cache_hints=_CACHE_HINTS,
        get_tool_input_schema=find_input_schema,
        on_list_tools=bind(handlers.tool_list.list_tools),
        on_list_prompts=bind(handlers.prompts.list_prompts),
        on_get_prompt=bind(handlers.prompts.get_prompt),
        on_list_resources=bind(handlers.resources.list_resources),
        on_list_resource_templates=bind(handlers.resources.list_templates),
        on_read_resource=bind(handlers.resources.read_resource),
        on_completion=bind(handlers.completion.complete_argument),
        on_subscribe_resource=bind(handlers.changes.subscribe_resource),
        on_unsubscribe_resource=bind(handlers.changes.unsubscribe_resource),
        on_subscriptions_listen=bind(handlers.changes.open_listen_stream),
    )
    # Added by name, since the constructor supports neither tasks as an answer nor methods that 2026-07-28 removed.
    add_request_handler = mcp_server.add_request_handler
    add_request_handler("tools/call", CallToolRequestParams, bind(handlers.tool_calls.handle_call))
    add_request_handler("tasks/get", TaskParams, bind(handlers.tasks.get_task))
    add_request_handler("tasks/update", TaskUpdateParams, bind(handlers.tasks.update_task))
    add_request_handler("tasks/cancel", TaskParams, bind(handlers.tasks.cancel_task))
    add_request_handler("logging/setLevel", SetLevelRequestParams, bind(set_log_level))
    mcp_server.add_notification_handler(
        "notifications/initialized", NotificationParams, bind(handlers.changes.handle_initialized)
    )
    mcp_server.extensions[TASKS_EXTENSION] = {}
    mcp_server.middleware.insert(0, hide_internal_errors)
    mcp_server.middleware.append(state_boundary)
    return mcp_server


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
