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
from engine.policy import PolicyFile
from engine.registry import Registry
from engine.services import Services
from gateway.bearer import bearer_tokens
from gateway.bearer import refused as refused_token
from gateway.mcp.clients import Context, session_state
from gateway.mcp.endpoints import Endpoint
from gateway.mcp.fetching import refused
from gateway.runs.runs import Caller, Runs
from gateway.toolsets import mcp_paths

_LOOK_EVERY_SECONDS: Final = 0.25
_MOST_WATCHED: Final = 1_000
# Allows for clock differences between hosts, and for a database that is unreachable for a while.
_LOOK_BACK: Final = timedelta(minutes=1)
_LISTENER: Final = "byline_listener"

Tell = Callable[[ServerEvent], None]
Rights = tuple[PolicyFile, frozenset[str]]


@dataclass(eq=False)
class _Listener:
    caller: Caller
    rights: Rights
    lists: Mapping[type, tuple[str, ...]]
    watched: set[str]
    tell: Tell = field(default=lambda _: None)


_listening: ContextVar[_Listener] = ContextVar("byline_listening")


class Changes:
    """Polls, while any client listens, what its principal may list, and notifies it of differences.

    Each poll costs one query for all listeners and one more for all watched resources. Without listeners there is none.
    """

    def __init__(self, services: Services, registry: Registry, runs: Runs) -> None:
        self._services = services
        self._registry = registry
        self._runs = runs
        self._tokens = {path: bearer_tokens(services, path) for path in mcp_paths(services.settings)}
        self._offers: dict[type, tuple[str, ...]] = {
            ToolsListChanged: tuple(sorted(registry.tools)),
            PromptsListChanged: tuple(sorted(registry.prompts)),
            ResourcesListChanged: tuple(sorted(registry.resources)),
        }
        self._listeners: set[_Listener] = set()
        self._looking: asyncio.Task[None] | None = None
        self._changed: Mapping[str, datetime] = {}
        self._streams = ListenHandler(self)

    async def listen(
        self, context: Context, params: SubscriptionsListenRequestParams, at: Endpoint
    ) -> SubscriptionsListenResult:
        """Handle subscriptions/listen: a stream that ends when the token of its request expires or is revoked."""
        watched = set(params.notifications.resource_subscriptions or ())
        if len(watched) > _MOST_WATCHED:
            raise MCPError(INVALID_PARAMS, f"One stream watches {_MOST_WATCHED:,} resources at most.")
        # The current state is read before the client hears that it is subscribed, so that no later change is missed.
        _listening.set(await self._listener(at.caller(), watched))
        token = get_access_token()
        left = None if token is None or token.expires_at is None else token.expires_at - time.time()
        with anyio.move_on_after(left) as stream:

            async def end() -> None:
                await refused_token(self._tokens[at.path], "" if token is None else token.token)
                stream.cancel()

            ending = asyncio.create_task(end())
            try:
                return await self._streams(context, params)
            finally:
                ending.cancel()
        return SubscriptionsListenResult(meta={SUBSCRIPTION_ID_META_KEY: context.request_id})

    async def initialized(self, context: Context, params: NotificationParams | None, at: Endpoint) -> None:
        """Handle notifications/initialized: from now on the legacy session is notified on the stream it keeps open."""
        del params
        session, telling = context.session, set[asyncio.Task[None]]()
        sends = {
            ToolsListChanged: session.send_tool_list_changed,
            PromptsListChanged: session.send_prompt_list_changed,
            ResourcesListChanged: session.send_resource_list_changed,
        }

        def tell(event: ServerEvent) -> None:
            if isinstance(event, ResourceUpdated):
                task = asyncio.create_task(session.send_resource_updated(event.uri))
            else:
                task = asyncio.create_task(sends[type(event)]())
            telling.add(task)
            task.add_done_callback(telling.discard)

        # Stored at once, for requests that arrive before the database has answered.
        joining = asyncio.create_task(self._listener(at.caller(), set()))
        session_state(context)[_LISTENER] = joining
        listener = await joining
        # The SDK has no public way to run something at the end of a session.
        session._connection.exit_stack.callback(self._add(listener, tell))  # noqa: SLF001

    async def subscribe_resource(
        self, context: Context, params: SubscribeRequestParams, at: Endpoint
    ) -> EmptyResult:
        """Handle resources/subscribe: notify the session of changes of one resource from now on."""
        listener = await _of_session(context)
        try:
            resource, _ = self._registry.resource_at(params.uri)
            await self._runs.allow(resource.name, at.caller())
        except BylineError as error:
            raise refused(error, uri=params.uri) from error
        if len(listener.watched) >= _MOST_WATCHED:
            raise MCPError(INVALID_PARAMS, f"One session watches {_MOST_WATCHED:,} resources at most.")
        if not self._are_watched():
            self._changed = await self._recent()
        listener.watched.add(params.uri)
        return EmptyResult()

    async def unsubscribe_resource(
        self, context: Context, params: UnsubscribeRequestParams, at: Endpoint
    ) -> EmptyResult:
        """Handle resources/unsubscribe: stop notifying the session of changes of this resource."""
        del at
        (await _of_session(context)).watched.discard(params.uri)
        return EmptyResult()

    async def publish(self, event: ServerEvent) -> None:
        """Do nothing. The SDK's SubscriptionBus requires this method, but nobody publishes here."""

    def subscribe(self, listener: Tell) -> Callable[[], None]:
        """Register a stream that opens, as the SDK's SubscriptionBus requires; returns the function that removes it."""
        return self._add(_listening.get(), listener)

    async def _listener(self, caller: Caller, watched: set[str]) -> _Listener:
        if watched and not self._are_watched():
            self._changed = await self._recent()
        rights = self._services.policy.rules, await self._services.roles.of(caller.principal.id)
        return _Listener(caller, rights, self._lists(caller, rights), watched)

    def _add(self, listener: _Listener, tell: Tell) -> Callable[[], None]:
        listener.tell = tell
        self._listeners.add(listener)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return lambda: self._listeners.discard(listener)

    async def _look(self) -> None:
        while self._listeners:
            with contextlib.suppress(OSError, SQLAlchemyError):
                await self._compare_lists()
                if self._are_watched():
                    await self._compare_resources()
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def _compare_lists(self) -> None:
        listeners = list(self._listeners)
        roles = await self._services.roles.of_each({each.caller.principal.id for each in listeners})
        rules = self._services.policy.rules
        for listener in listeners:
            rights = rules, roles[listener.caller.principal.id]
            if listener.rights == rights:
                continue
            earlier, lists = listener.lists, self._lists(listener.caller, rights)
            listener.rights, listener.lists = rights, lists
            for kind in self._offers:
                if earlier[kind] != lists[kind]:
                    listener.tell(kind())

    async def _compare_resources(self) -> None:
        earlier, self._changed = self._changed, await self._recent()
        changed = {uri for uri, at in self._changed.items() if earlier.get(uri) != at}
        for listener in list(self._listeners):
            for uri in changed & listener.watched:
                if self._may_read(listener, uri):
                    listener.tell(ResourceUpdated(uri))

    def _lists(self, caller: Caller, rights: Rights) -> dict[type, tuple[str, ...]]:
        rules, has = rights
        return {
            kind: tuple(name for name in names if caller.reaches(name) and rules.allows(name, has))
            for kind, names in self._offers.items()
        }

    def _may_read(self, listener: _Listener, uri: str) -> bool:
        try:
            resource, _ = self._registry.resource_at(uri)
        except ResourceUnknown:
            return False
        return resource.name in listener.lists[ResourcesListChanged]

    def _are_watched(self) -> bool:
        return any(listener.watched for listener in self._listeners)

    async def _recent(self) -> Mapping[str, datetime]:
        return await self._services.changes.since(datetime.now(UTC) - _LOOK_BACK)


async def _of_session(context: Context) -> _Listener:
    joining: asyncio.Task[_Listener] | None = session_state(context).get(_LISTENER)
    if joining is None:
        raise MCPError(METHOD_NOT_FOUND, "Resources are watched in a session that was initialized.")
    return await asyncio.shield(joining)
