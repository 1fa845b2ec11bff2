"""Composite tools that read an account in the CRM, each on another way through Temporal; none knows a person."""

import asyncio
from contextlib import suppress
from datetime import timedelta

from pydantic import BaseModel
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from activities.salesforce import Account, read_account
from activities.zendesk import Ticket, read_ticket
from engine.sdk import tool

_STEP = timedelta(seconds=20)


class Reading(BaseModel):
    """Which account to read; the label tells one call from another."""

    account_id: str
    label: str = ""


class Journey(BaseModel):
    """How far to go before reading: runs to continue as new, levels of children, and where actions are worked on."""

    account_id: str
    levels: int = 0
    continued: int = 0
    task_queue: str | None = None


class Spread(BaseModel):
    """How many children read the account at once."""

    account_id: str
    width: int


class Following(BaseModel):
    """An account to read, and a ticket to read afterwards."""

    account_id: str
    ticket_id: int


class Onward(Following):
    """What to read, and how often to continue as new on the way."""

    continued: int = 0


class Word(BaseModel):
    """A run to send a word to."""

    to: str


class Names(BaseModel):
    """The names of the accounts that were read."""

    names: list[str]


@tool(title="Read once", read_only=True)
@workflow.defn(name="read_once")
class ReadOnce:
    """Reads one account."""

    @workflow.run
    async def run(self, reading: Reading) -> Account:
        """Read it."""
        return await workflow.execute_activity(read_account, reading.account_id, start_to_close_timeout=_STEP)


@tool(title="Think better of it", read_only=True)
@workflow.defn(name="think_better_of_it")
class ThinkBetterOfIt:
    """Starts to read and takes it back at once."""

    @workflow.run
    async def run(self, reading: Reading) -> Names:
        """Cancel before anything could have happened."""
        handle = workflow.start_activity(read_account, reading.account_id, start_to_close_timeout=_STEP)
        handle.cancel()
        with suppress(asyncio.CancelledError):
            await handle
        await workflow.sleep(timedelta(milliseconds=10))
        return Names(names=[])


@tool(title="Read at every level", read_only=True)
@workflow.defn(name="read_at_every_level")
class ReadAtEveryLevel:
    """Reads the account in each of the workflows that start one another, the deepest first."""

    @workflow.run
    async def run(self, journey: Journey) -> Names:
        """Go as far as asked, and read on the way back."""
        if journey.continued:
            workflow.continue_as_new(journey.model_copy(update={"continued": journey.continued - 1}))
        below: list[str] = []
        if journey.levels:
            rest = journey.model_copy(update={"levels": journey.levels - 1})
            below = (await workflow.execute_child_workflow(ReadAtEveryLevel.run, rest)).names
        account = await workflow.execute_activity(
            read_account, journey.account_id, task_queue=journey.task_queue, start_to_close_timeout=_STEP
        )
        return Names(names=[*below, account.name])


@tool(title="Read widely", read_only=True)
@workflow.defn(name="read_widely")
class ReadWidely:
    """Reads the account in many children at once."""

    @workflow.run
    async def run(self, spread: Spread) -> Names:
        """Start them all."""
        accounts = await asyncio.gather(
            *(
                workflow.execute_child_workflow(ReadOnce.run, Reading(account_id=spread.account_id))
                for _ in range(spread.width)
            )
        )
        return Names(names=[account.name for account in accounts])


@tool(title="Read locally", read_only=True)
@workflow.defn(name="read_locally")
class ReadLocally:
    """Reads the account by a local activity."""

    @workflow.run
    async def run(self, reading: Reading) -> Account:
        """Read it in the process of the workflow."""
        return await workflow.execute_local_activity(
            read_account, reading.account_id, start_to_close_timeout=_STEP
        )


