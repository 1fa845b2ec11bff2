"""A prompt and resources on the CRM, and a tool that says that one of them changed; none knows a person."""

from datetime import timedelta
from enum import StrEnum

from pydantic import BaseModel, Field
from temporalio import workflow

from activities.salesforce import Account, read_account
from engine.sdk import Document, Message, Messages, Text, changed, prompt, resource, tool

_STEP = timedelta(seconds=20)


class Tone(StrEnum):
    """How to speak."""

    PLAIN = "plain"
    POLITE = "polite"


class Letter(BaseModel):
    """Whom to write to, and how."""

    account_id: str = Field(description="The account's id in the CRM.")
    tone: Tone = Tone.PLAIN


class Which(BaseModel):
    """An account."""

    account_id: str


async def _read(account_id: str) -> Account:
    return await workflow.execute_activity(read_account, account_id, start_to_close_timeout=_STEP)


@prompt(title="Write a letter")
@workflow.defn(name="letter")
class LetterPrompt:
    """Begins a letter to an account."""

    @workflow.run
    async def run(self, letter: Letter) -> Messages:
        """Name it."""
        account = await _read(letter.account_id)
        return Messages([Message("user", Text(f"Write a {letter.tone} letter to {account.name}."))])


@resource(uri="crm://accounts/{account_id}", title="An account", mime_type="application/json")
@workflow.defn(name="account")
class AccountResource:
    """An account of the CRM."""

    @workflow.run
    async def run(self, which: Which) -> Document:
        """Read it."""
        return Document((await _read(which.account_id)).model_dump_json())


@resource(uri="crm://help", title="Help", mime_type="text/plain")
@workflow.defn(name="crm_help")
class HelpResource:
    """What accounts are."""

    @workflow.run
    async def run(self) -> Document:
        """Say it."""
        return Document("An account is a customer.")


@tool(title="Say that an account changed")
@workflow.defn(name="say_account_changed")
class SayAccountChanged:
    """Tells whoever watches the account."""

    @workflow.run
    async def run(self, which: Which) -> None:
        """Tell it."""
        await changed(f"crm://accounts/{which.account_id}")
