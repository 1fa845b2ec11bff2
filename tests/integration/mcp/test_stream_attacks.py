"""Holds what an MCP client hears over a long time to its token, and to the person whom that acts for."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from gateway.toolsets import MCP_PATH
from tests.support.administration import set_active
from tests.support.api_server import ApiServer, serve_api
from tests.support.gateway_processes import RawMcpClient
from tests.support.platform import Platform


async def _drain_notifications(notifications: AsyncIterator[Any]) -> None:
    async for _ in notifications:
        pass


async def _listen_until_closed(
    api_server: ApiServer, bearer: str, begun_event: asyncio.Event, *, modern: bool
) -> None:
    """Hear a stream to its end, or to where it is cut off."""
    async with httpx2.AsyncClient(timeout=90) as http:
        by_hand = RawMcpClient(http, f"{api_server.url}{MCP_PATH}", bearer)
        if modern:
            async with by_hand.open_listener() as notifications:
                begun_event.set()
                await _drain_notifications(notifications)
        else:
            async with by_hand.open_stream(await by_hand.open_session()) as stream:
                begun_event.set()
                await _drain_notifications(stream.aiter_lines())


async def test_nobody_hears_more_once_their_token_is_revoked_or_they_are_deactivated(
    idle_platform: Platform,
) -> None:
    services = idle_platform.services
    async with serve_api(idle_platform, mcp=True) as api_server:
        revoked_person, deactivated_person, stays = [
            await api_server.add_person(name, name.title()) for name in ("ann", "bob", "cleo")
        ]
        api_tokens = {
            who.id: await services.api_tokens.create_token(who, "laptop")
            for who in (revoked_person, deactivated_person, stays)
        }
        begun_events = {
            (who.id, modern): asyncio.Event()
            for who in (revoked_person, deactivated_person, stays)
            for modern in (True, False)
        }
        hearing = {
            (who, modern): asyncio.create_task(
                _listen_until_closed(api_server, api_tokens[who].token_text, event, modern=modern)
            )
            for (who, modern), event in begun_events.items()
        }
        over = [task for (who, _), task in hearing.items() if who != stays.id]
        left = [task for (who, _), task in hearing.items() if who == stays.id]
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(event.wait() for event in begun_events.values()))
                await services.api_tokens.revoke_token(
                    api_tokens[revoked_person.id].api_token.id, revoked_person
                )
                await set_active(services, deactivated_person.id, is_active=False)
                results = await asyncio.gather(*over, return_exceptions=True)
            still_hears = not any(task.done() for task in left)
        finally:
            for task in hearing.values():
                task.cancel()
            await asyncio.wait(hearing.values())

    # One of an older protocol is cut off, as by a client that left.
    assert all(result is None or isinstance(result, httpx2.RemoteProtocolError) for result in results), (
        results
    )
    assert still_hears
