"""Notify clients of changed lists and resources. It polls the database, so changes by any process are found."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import TokenVerifier
from mcp.server.session import ServerSession
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

from engine.db.watch import Watch
from engine.errors import BylineError, ResourceUnknown
from engine.identity.roles import Roles
from engine.policy.policy import Policy, PolicyFile
from engine.runs.runs import Caller, Runs
from engine.tools.registry import Registry
from engine.tools.resource_changes import ResourceChanges
from gateway.bearer.verifiers import wait_until_invalid
from gateway.mcp.exchange.client_abilities import get_session_state
from gateway.mcp.mcp_request import McpRequest, RequestContext
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
    listed_names: Mapping[type, list[str]]
    watched_uris: set[str]
    send_event: EventSender = field(default=lambda _: None)


_current_listener: ContextVar[_ChangeListener] = ContextVar("byline_listening")


class ChangeNotifier:
    """Polls, while any client listens, what its principal may list, and notifies it of differences.

    Each poll costs one query for all listeners and one more for all watched resources. Without listeners there is none.
    """

    def __init__(
        self,
        registry: Registry,
        runs: Runs,
        policy: Policy,
        roles: Roles,
        resource_changes: ResourceChanges,
        token_verifiers: Mapping[str, TokenVerifier],
    ) -> None:
        self._registry = registry
        self._runs = runs
        self._policy = policy
        self._roles = roles
        self._resource_changes = resource_changes
        self._token_verifiers = token_verifiers
        self._offers: Mapping[type, Collection[str]] = {
            ToolsListChanged: registry.tools,
            PromptsListChanged: registry.prompts,
            ResourcesListChanged: registry.resources,
        }
        self._watch = Watch[_ChangeListener](self._send_changes, interval_seconds=_POLL_INTERVAL_SECONDS)
        self._change_times: Mapping[str, datetime] = {}
        self._listen_handler = ListenHandler(self)

    async def open_listen_stream(
        self, request: McpRequest[SubscriptionsListenRequestParams]
    ) -> SubscriptionsListenResult:
        """Handle subscriptions/listen: a stream that ends when the token of its request expires or is revoked."""
        watched_uris = set(request.params.notifications.resource_subscriptions or ())
        if len(watched_uris) > _MAX_WATCHED_RESOURCES:
            raise MCPError(
                INVALID_PARAMS, f"One stream watches {_MAX_WATCHED_RESOURCES:,} resources at most."
            )
        # The current state is read before the client hears that it is subscribed, so that no later change is missed.
        _current_listener.set(await self._create_listener(request.caller, watched_uris))
        access_token = get_access_token()
        remaining_seconds = (
            None
            if access_token is None or access_token.expires_at is None
            else access_token.expires_at - time.time()
        )
        with anyio.move_on_after(remaining_seconds) as stream_scope:

            async def end_when_token_invalid() -> None:
                await wait_until_invalid(
                    self._token_verifiers[request.endpoint.url_path],
                    "" if access_token is None else access_token.token,
                )
                stream_scope.cancel()

            ending_task = asyncio.create_task(end_when_token_invalid())
            try:
                return await self._listen_handler(request.context, request.params)
            finally:
                ending_task.cancel()
        return SubscriptionsListenResult(meta={SUBSCRIPTION_ID_META_KEY: request.context.request_id})

    async def handle_initialized(self, request: McpRequest[NotificationParams | None]) -> None:
        """Handle notifications/initialized: from now on the legacy session is notified on the stream it keeps open."""
        # Stored at once, for requests that arrive before the database has answered.
        listener_task = asyncio.create_task(self._create_listener(request.caller, set()))
        get_session_state(request.context)[_LISTENER_KEY] = listener_task
        listener = await listener_task
        mcp_session = request.context.session
        remove_listener = self._add_listener(listener, _create_session_sender(mcp_session))
        # The SDK has no public way to run something at the end of a session.
        mcp_session._connection.exit_stack.callback(remove_listener)  # noqa: SLF001

    async def subscribe_resource(self, request: McpRequest[SubscribeRequestParams]) -> EmptyResult:
        """Handle resources/subscribe: notify the session of changes of one resource from now on."""
        listener, resource_uri = await _find_session_listener(request.context), request.params.uri
        try:
            resource, _ = self._registry.find_resource(resource_uri)
            await self._runs.require_allowed(resource.name, request.caller)
        except BylineError as error:
            raise to_mcp_error(error, uri=resource_uri) from error
        if len(listener.watched_uris) >= _MAX_WATCHED_RESOURCES:
            raise MCPError(
                INVALID_PARAMS, f"One session watches {_MAX_WATCHED_RESOURCES:,} resources at most."
            )
        if not self._has_watched_resources():
            self._change_times = await self._read_recent_changes()
        listener.watched_uris.add(resource_uri)
        return EmptyResult()

    async def unsubscribe_resource(self, request: McpRequest[UnsubscribeRequestParams]) -> EmptyResult:
        """Handle resources/unsubscribe: stop notifying the session of changes of this resource."""
        (await _find_session_listener(request.context)).watched_uris.discard(request.params.uri)
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
            self._policy.rules_in_force,
            await self._roles.list_roles(caller.principal.id),
        )
        return _ChangeListener(
            caller, access_rights, self._list_allowed_names(caller, access_rights), watched_uris
        )

    def _add_listener(self, listener: _ChangeListener, send_event: EventSender) -> Callable[[], None]:
        listener.send_event = send_event
        self._watch.add(listener)
        return lambda: self._watch.remove(listener)

    async def _send_changes(self) -> None:
        await self._compare_lists()
        if self._has_watched_resources():
            await self._compare_resources()

    async def _compare_lists(self) -> None:
        listeners = list(self._watch.watchers)
        roles_by_principal = await self._roles.list_roles_by_principal(
            {change_listener.caller.principal.id for change_listener in listeners}
        )
        policy_rules = self._policy.rules_in_force
        for listener in listeners:
            access_rights = policy_rules, roles_by_principal[listener.caller.principal.id]
            if listener.access_rights == access_rights:
                continue
            earlier_names, listed_names = (
                listener.listed_names,
                self._list_allowed_names(listener.caller, access_rights),
            )
            listener.access_rights, listener.listed_names = access_rights, listed_names
            for event_type in self._offers:
                if earlier_names[event_type] != listed_names[event_type]:
                    listener.send_event(event_type())

    async def _compare_resources(self) -> None:
        earlier_times, self._change_times = self._change_times, await self._read_recent_changes()
        changed_uris = {
            uri for uri, changed_at in self._change_times.items() if earlier_times.get(uri) != changed_at
        }
        for listener in list(self._watch.watchers):
            for uri in changed_uris & listener.watched_uris:
                if self._may_read(listener, uri):
                    listener.send_event(ResourceUpdated(uri))

    def _list_allowed_names(self, caller: Caller, access_rights: AccessRights) -> dict[type, list[str]]:
        policy_rules, principal_roles = access_rights
        return {
            event_type: policy_rules.select_allowed(caller.select_covered(offered_names), principal_roles)
            for event_type, offered_names in self._offers.items()
        }

    def _may_read(self, listener: _ChangeListener, uri: str) -> bool:
        try:
            resource, _ = self._registry.find_resource(uri)
        except ResourceUnknown:
            return False
        return resource.name in listener.listed_names[ResourcesListChanged]

    def _has_watched_resources(self) -> bool:
        return any(listener.watched_uris for listener in self._watch.watchers)

    async def _read_recent_changes(self) -> Mapping[str, datetime]:
        return await self._resource_changes.list_changes_since(datetime.now(UTC) - _CHANGE_WINDOW)


def _create_session_sender(mcp_session: ServerSession) -> EventSender:
    """Create the function that sends an event to a legacy client, on the stream that its session keeps open."""
    sending_tasks: set[asyncio.Task[None]] = set()
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

    return send_event


async def _find_session_listener(context: RequestContext) -> _ChangeListener:
    listener_task: asyncio.Task[_ChangeListener] | None = get_session_state(context).get(_LISTENER_KEY)
    if listener_task is None:
        raise MCPError(METHOD_NOT_FOUND, "Resources are watched in a session that was initialized.")
    return await asyncio.shield(listener_task)
