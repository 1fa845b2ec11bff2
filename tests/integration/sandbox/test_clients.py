"""The sandbox systems, held to what other people's clients of the systems they stand for expect."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import requests
import stripe
from requests.adapters import HTTPAdapter
from simple_salesforce.api import Salesforce, SFType
from simple_salesforce.exceptions import (
    SalesforceExpiredSession,
    SalesforceMalformedRequest,
    SalesforceRefusedRequest,
    SalesforceResourceNotFound,
)
from zenpy import Zenpy
from zenpy.lib.api_objects import Comment
from zenpy.lib.exception import RecordNotFoundException

from examples.sandbox import billing, crm, support
from tests.support.sandbox_systems import SandboxProcess

# The CRM, by simple-salesforce


class PlainTransport(HTTPAdapter):
    """Carries a client that insists on https over plain HTTP; what it asks stays as it is."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        request.url = str(request.url).replace("https://", "http://", 1)
        return super().send(request, *args, **options)


@contextmanager
def salesforce(system: SandboxProcess, token: str) -> Iterator[Salesforce]:
    with requests.Session() as session:
        session.mount("https://", PlainTransport())
        yield Salesforce(
            instance=urlsplit(system.url).netloc, session_id=token, version="63.0", session=session
        )


def accounts(client: Salesforce) -> SFType:
    account = client.Account
    assert isinstance(account, SFType)
    return account


async def test_simple_salesforce_reads_queries_and_changes_an_account(the_crm: SandboxProcess) -> None:
    with salesforce(the_crm, await the_crm.fetch_access_token("alice")) as client:
        account = accounts(client).get(crm.NORTHWIND)
        assert account["Name"] == "Northwind Traders"
        assert account["Stripe_Customer_Id__c"] == billing.NORTHWIND
        assert account["attributes"]["type"] == "Account"
        query_result = client.query("SELECT Id, Name FROM Account WHERE Name = 'Northwind Traders'")
        assert [row["Id"] for row in query_result["records"]] == [crm.NORTHWIND]
        assert accounts(client).update(crm.NORTHWIND, {"Description": "Disputes NW-0042"}) == 204
        changed_account = accounts(client).get(crm.NORTHWIND)
        assert changed_account["Description"] == "Disputes NW-0042"
        assert changed_account["LastModifiedById"] == crm.ALICE
        assert "Industry" in {field["name"] for field in accounts(client).describe()["fields"]}


async def test_the_crm_refuses_bob_the_account_and_gives_him_another(the_crm: SandboxProcess) -> None:
    with salesforce(the_crm, await the_crm.fetch_access_token("bob")) as client:
        with pytest.raises(SalesforceRefusedRequest, match="INSUFFICIENT_ACCESS_OR_READONLY"):
            accounts(client).get(crm.NORTHWIND)
        with pytest.raises(SalesforceRefusedRequest, match="INSUFFICIENT_ACCESS_OR_READONLY"):
            accounts(client).update(crm.NORTHWIND, {"Description": "Bob was here"})
        assert client.query(f"SELECT Id FROM Account WHERE Id = '{crm.NORTHWIND}'")["totalSize"] == 0
        assert accounts(client).get(crm.CONTOSO)["Name"] == "Contoso Freight"


async def test_the_crm_words_its_errors_as_salesforce_does(the_crm: SandboxProcess) -> None:
    with salesforce(the_crm, "expired") as client, pytest.raises(SalesforceExpiredSession):
        accounts(client).get(crm.NORTHWIND)
    with salesforce(the_crm, await the_crm.fetch_access_token("alice")) as client:
        with pytest.raises(SalesforceResourceNotFound):
            accounts(client).get("001D000000AAAAAIAA")
        with pytest.raises(SalesforceMalformedRequest, match="INVALID_FIELD"):
            accounts(client).update(crm.NORTHWIND, {"NoSuchField": "x"})
        with pytest.raises(SalesforceMalformedRequest, match="INVALID_FIELD_FOR_INSERT_UPDATE"):
            accounts(client).update(crm.NORTHWIND, {"LastModifiedById": crm.BOB})
        with pytest.raises(SalesforceMalformedRequest, match="MALFORMED_QUERY"):
            client.query("DELETE everything")


