"""Composite tools that take their time, as MCP clients are to know beforehand; none knows who calls it."""

import asyncio
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel
from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError
from temporalio.workflow import ActivityCancellationType

from activities.salesforce import Account, read_account
from engine.sdk import action, ask, progress, tool
from tests.tools.reading import Reading, ReadOnce

_STEP = timedelta(seconds=60)
_BEAT = 0.2


class Flavour(BaseModel):
    """What somebody likes."""

    flavour: Literal["sweet", "salty"]


class Flavours(BaseModel):
    """What somebody likes in the morning and in the evening."""

    morning: str
    evening: str


class Nothing(BaseModel):
    """No outcome to speak of."""


@tool(title="Read at length", read_only=True, long=True)
@workflow.defn(name="read_at_length")
class ReadAtLength:
    """Reads one account, which is known to take long."""

    @workflow.run
    async def run(self, reading: Reading) -> Account:
        """Read it."""
        return await workflow.execute_activity(read_account, reading.account_id, start_to_close_timeout=_STEP)


@tool(title="Ask twice", read_only=True, long=True)
@workflow.defn(name="ask_twice")
class AskTwice:
    """Asks two questions at once."""

    @workflow.run
    async def run(self) -> Flavours:
        """Ask both."""
        morning, evening = await asyncio.gather(
            ask("What in the morning?", Flavour), ask("What in the evening?", Flavour)
        )
        return Flavours(morning=morning.flavour, evening=evening.flavour)


@tool(title="Be a task", read_only=True, task="required")
@workflow.defn(name="be_a_task")
class BeATask:
    """Makes no sense but as a task."""

    @workflow.run
    async def run(self) -> Nothing:
        """Do nothing."""
        return Nothing()


@tool(title="Break the seal", read_only=True, long=True)
@workflow.defn(name="break_the_seal")
class BreakTheSeal:
    """Fails as the vault does."""

    @workflow.run
    async def run(self) -> Nothing:
        """Fail."""
        raise ApplicationError("The seal does not fit.", type="vault_seal_broken", non_retryable=True)


@action("tests.keep_at_it", connection="crm", reads_only=True)
async def keep_at_it(label: str) -> None:
    """Go on until cancelled; which labels have begun and were cancelled is for tests to see."""
    BEGUN_LABELS.add(label)
    try:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_BEAT)
    except asyncio.CancelledError:
        CANCELLED_LABELS.add(label)
        raise


BEGUN_LABELS: set[str] = set()
CANCELLED_LABELS: set[str] = set()


class Labelled(BaseModel):
    """What tells one call from another."""

    label: str


@workflow.defn(name="keep_a_child_at_it")
class KeepAChildAtIt:
    """The child whose action goes on."""

    @workflow.run
    async def run(self, labelled: Labelled) -> None:
        """Begin it."""
        await workflow.execute_activity(
            keep_at_it,
            labelled.label,
            start_to_close_timeout=_STEP,
            heartbeat_timeout=timedelta(seconds=10),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


@tool(title="Keep at it", read_only=True, on_cancel="cancel")
@workflow.defn(name="keep_at_it_while_called")
class KeepAtItWhileCalled:
    """Has a child do what never ends, for as long as somebody waits for it."""

    @workflow.run
    async def run(self, labelled: Labelled) -> Nothing:
        """Start the child."""
        await workflow.execute_child_workflow(KeepAChildAtIt.run, labelled)
        return Nothing()


@tool(title="Read in steps", read_only=True)
@workflow.defn(name="read_in_steps")
class ReadInSteps:
    """Tells how far it is while a child reads an account, once it was told to begin."""

    def __init__(self) -> None:
        self._is_told = False

    @workflow.run
    async def run(self, reading: Reading) -> Account:
        """Say it, read, say it, read again."""
        progress("Beginning", done=1, of=10)
        await workflow.wait_condition(lambda: self._is_told)
        account: Account = await workflow.execute_child_workflow(ReadOnce.run, reading)
        progress("Almost there", done=9, of=10)
        await workflow.execute_activity(read_account, reading.account_id, start_to_close_timeout=_STEP)
        return account

    @workflow.signal(name="word")
    def hear(self) -> None:
        """Begin."""
        self._is_told = True
