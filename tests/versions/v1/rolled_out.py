"""The first version of a composite tool: it reads the account itself, and has a child introduce it."""

from datetime import timedelta

from pydantic import BaseModel
from temporalio import workflow

from activities.salesforce import read_account
from engine.sdk import tool

_STEP = timedelta(seconds=20)


class Visitor(BaseModel):
    """Which account to introduce; the label tells one call from another."""

    account_id: str
    label: str = ""


class Introduction(BaseModel):
    """What is said of the account, and the versions of the code that said it."""

    words: str
    said_by: list[str]


@workflow.defn(name="phrase_introduction")
class PhraseIntroduction:
    """Says a name in the manner of its version."""

    @workflow.run
    async def run(self, name: str) -> Introduction:
        """Say it."""
        return Introduction(words=f"This is {name}.", said_by=["v1"])


@tool(title="Introduce an account", read_only=True)
@workflow.defn(name="introduce_account")
class IntroduceAccount:
    """Introduces an account."""

    @workflow.run
    async def run(self, visitor: Visitor) -> Introduction:
        """Read the account here, then have it introduced."""
        account = await workflow.execute_activity(
            read_account, visitor.account_id, start_to_close_timeout=_STEP
        )
        introduction = await workflow.execute_child_workflow(PhraseIntroduction.run, account.name)
        return introduction.model_copy(update={"said_by": ["v1", *introduction.said_by]})
