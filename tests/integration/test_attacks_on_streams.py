"""Holds what an MCP client hears over a long time to its token, and to the person whom that acts for."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from gateway.toolsets import MCP_PATH
from tests.administration import set_active
from tests.gateways import ByHand
from tests.platform import Platform
from tests.rest import Rest, serving


async def _to_the_end(told: AsyncIterator[Any]) -> None:
    async for _ in told:
        pass


async def _ends(rest: Rest, bearer: str, begun: asyncio.Event, *, modern: bool) -> None:
    """Hear a stream to its end, or to where it is cut off."""
    async with httpx2.AsyncClient(timeout=90) as http:
        by_hand = ByHand(http, f"{rest.url}{MCP_PATH}", bearer)
        if modern:
            async with by_hand.listening() as told:
                begun.set()
                await _to_the_end(told)
        else:
            async with by_hand.stream(await by_hand.open_session()) as stream:
                begun.set()
                await _to_the_end(stream.aiter_lines())


async def test_nobody_hears_more_once_their_token_is_revoked_or_they_are_deactivated(idle: Platform) -> None:
    services = idle.services
    async with serving(idle, mcp=True) as rest:
        revoked, gone, stays = [await rest.person(name, name.title()) for name in ("ann", "bob", "cleo")]
        made = {
            who.id: await services.api_tokens.create_token(who, "laptop") for who in (revoked, gone, stays)
        }
        begun = {
            (who.id, modern): asyncio.Event() for who in (revoked, gone, stays) for modern in (True, False)
        }
        hearing = {
            (who, modern): asyncio.create_task(_ends(rest, made[who].token_text, event, modern=modern))
            for (who, modern), event in begun.items()
        }
        over = [task for (who, _), task in hearing.items() if who != stays.id]
        left = [task for (who, _), task in hearing.items() if who == stays.id]
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(event.wait() for event in begun.values()))
                await services.api_tokens.revoke_token(made[revoked.id].api_token.id, revoked)
                await set_active(services, gone.id, is_active=False)
                ended = await asyncio.gather(*over, return_exceptions=True)
            heard = not any(task.done() for task in left)
        finally:
            for task in hearing.values():
                task.cancel()
            await asyncio.wait(hearing.values())

    # One of an older protocol is cut off, as by a client that left.
    assert all(each is None or isinstance(each, httpx2.RemoteProtocolError) for each in ended), ended
    assert heard