async def test_the_crm_gives_a_refresh_token_only_for_its_scope_and_never_the_expiry(
    the_crm: SandboxProcess,
) -> None:
    tokens = await the_crm.fetch_tokens("alice", "api")
    assert "refresh_token" not in tokens
    assert "expires_in" not in tokens
    assert tokens["instance_url"] == the_crm.url


# Billing, by Stripe's own library


def stripe_client(system: SandboxProcess, token: str) -> stripe.StripeClient:
    return stripe.StripeClient(token, base_addresses={"api": system.url}, max_network_retries=0)


async def test_stripes_library_finds_the_invoice_that_was_paid_twice(the_billing: SandboxProcess) -> None:
    client = stripe_client(the_billing, await the_billing.fetch_access_token("bob", "read_only"))
    assert client.v1.customers.retrieve(billing.NORTHWIND).name == "Northwind Traders"
    invoices = client.v1.invoices.list({"customer": billing.NORTHWIND, "limit": 1})
    numbers = [invoice.number for invoice in invoices.auto_paging_iter()]
    assert numbers == ["NW-0043", "NW-0042", "NW-0041"]
    charges = client.v1.charges.list({"customer": billing.NORTHWIND}).data
    paid_invoices = [charge.to_dict()["invoice"] for charge in charges if charge.status == "succeeded"]
    assert [invoice for invoice in set(paid_invoices) if paid_invoices.count(invoice) > 1] == [
        billing.PAID_TWICE
    ]
    assert client.v1.invoices.retrieve(billing.PAID_TWICE).amount_paid == 240000


async def test_a_refund_happens_once_for_each_idempotency_key(the_billing: SandboxProcess) -> None:
    client = stripe_client(the_billing, await the_billing.fetch_access_token("alice"))
    charge = "ch_3MrVIXLkdIwHu7ix0eHnXb6s"
    options: stripe.RequestOptions = {"idempotency_key": secrets.token_hex(8)}
    first = client.v1.refunds.create({"charge": charge, "amount": 100, "reason": "duplicate"}, options)
    again = client.v1.refunds.create({"charge": charge, "amount": 100, "reason": "duplicate"}, options)
    assert first.id == again.id
    assert first.last_response is not None
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    with pytest.raises(stripe.IdempotencyError) as error_info:
        client.v1.refunds.create({"charge": charge, "amount": 200}, options)
    assert error_info.value.http_status == 400
    assert client.v1.charges.retrieve(charge).amount_refunded == 100
    assert client.v1.refunds.retrieve(first.id).amount == 100


async def test_billing_words_its_errors_as_stripe_does(the_billing: SandboxProcess) -> None:
    with pytest.raises(stripe.AuthenticationError):
        stripe_client(the_billing, "expired").v1.customers.retrieve(billing.NORTHWIND)
    client = stripe_client(the_billing, await the_billing.fetch_access_token("alice"))
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.customers.retrieve("cus_nobody")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")
    with pytest.raises(stripe.InvalidRequestError, match="greater than unrefunded amount"):
        client.v1.refunds.create({"charge": "ch_3MrVHGLkdIwHu7ix1mN3zEiP", "amount": 999999})


async def test_bob_reads_billing_and_may_not_refund(the_billing: SandboxProcess) -> None:
    client = stripe_client(the_billing, await the_billing.fetch_access_token("bob"))
    charge = client.v1.charges.retrieve("ch_3MsPfTLkdIwHu7ix1qJd8Wcx")
    with pytest.raises(stripe.PermissionError):
        client.v1.refunds.create({"charge": charge.id})
    assert client.v1.charges.retrieve(charge.id).amount_refunded == 0


async def test_a_scope_too_narrow_is_challenged_with_the_missing_one(the_billing: SandboxProcess) -> None:
    token = await the_billing.fetch_access_token("alice", "read_only")
    form = {"charge": "ch_3MrVHGLkdIwHu7ix1mN3zEiP"}
    response = httpx2.post(
        the_billing.url + "/v1/refunds", data=form, headers={"Authorization": f"Bearer {token}"}
    )
    assert response.status_code == 403
    challenge = response.headers["www-authenticate"]
    assert challenge == 'Bearer error="insufficient_scope", scope="read_write"'


