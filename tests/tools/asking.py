"""Composite tools that ask: the caller, somebody else, the caller's client; none knows how they are asked."""

import asyncio
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, Field
from temporalio import workflow
from temporalio.exceptions import ApplicationError

from engine.sdk import approval, ask, progress, roots, sample, tool


class Matching(BaseModel):
    """What to look for, and how many seconds to wait for an answer."""

    name: str
    seconds: float | None = None


class Choice(BaseModel):
    """Which account is meant."""

    account: Literal["Northwind", "Contoso"] = Field(description="As the CRM spells it.")
    discount: int = Field(default=0, ge=0, le=50)
    note: str | None = None
    urgent: bool = False


class Chosen(BaseModel):
    """What the person chose."""

    account: str
    discount: int
    note: str | None
    urgent: bool


class Refund(BaseModel):
    """How much to give back to whom, and how many seconds to wait for somebody to agree."""

    amount: int
    to: str
    seconds: float | None = None


class Refunded(BaseModel):
    """Who agreed."""

    approved_by: str


class Rescued(BaseModel):
    """Why nothing was chosen."""

    because: str


def _limit(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


@tool(title="Choose an account", read_only=True)
@workflow.defn(name="choose_account")
class ChooseAccount:
    """Asks which account is meant."""

    @workflow.run
    async def run(self, matching: Matching) -> Chosen:
        """Ask, and say what was answered."""
        question = f"Two accounts match {matching.name}. Which one?"
        choice = await ask(question, Choice, timeout=_limit(matching.seconds))
        return Chosen(**choice.model_dump())


@tool(title="Have a child choose", read_only=True)
@workflow.defn(name="choose_in_a_child")
class ChooseInAChild:
    """Leaves the question to a child."""

    @workflow.run
    async def run(self, matching: Matching) -> Chosen:
        """Start it."""
        progress("Asking", done=1, of=3)
        chosen = await workflow.execute_child_workflow(ChooseAccount.run, matching)
        progress("Asked", done=3, of=3)
        return chosen


@tool(title="Go on without an answer", read_only=True)
@workflow.defn(name="choose_or_go_on")
class ChooseOrGoOn:
    """Has something else to do where nobody answers."""

    @workflow.run
    async def run(self, matching: Matching) -> Rescued:
        """Catch what ends the wait."""
        try:
            await ask("Which one?", Choice, timeout=_limit(matching.seconds))
        except ApplicationError as error:
            return Rescued(because=error.type or "")
        return Rescued(because="answered")


@tool(title="Refund")
@workflow.defn(name="refund")
class RefundMoney:
    """Gives money back once somebody who may say so agrees."""

    @workflow.run
    async def run(self, refund: Refund) -> Refunded:
        """Ask for approval."""
        approver = await approval(
            f"Refund {refund.amount} EUR to {refund.to}?",
            role="refund-approver",
            timeout=_limit(refund.seconds),
        )
        return Refunded(approved_by=approver.name)


class Guest(BaseModel):
    """Who eats."""

    name: str


class Lunch(BaseModel):
    """What to eat."""

    size: str = Field(
        json_schema_extra={"oneOf": [{"const": "s", "title": "Small"}, {"const": "l", "title": "Large"}]}
    )
    on_top: list[Literal["cheese", "olives", "basil"]] = Field(default=["cheese"], max_length=2)


class Written(BaseModel):
    """What the client's model wrote, and what the client works on."""

    text: str
    roots: list[str]


@tool(title="Order lunch", read_only=True)
@workflow.defn(name="order_lunch")
class OrderLunch:
    """Asks what to eat."""

    @workflow.run
    async def run(self, guest: Guest) -> Lunch:
        """Ask, and say what was chosen."""
        return await ask(f"What would {guest.name} like?", Lunch)


@tool(title="Ask the client", read_only=True)
@workflow.defn(name="ask_the_client")
class AskTheClient:
    """Asks the client's model, and what the client works on."""

    @workflow.run
    async def run(self) -> Written:
        """Ask for both at once."""
        text, folders = await asyncio.gather(
            sample("Say hello.", max_tokens=20, system="Be short.", name="greeting"), roots(name="folders")
        )
        return Written(text=text, roots=[root.uri for root in folders])
