"""Actions on a Salesforce organisation through its REST API, version 63.0."""

from urllib.parse import quote

from pydantic import BaseModel

from byline import action, upstream

_OBJECTS_PATH = "/services/data/v63.0/sobjects"


class Account(BaseModel):
    """A CRM account and the id of its customer in billing."""

    id: str
    name: str
    billing_customer_id: str | None


@action("salesforce.read_account", connection="crm", scopes=("api",), reads_only=True)
async def read_account(account_id: str) -> Account:
    """Read one account (sObject Rows: `GET …/sobjects/Account/{id}`)."""
    account_path = f"{_OBJECTS_PATH}/Account/{quote(account_id, safe='')}"
    response = await upstream().get(account_path, record=f"account/{account_id}")
    account_record = response.json()
    return Account(
        id=account_record["Id"],
        name=account_record["Name"],
        billing_customer_id=account_record.get("Stripe_Customer_Id__c"),
    )
