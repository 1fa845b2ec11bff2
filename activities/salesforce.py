"""Actions on a Salesforce organisation through its REST API, version 63.0."""

from urllib.parse import quote

from pydantic import BaseModel

from engine.sdk import action, upstream

_OBJECTS = "/services/data/v63.0/sobjects"


class Account(BaseModel):
    """A CRM account and the id of its customer in billing."""

    id: str
    name: str
    billing_customer_id: str | None


@action("salesforce.read_account", connection="crm", scopes=("api",), reads_only=True)
async def read_account(account_id: str) -> Account:
    """Read one account (sObject Rows: `GET …/sobjects/Account/{id}`)."""
    path = f"{_OBJECTS}/Account/{quote(account_id, safe='')}"
    response = await upstream().get(path, record=f"account/{account_id}")
    found = response.json()
    return Account(id=found["Id"], name=found["Name"], billing_customer_id=found.get("Stripe_Customer_Id__c"))
