"""The CRM, in the form of Salesforce's REST API: it reads, queries and changes accounts."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Response

from examples.sandbox.access import Caller, caller_with
from examples.sandbox.people import NewPerson
from examples.sandbox.storage import Document
from examples.sandbox.system import OAuthPaths, RequestRefused, System

API = "/services/data/v63.0"
ORGANISATION = "00DD0000000FH8zMAG"
ALICE, BOB, INTEGRATION = "005D0000001KyEIIA0", "005D0000001KyFGIA0", "005D0000001KyGZIA0"
NORTHWIND, CONTOSO = "001D000000IRFmaIAP", "001D000000IqhSLIAZ"

# Field, Salesforce type, whether a PATCH may change it.
FIELDS = (
    ("Id", "id", False),
    ("Name", "string", True),
    ("Industry", "picklist", True),
    ("Phone", "phone", True),
    ("Description", "textarea", True),
    ("Stripe_Customer_Id__c", "string", True),
    ("OwnerId", "reference", True),
    ("CreatedDate", "datetime", False),
    ("LastModifiedDate", "datetime", False),
    ("LastModifiedById", "reference", False),
)
UPDATEABLE = {name for name, _, updateable in FIELDS if updateable}
CODES = {
    400: "JSON_PARSER_ERROR",
    401: "INVALID_SESSION_ID",
    403: "INSUFFICIENT_ACCESS_OR_READONLY",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "SERVER_UNAVAILABLE",
}
QUERY = re.compile(
    r"\s*SELECT\s+(?P<fields>\w+(?:\s*,\s*\w+)*)\s+FROM\s+(?P<object>\w+)"
    r"(?:\s+WHERE\s+(?P<field>\w+)\s*=\s*'(?P<value>(?:[^'\\]|\\.)*)')?(?:\s+LIMIT\s+(?P<limit>\d+))?\s*",
    re.IGNORECASE,
)

router = APIRouter(prefix=API)
ApiCaller = Annotated[Caller, Depends(caller_with("api"))]


@router.get("/sobjects/Account/describe")
async def describe(_caller: ApiCaller) -> Document:
    """Describe the fields of an account."""
    fields = [
        {"name": name, "label": name.removesuffix("__c"), "type": kind, "updateable": updateable}
        for name, kind, updateable in FIELDS
    ]
    return {"name": "Account", "label": "Account", "keyPrefix": "001", "queryable": True, "fields": fields}


@router.get("/sobjects/Account/{account_id}")
async def read_account(account_id: str, caller: ApiCaller, fields: str | None = None) -> Document:
    """Return one account, with all fields or only the named ones."""
    account = _account(caller, "read", account_id)
    return _present(account, [name.strip() for name in fields.split(",")] if fields else list(account))


@router.patch("/sobjects/Account/{account_id}")
async def change_account(
    account_id: str, changes: Annotated[dict[str, str | None], Body()], caller: ApiCaller
) -> Response:
    """Change fields of one account, and store who changed it."""
    account = _account(caller, "write", account_id)
    for name in changes:
        _require_field(name)
        if name not in UPDATEABLE:
            raise _refusal(400, "INVALID_FIELD_FOR_INSERT_UPDATE", f"Unable to change the field {name}")
    modification = {"LastModifiedDate": _now(), "LastModifiedById": caller.person.sub}
    caller.database.keep("Account", account_id, account | changes | modification)
    return Response(status_code=204)


@router.get("/query")
async def query(caller: ApiCaller, q: str = "") -> Document:
    """Answer a SOQL query on accounts, without the records that the caller may not read."""
    match = QUERY.fullmatch(q)
    if match is None:
        raise _refusal(400, "MALFORMED_QUERY", "Expected: SELECT fields FROM Account WHERE field = 'value'")
    if match["object"].lower() != "account":
        raise _refusal(400, "INVALID_TYPE", f"sObject type '{match['object']}' is not supported.")
    fields = [name.strip() for name in match["fields"].split(",")]
    for name in [*fields, match["field"]] if match["field"] else fields:
        _require_field(name)
    accounts = caller.database.documents("Account")
    matching_accounts = [account for account in accounts if caller.may("read", f"Account/{account['Id']}")]
    if match["field"]:
        value = re.sub(r"\\(.)", r"\1", match["value"])
        matching_accounts = [row for row in matching_accounts if row[match["field"]] == value]
    if match["limit"]:
        matching_accounts = matching_accounts[: int(match["limit"])]
    records = [_present(row, fields) for row in matching_accounts]
    return {"totalSize": len(records), "done": True, "records": records}


def _account(caller: Caller, action: str, account_id: str) -> Document:
    account = caller.database.document("Account", account_id)
    if account is None:
        raise _refusal(404, "NOT_FOUND", "The requested resource does not exist")
    caller.require(action, f"Account/{account_id}")
    return account


def _present(account: Mapping[str, Any], fields: list[str]) -> Document:
    for name in fields:
        _require_field(name)
    url = f"{API}/sobjects/Account/{account['Id']}"
    return {"attributes": {"type": "Account", "url": url}} | {name: account[name] for name in fields}


def _require_field(name: str) -> None:
    if name not in {field_name for field_name, _, _ in FIELDS}:
        raise _refusal(400, "INVALID_FIELD", f"No such column '{name}' on sobject of type Account")


def _refusal(status: int, code: str, message: str) -> RequestRefused:
    return RequestRefused(status, [{"message": message, "errorCode": code}])


def _error(status: int, message: str) -> list[Document]:
    return [{"message": message, "errorCode": CODES.get(status, "UNKNOWN_EXCEPTION")}]


def _token_response(response: Document, issuer: str, sub: str) -> Document:
    # Salesforce does not say when its access tokens expire. A client learns it from a 401.
    del response["expires_in"]
    identity = f"{issuer}/id/{ORGANISATION}/{sub}"
    return response | {"instance_url": issuer, "id": identity, "issued_at": str(int(time.time() * 1000))}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")


def _seed(account_id: str, name: str, customer: str, owner: str, description: str) -> Document:
    created_at = "2025-09-01T08:30:00.000+0000"
    return {
        "Id": account_id,
        "Name": name,
        "Industry": "Wholesale",
        "Phone": "+44 20 7946 0123",
        "Description": description,
        "Stripe_Customer_Id__c": customer,
        "OwnerId": owner,
        "CreatedDate": created_at,
        "LastModifiedDate": created_at,
        "LastModifiedById": owner,
    }


SYSTEM = System(
    name="crm",
    title="Acme CRM",
    api="/services/data/",
    oauth=OAuthPaths(
        authorize="/services/oauth2/authorize",
        tokens="/services/oauth2/token",
        revoke="/services/oauth2/revoke",
        userinfo="/services/oauth2/userinfo",
    ),
    scopes={
        "api": "Read and change CRM records on your behalf",
        "refresh_token": "Keep access while you are away",
        "id": "See who you are",
    },
    refresh_scope="refresh_token",
    people=(
        NewPerson(
            ALICE,
            "alice.liddell@acme-crm.example",
            "Alice Liddell",
            "alice-crm",
            {"read": (f"Account/{NORTHWIND}", f"Account/{CONTOSO}"), "write": (f"Account/{NORTHWIND}",)},
        ),
        NewPerson(
            BOB,
            "bob.baker@acme-crm.example",
            "Bob Baker",
            "bob-crm",
            {"read": (f"Account/{CONTOSO}",), "write": (f"Account/{CONTOSO}",)},
        ),
        NewPerson(
            INTEGRATION, "integration@acme-crm.example", "Integration User", None, {"read": ("Account/*",)}
        ),
    ),
    service_account=INTEGRATION,
    documents={
        "Account": (
            _seed(NORTHWIND, "Northwind Traders", "cus_NffrFeUfNV2Hib", ALICE, "Key account, pays by card"),
            _seed(CONTOSO, "Contoso Freight", "cus_9s6XKzkNRiz8i3", BOB, "Pays by bank transfer"),
        )
    },
    document_key="Id",
    router=router,
    error=_error,
    token_response=_token_response,
)
