import asyncio
import resource
from datetime import timedelta

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from engine.settings import LimitSettings
from gateway.http.body_limits import BodyLimitMiddleware
from gateway.server import raise_open_file_limit

LIMITS = LimitSettings(body=1_000_000, arrival=timedelta(seconds=5))
POST: Scope = {"type": "http", "method": "POST", "path": "/", "headers": []}


async def ignore_message(message: Message) -> None:
    raise AssertionError(message)


async def test_large_bodies_share_the_room_that_there_is_and_small_ones_need_none() -> None:
    under_way = 0
    enough = asyncio.Event()

    async def reader(_scope: Scope, receive: Receive, _send: Send) -> None:
        nonlocal under_way
        await receive()
        under_way += 1
        await enough.wait()

    limited_app = BodyLimitMiddleware(reader, LIMITS)

    def sending(size: int) -> Receive:
        async def receive() -> Message:
            return {"type": "http.request", "body": b" " * size, "more_body": False}

        return receive

    async with asyncio.TaskGroup() as group:
        for _ in range(34):
            group.create_task(limited_app(dict(POST), sending(1_000_000), ignore_message))
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as error_info:
            await limited_app(dict(POST), sending(1_000_000), ignore_message)
        small = group.create_task(limited_app(dict(POST), sending(60_000), ignore_message))
        await asyncio.sleep(0)
        enough.set()
    await small
    await limited_app(dict(POST), sending(1_000_000), ignore_message)

    assert error_info.value.status_code == 503
    assert under_way == 36


async def test_what_comes_after_a_body_may_take_its_time() -> None:
    gone_event = asyncio.Event()
    received_types: list[str] = []

    async def listener(_scope: Scope, receive: Receive, _send: Send) -> None:
        received_types.extend([(await receive())["type"], (await receive())["type"]])

    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone_event.wait()
        return {"type": "http.disconnect"}

    limited_app = BodyLimitMiddleware(
        listener, LIMITS.model_copy(update={"arrival": timedelta(seconds=0.01)})
    )
    asyncio.get_running_loop().call_later(0.1, gone_event.set)
    await limited_app(dict(POST), receive, ignore_message)

    assert received_types == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("declared_length", [b"1000001", b"9" * 18])
async def test_a_body_that_says_it_is_too_large_is_not_begun(declared_length: bytes) -> None:
    async def reader(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()

    async def never() -> Message:
        raise AssertionError("the body was asked for")

    scope = {**POST, "headers": [(b"content-length", declared_length)]}
    with pytest.raises(HTTPException) as error_info:
        await BodyLimitMiddleware(reader, LIMITS)(scope, never, ignore_message)

    assert error_info.value.status_code == 413


def test_a_gateway_may_open_a_file_for_each_connection() -> None:
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
        raise_open_file_limit(400)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (900, most)
        raise_open_file_limit(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (900, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
