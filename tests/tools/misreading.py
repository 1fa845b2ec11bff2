"""A composite tool whose action expects something else of the CRM than it answers."""

from datetime import timedelta

from pydantic import BaseModel
from temporalio import workflow

from engine.sdk import action, tool, upstream
from tests.tools.reading import Reading


class Ledger(BaseModel):
    """What an account is not."""

    balance: int


@action("test.misread_account", connection="crm", scopes=("api",), reads_only=True)
async def misread_account(account_id: str) -> Ledger:
    """Read an account as if it were a ledger."""
    answer = await upstream().get(
        f"/services/data/v63.0/sobjects/Account/{account_id}", record=f"account/{account_id}"
    )
    return Ledger.model_validate(answer.json())


@tool(title="Misread", read_only=True)
@workflow.defn(name="misread")
class MisreadWorkflow:
    """Take an account for a ledger."""

    @workflow.run
    async def run(self, reading: Reading) -> Ledger:
        """Read it wrongly."""
        return await workflow.execute_activity(
            misread_account, reading.account_id, start_to_close_timeout=timedelta(seconds=20)
        )
