"""The second version of a composite tool: its child reads the account, which no open run of the first could replay."""

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
    """Reads an account and says its name in the manner of its version."""

    @workflow.run
    async def run(self, account_id: str) -> Introduction:
        """Read it and say it."""
        account = await workflow.execute_activity(read_account, account_id, start_to_close_timeout=_STEP)
        return Introduction(words=f"Please welcome {account.name}!", said_by=["v2"])


@tool(title="Introduce an account", read_only=True)
@workflow.defn(name="introduce_account")
class IntroduceAccount:
    """Introduces an account."""

    @workflow.run
    async def run(self, visitor: Visitor) -> Introduction:
        """Have it read and introduced."""
        introduction = await workflow.execute_child_workflow(PhraseIntroduction.run, visitor.account_id)
        return introduction.model_copy(update={"said_by": ["v2", *introduction.said_by]})
