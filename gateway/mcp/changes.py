"""Tells clients that what they may list has changed, whoever changed it and in which process: it looks for itself."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.subscriptions import (
    SUBSCRIPTION_ID_META_KEY,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ServerEvent,
    ToolsListChanged,
)
from mcp_types import NotificationParams, SubscriptionsListenRequestParams, SubscriptionsListenResult
from sqlalchemy.exc import SQLAlchemyError

from engine.registry import Registry
from engine.services import Services
from gateway.mcp.clients import Context
from gateway.mcp.toolsets import Endpoint
from gateway.runs import Caller

_LOOK_EVERY_SECONDS: Final = 0.25

_listening: ContextVar[Caller] = ContextVar("byline_listening")

Tell = Callable[[ServerEvent], None]


@dataclass(eq=False)
class _Listener:
    caller: Caller
    tell: Tell
    rights: object = None
    lists: dict[type, tuple[str, ...]] = field(default_factory=dict)


class ListChanges:
    """Compares, for every client that listens, what its principal may list now with what it was a moment ago.

    A look costs one query for all who listen, and none where nobody does.
    """

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._offers: dict[type, tuple[str, ...]] = {
            ToolsListChanged: tuple(sorted(registry.tools)),
            PromptsListChanged: tuple(sorted(registry.prompts)),
            ResourcesListChanged: tuple(sorted(registry.resources)),
        }
        self._listeners: set[_Listener] = set()
        self._looking: asyncio.Task[None] | None = None
        self._streams = ListenHandler(self)

    async def listen(
        self, context: Context, params: SubscriptionsListenRequestParams, at: Endpoint
    ) -> SubscriptionsListenResult:
        """subscriptions/listen: a stream that ends with the token that it was opened with."""
        _listening.set(at.caller())
        token = get_access_token()
        left = None if token is None or token.expires_at is None else token.expires_at - time.time()
        with anyio.move_on_after(left):
            return await self._streams(context, params)
        return SubscriptionsListenResult(meta={SUBSCRIPTION_ID_META_KEY: context.request_id})

    async def initialized(self, context: Context, params: NotificationParams | None, at: Endpoint) -> None:
        """notifications/initialized: a legacy session hears of changes on the stream that it keeps open."""
        del params
        session, telling = context.session, set[asyncio.Task[None]]()
        sends = {
            ToolsListChanged: session.send_tool_list_changed,
            PromptsListChanged: session.send_prompt_list_changed,
            ResourcesListChanged: session.send_resource_list_changed,
        }

        def tell(event: ServerEvent) -> None:
            task = asyncio.create_task(sends[type(event)]())
            telling.add(task)
            task.add_done_callback(telling.discard)

        # The SDK has no public way from a session to its end.
        session._connection.exit_stack.callback(self._add(at.caller(), tell))  # noqa: SLF001

    async def publish(self, event: ServerEvent) -> None:
        """Part of what the SDK asks of a bus: here, nobody publishes."""

    def subscribe(self, listener: Tell) -> Callable[[], None]:
        """What the SDK asks of a bus when a stream opens; returns what to call when it ends."""
        return self._add(_listening.get(), listener)

    def _add(self, caller: Caller, tell: Tell) -> Callable[[], None]:
        listener = _Listener(caller, tell)
        self._listeners.add(listener)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return lambda: self._listeners.discard(listener)

    async def _look(self) -> None:
        while self._listeners:
            with contextlib.suppress(OSError, SQLAlchemyError):
                await self._compare()
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def _compare(self) -> None:
        listeners = list(self._listeners)
        roles = await self._services.roles.of_each({each.caller.principal.id for each in listeners})
        rules = self._services.policy.rules
        for listener in listeners:
            has = roles[listener.caller.principal.id]
            rights: tuple[Any, ...] = (rules, has)
            if listener.rights == rights:
                continue
            lists = {
                kind: tuple(
                    name for name in names if listener.caller.reaches(name) and rules.allows(name, has)
                )
                for kind, names in self._offers.items()
            }
            is_first, earlier = listener.rights is None, listener.lists
            listener.rights, listener.lists = rights, lists
            for kind in () if is_first else self._offers:
                if earlier[kind] != lists[kind]:
                    listener.tell(kind())
