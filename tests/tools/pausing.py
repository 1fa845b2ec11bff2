"""A composite tool whose one action makes two requests and, between them, lets a test do what it will."""

import asyncio
from datetime import timedelta

from pydantic import BaseModel
from temporalio import workflow

from engine.sdk import action, tool, upstream

BETWEEN, GO_ON = asyncio.Event(), asyncio.Event()


class Twice(BaseModel):
    """Which account to read."""

    account_id: str


class Seen(BaseModel):
    """What the upstream said to the second request."""

    status: int


@action("tests.read_twice", connection="crm", reads_only=True)
async def read_twice(account_id: str) -> Seen:
    """Read it, pause, and read it again."""
    path = f"/services/data/v63.0/sobjects/Account/{account_id}"
    await upstream().get(path)
    BETWEEN.set()
    await GO_ON.wait()
    return Seen(status=(await upstream().get(path)).status_code)


@tool(title="Read twice", read_only=True)
@workflow.defn(name="read_twice")
class ReadTwice:
    """Reads one account twice in one action."""

    @workflow.run
    async def run(self, twice: Twice) -> Seen:
        """Do it."""
        return await workflow.execute_activity(
            read_twice, twice.account_id, start_to_close_timeout=timedelta(seconds=60)
        )