@tool(title="Read at the second attempt", read_only=True)
@workflow.defn(name="read_at_second_attempt")
class ReadAtSecondAttempt:
    """Fails once as a whole before it reads."""

    @workflow.run
    async def run(self, reading: Reading) -> Account:
        """Fail, or read."""
        if workflow.info().attempt == 1:
            raise ApplicationError("not this time")
        return await workflow.execute_activity(read_account, reading.account_id, start_to_close_timeout=_STEP)


@tool(title="Start one that needs two attempts", read_only=True)
@workflow.defn(name="start_second_attempt")
class StartSecondAttempt:
    """Has a child that Temporal starts again as a whole."""

    @workflow.run
    async def run(self, reading: Reading) -> Account:
        """Start it with patience for two attempts."""
        return await workflow.execute_child_workflow(
            ReadAtSecondAttempt.run, reading, retry_policy=RetryPolicy(maximum_attempts=2)
        )


@tool(title="Read one after the other", read_only=True)
@workflow.defn(name="read_account_then_ticket")
class ReadAccountThenTicket:
    """Reads in the CRM, then in support."""

    @workflow.run
    async def run(self, following: Following) -> Ticket:
        """Read both."""
        await workflow.execute_activity(read_account, following.account_id, start_to_close_timeout=_STEP)
        return await workflow.execute_activity(read_ticket, following.ticket_id, start_to_close_timeout=_STEP)


@tool(title="Read again afterwards", read_only=True)
@workflow.defn(name="read_account_around_ticket")
class ReadAccountAroundTicket:
    """Reads in the CRM, then in support, and then in the CRM again."""

    @workflow.run
    async def run(self, following: Following) -> Names:
        """Read all three."""
        first = await workflow.execute_activity(
            read_account, following.account_id, start_to_close_timeout=_STEP
        )
        await workflow.execute_activity(read_ticket, following.ticket_id, start_to_close_timeout=_STEP)
        last = await workflow.execute_activity(
            read_account, following.account_id, start_to_close_timeout=_STEP
        )
        return Names(names=[first.name, last.name])


@tool(title="Read on", read_only=True)
@workflow.defn(name="read_on")
class ReadOn:
    """Reads in the CRM in each run of a chain, and in support in the last."""

    @workflow.run
    async def run(self, onward: Onward) -> Ticket:
        """Read, and continue as new as often as asked."""
        await workflow.execute_activity(read_account, onward.account_id, start_to_close_timeout=_STEP)
        if onward.continued:
            workflow.continue_as_new(onward.model_copy(update={"continued": onward.continued - 1}))
        ticket = await workflow.execute_activity(read_ticket, onward.ticket_id, start_to_close_timeout=_STEP)
        await workflow.execute_activity(read_account, onward.account_id, start_to_close_timeout=_STEP)
        return ticket


@tool(title="Leave it to another", read_only=True)
@workflow.defn(name="leave_it_to_another")
class LeaveItToAnother:
    """Ends at once, and leaves behind a workflow that reads on."""

    @workflow.run
    async def run(self, onward: Onward) -> None:
        """Start it, and wait for nothing."""
        await workflow.start_child_workflow(
            ReadOn.run,
            onward,
            id=f"{workflow.info().workflow_id}-left",
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
        )


@tool(title="Read when told", read_only=True)
@workflow.defn(name="read_when_told")
class ReadWhenTold:
    """Reads the account once somebody sends it the word."""

    def __init__(self) -> None:
        self._is_told = False

    @workflow.run
    async def run(self, reading: Reading) -> Account:
        """Wait for the word, and read."""
        await workflow.wait_condition(lambda: self._is_told)
        return await workflow.execute_activity(read_account, reading.account_id, start_to_close_timeout=_STEP)

    @workflow.signal(name="word")
    def hear(self) -> None:
        """Go on."""
        self._is_told = True


@tool(title="Send the word")
@workflow.defn(name="send_word")
class SendWord:
    """Tells another run to go on."""

    @workflow.run
    async def run(self, word: Word) -> None:
        """Signal it."""
        await workflow.get_external_workflow_handle(word.to).signal("word")
