import asyncio

import pytest

from engine.db.watch import Watch


async def test_nothing_is_polled_unless_somebody_watches() -> None:
    polled = asyncio.Event()

    async def poll() -> None:
        polled.set()

    watch = Watch[str](poll, interval_seconds=0.01)
    with watch.include("first"):
        await asyncio.wait_for(polled.wait(), 5)
    await asyncio.sleep(0.05)
    polled.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(polled.wait(), 0.1)
    watch.add("second")
    await asyncio.wait_for(polled.wait(), 5)
    watch.remove("second")


async def test_a_poll_that_finds_no_database_is_tried_again() -> None:
    attempts: list[str] = []
    tried_twice = asyncio.Event()

    async def poll() -> None:
        attempts.append("attempt")
        if len(attempts) > 1:
            tried_twice.set()
        raise ConnectionRefusedError

    with Watch[str](poll, interval_seconds=0.01).include("watcher"):
        await asyncio.wait_for(tried_twice.wait(), 5)
