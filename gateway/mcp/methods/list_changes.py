"""Notify clients of changed lists and resources. It polls the database, so changes by any process are found."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.subscriptions import (
    SUBSCRIPTION_ID_META_KEY,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    EmptyResult,
    NotificationParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)
from sqlalchemy.exc import SQLAlchemyError

from engine.errors import BylineError, ResourceUnknown
from engine.policy.policy import PolicyFile
from engine.runs.runs import Caller, Runs
from engine.services import Services
from engine.tools.registry import Registry
from gateway.bearer.verifiers import TokenVerifiers, wait_until_invalid
from gateway.mcp.endpoints import McpEndpoint
from gateway.mcp.exchange.client_abilities import RequestContext, get_session_state
from gateway.mcp.methods.offer_fetching import to_mcp_error

_POLL_INTERVAL_SECONDS: Final = 0.25
_MAX_WATCHED_RESOURCES: Final = 1_000
# Allows for clock differences between hosts, and for a database that is unreachable for a while.
_CHANGE_WINDOW: Final = timedelta(minutes=1)
_LISTENER_KEY: Final = "byline_listener"

EventSender = Callable[[ServerEvent], None]
AccessRights = tuple[PolicyFile, frozenset[str]]


@dataclass(eq=False)
class _ChangeListener:
    caller: Caller
    access_rights: AccessRights
    listed_names: Mapping[type, tuple[str, ...]]
    watched_uris: set[str]
    send_event: EventSender = field(default=lambda _: None)


_current_listener: ContextVar[_ChangeListener] = ContextVar("byline_listening")


class ChangeNotifier:
    """Polls, while any client listens, what its principal may list, and notifies it of differences.

    Each poll costs one query for all listeners and one more for all watched resources. Without listeners there is none.
    """

    def __init__(
        self, services: Services, token_verifiers: TokenVerifiers, registry: Registry, runs: Runs
    ) -> None:
        self._services = services
        self._registry = registry
        self._runs = runs
        self._token_verifiers = token_verifiers
        self._offered_names: dict[type, tuple[str, ...]] = {
            ToolsListChanged: tuple(sorted(registry.tools)),
            PromptsListChanged: tuple(sorted(registry.prompts)),
            ResourcesListChanged: tuple(sorted(registry.resources)),
        }
        self._listeners: set[_ChangeListener] = set()
        self._polling_task: asyncio.Task[None] | None = None
        self._change_times: Mapping[str, datetime] = {}
        self._listen_handler = ListenHandler(self)

    async def open_listen_stream(
        self, context: RequestContext, request_params: SubscriptionsListenRequestParams, endpoint: McpEndpoint
    ) -> SubscriptionsListenResult:
        """Handle subscriptions/listen: a stream that ends when the token of its request expires or is revoked."""
        watched_uris = set(request_params.notifications.resource_subscriptions or ())
        if len(watched_uris) > _MAX_WATCHED_RESOURCES:
            raise MCPError(
                INVALID_PARAMS, f"One stream watches {_MAX_WATCHED_RESOURCES:,} resources at most."
            )
        # The current state is read before the client hears that it is subscribed, so that no later change is missed.
        _current_listener.set(await self._create_listener(endpoint.identify_caller(), watched_uris))
        access_token = get_access_token()
        remaining_seconds = (
            None
            if access_token is None or access_token.expires_at is None
            else access_token.expires_at - time.time()
        )
        with anyio.move_on_after(remaining_seconds) as stream_scope:

            async def end_when_token_invalid() -> None:
                await wait_until_invalid(
                    self._token_verifiers[endpoint.url_path],
                    "" if access_token is None else access_token.token,
                )
                stream_scope.cancel()

            ending_task = asyncio.create_task(end_when_token_invalid())
            try:
                return await self._listen_handler(context, request_params)
            finally:
                ending_task.cancel()
        return SubscriptionsListenResult(meta={SUBSCRIPTION_ID_META_KEY: context.request_id})

    async def handle_initialized(
        self, context: RequestContext, request_params: NotificationParams | None, endpoint: McpEndpoint
    ) -> None:
        """Handle notifications/initialized: from now on the legacy session is notified on the stream it keeps open."""
        del request_params
        mcp_session, sending_tasks = context.session, set[asyncio.Task[None]]()
        list_senders = {
            ToolsListChanged: mcp_session.send_tool_list_changed,
            PromptsListChanged: mcp_session.send_prompt_list_changed,
            ResourcesListChanged: mcp_session.send_resource_list_changed,
        }

        def send_event(server_event: ServerEvent) -> None:
            if isinstance(server_event, ResourceUpdated):
                sending_task = asyncio.create_task(mcp_session.send_resource_updated(server_event.uri))
            else:
                sending_task = asyncio.create_task(list_senders[type(server_event)]())
            sending_tasks.add(sending_task)
            sending_task.add_done_callback(sending_tasks.discard)

        # Stored at once, for requests that arrive before the database has answered.
        listener_task = asyncio.create_task(self._create_listener(endpoint.identify_caller(), set()))
        get_session_state(context)[_LISTENER_KEY] = listener_task
        listener = await listener_task
        # The SDK has no public way to run something at the end of a session.
        mcp_session._connection.exit_stack.callback(self._add_listener(listener, send_event))  # noqa: SLF001

    async def subscribe_resource(
        self, context: RequestContext, request_params: SubscribeRequestParams, endpoint: McpEndpoint
    ) -> EmptyResult:
        """Handle resources/subscribe: notify the session of changes of one resource from now on."""
        listener = await _find_session_listener(context)
        try:
            resource, _ = self._registry.find_resource(request_params.uri)
            await self._runs.require_allowed(resource.name, endpoint.identify_caller())
        except BylineError as error:
            raise to_mcp_error(error, uri=request_params.uri) from error
        if len(listener.watched_uris) >= _MAX_WATCHED_RESOURCES:
            raise MCPError(
                INVALID_PARAMS, f"One session watches {_MAX_WATCHED_RESOURCES:,} resources at most."
            )
        if not self._has_watched_resources():
            self._change_times = await self._read_recent_changes()
        listener.watched_uris.add(request_params.uri)
        return EmptyResult()

    async def unsubscribe_resource(
        self, context: RequestContext, request_params: UnsubscribeRequestParams, endpoint: McpEndpoint
    ) -> EmptyResult:
        """Handle resources/unsubscribe: stop notifying the session of changes of this resource."""
        del endpoint
        (await _find_session_listener(context)).watched_uris.discard(request_params.uri)
        return EmptyResult()

    async def publish(self, event: ServerEvent) -> None:
        """Do nothing. The SDK's SubscriptionBus requires this method, but nobody publishes here."""

    def subscribe(self, listener: EventSender) -> Callable[[], None]:
        """Register a stream that opens, as the SDK's SubscriptionBus requires; returns the function that removes it."""
        return self._add_listener(_current_listener.get(), listener)

    async def _create_listener(self, caller: Caller, watched_uris: set[str]) -> _ChangeListener:
        if watched_uris and not self._has_watched_resources():
            self._change_times = await self._read_recent_changes()
        access_rights = (
            self._services.policy.rules_in_force,
            await self._services.roles.list_roles(caller.principal.id),
        )
        return _ChangeListener(
            caller, access_rights, self._list_allowed_names(caller, access_rights), watched_uris
        )

    def _add_listener(self, listener: _ChangeListener, send_event: EventSender) -> Callable[[], None]:
        listener.send_event = send_event
        self._listeners.add(listener)
        if self._polling_task is None or self._polling_task.done():
            self._polling_task = asyncio.create_task(self._poll_changes())
        return lambda: self._listeners.discard(listener)

    async def _poll_changes(self) -> None:
        while self._listeners:
            with contextlib.suppress(OSError, SQLAlchemyError):
                await self._compare_lists()
                if self._has_watched_resources():
                    await self._compare_resources()
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)

    async def _compare_lists(self) -> None:
        listeners = list(self._listeners)
        roles_by_principal = await self._services.roles.list_roles_by_principal(
            {change_listener.caller.principal.id for change_listener in listeners}
        )
        policy_rules = self._services.policy.rules_in_force
        for listener in listeners:
            access_rights = policy_rules, roles_by_principal[listener.caller.principal.id]
            if listener.access_rights == access_rights:
                continue
            earlier_names, listed_names = (
                listener.listed_names,
                self._list_allowed_names(listener.caller, access_rights),
            )
            listener.access_rights, listener.listed_names = access_rights, listed_names
            for event_type in self._offered_names:
                if earlier_names[event_type] != listed_names[event_type]:
                    listener.send_event(event_type())

    async def _compare_resources(self) -> None:
        earlier_times, self._change_times = self._change_times, await self._read_recent_changes()
        changed_uris = {
            uri for uri, changed_at in self._change_times.items() if earlier_times.get(uri) != changed_at
        }
        for listener in list(self._listeners):
            for uri in changed_uris & listener.watched_uris:
                if self._may_read(listener, uri):
                    listener.send_event(ResourceUpdated(uri))

    def _list_allowed_names(self, caller: Caller, access_rights: AccessRights) -> dict[type, tuple[str, ...]]:
        policy_rules, principal_roles = access_rights
        return {
            event_type: tuple(
                offer_name
                for offer_name in offered_names
                if caller.covers_tool(offer_name) and policy_rules.may_call(offer_name, principal_roles)
            )
            for event_type, offered_names in self._offered_names.items()
        }

    def _may_read(self, listener: _ChangeListener, uri: str) -> bool:
        try:
            resource, _ = self._registry.find_resource(uri)
        except ResourceUnknown:
            return False
        return resource.name in listener.listed_names[ResourcesListChanged]

    def _has_watched_resources(self) -> bool:
        return any(listener.watched_uris for listener in self._listeners)

    async def _read_recent_changes(self) -> Mapping[str, datetime]:
        return await self._services.resource_changes.list_changes_since(datetime.now(UTC) - _CHANGE_WINDOW)


async def _find_session_listener(context: RequestContext) -> _ChangeListener:
    listener_task: asyncio.Task[_ChangeListener] | None = get_session_state(context).get(_LISTENER_KEY)
    if listener_task is None:
        raise MCPError(METHOD_NOT_FOUND, "Resources are watched in a session that was initialized.")
    return await asyncio.shield(listener_task)