async def test_a_system_lists_who_asked_it_what(the_billing: SandboxProcess) -> None:
    client = stripe_client(the_billing, await the_billing.fetch_access_token("alice"))
    charge = "ch_3MmlLrLkdIwHu7ix0snN0B15"
    client.v1.refunds.create({"charge": charge, "amount": 1}, {"idempotency_key": "key-of-this-test"})
    last = the_billing.list_requests()[-1]
    assert (last["method"], last["path"], last["status"]) == ("POST", "/v1/refunds", 200)
    assert last["account"] == the_billing.find_account("alice")
    assert last["idempotency_key"] == "key-of-this-test"
    the_billing.get_path("/v1/invoices")
    assert the_billing.list_requests()[-1]["account"] is None
    assert the_billing.list_requests("token")[-1]["grant_type"] == "authorization_code"


async def test_a_lost_answer_and_the_retry_with_its_key_make_one_refund(the_billing: SandboxProcess) -> None:
    client = stripe_client(the_billing, await the_billing.fetch_access_token("alice"))
    charge = "ch_3MrVHGLkdIwHu7ix1mN3zEiP"
    options: stripe.RequestOptions = {"idempotency_key": secrets.token_hex(8)}
    the_billing.add_fault(status=500, work_is_done=True)
    with pytest.raises(stripe.APIError):
        client.v1.refunds.create({"charge": charge, "amount": 300}, options)
    refund = client.v1.refunds.create({"charge": charge, "amount": 300}, options)
    assert refund.last_response is not None
    assert refund.last_response.headers["Idempotent-Replayed"] == "true"
    assert client.v1.charges.retrieve(charge).amount_refunded == 300


# Support, by Zenpy


@pytest.mark.parametrize("person", ["alice", "bob"])
async def test_zenpy_changes_the_ticket_and_the_audit_names_who_did(
    the_support: SandboxProcess, person: str
) -> None:
    token = await the_support.fetch_access_token(person)
    client = Zenpy(subdomain="acme", oauth_token=token)
    ticket = client.tickets(id=support.DISPUTE)
    assert ticket.subject == "Charged twice for invoice NW-0042"
    ticket.priority = "high" if person == "alice" else "urgent"
    ticket.comment = Comment(body=f"Looked at by {person}", public=False)
    change = client.tickets.update(ticket)
    assert change.ticket.priority == ticket.priority
    me = client.users.me()
    last = list(client.tickets.audits(ticket=support.DISPUTE))[-1]
    assert (last.author_id, last.author.name) == (me.id, me.name)
    assert {event["type"] for event in last.events} == {"Comment", "Change"}
    assert list(client.tickets.comments(ticket=support.DISPUTE))[-1].body == f"Looked at by {person}"
    with pytest.raises(RecordNotFoundException):
        client.tickets(id=1)


async def test_a_ticket_change_without_the_write_scope_is_challenged(the_support: SandboxProcess) -> None:
    token = await the_support.fetch_access_token("alice", "tickets:read")
    response = httpx2.put(
        f"{the_support.url}/api/v2/tickets/{support.DISPUTE}.json",
        json={"ticket": {"status": "solved"}},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert response.status_code == 403
    challenge = response.headers["www-authenticate"]
    assert challenge == 'Bearer error="insufficient_scope", scope="tickets:write"'


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ('{"ticket": {"status": "forgotten"}}', 422, "RecordInvalid"),
        ('{"ticket"', 400, "InvalidRequest"),
    ],
)
async def test_support_says_what_it_can_not_take(
    the_support: SandboxProcess, body: str, status: int, error: str
) -> None:
    token = await the_support.fetch_access_token("alice")
    response = httpx2.put(
        f"{the_support.url}/api/v2/tickets/{support.DISPUTE}.json",
        content=body,
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    assert (response.status_code, response.json()["error"]) == (status, error)


async def test_support_refuses_bob_the_ticket_that_is_not_his(the_support: SandboxProcess) -> None:
    path = f"/api/v2/tickets/{support.LATE_DELIVERY}.json"
    assert the_support.get_path(path, await the_support.fetch_access_token("alice")).status_code == 200
    refusal = the_support.get_path(path, await the_support.fetch_access_token("bob"))
    assert refusal.status_code == 403
    assert refusal.json()["error"]["title"] == "Forbidden"
    assert "www-authenticate" not in refusal.headers
