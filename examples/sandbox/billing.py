"""Billing, in the form of Stripe's API: customers, invoices, charges and refunds."""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from examples.sandbox.access import Caller, caller_with
from examples.sandbox.people import NewPerson
from examples.sandbox.storage import Document
from examples.sandbox.system import OAuthPaths, RequestRefused, System

NORTHWIND, CONTOSO = "cus_NffrFeUfNV2Hib", "cus_9s6XKzkNRiz8i3"
PAID_TWICE = "in_1MtHbELkdIwHu7ixl4OzzPMv"
PAID_ONCE, OPEN = "in_1MtGmCLkdIwHu7ix6PgS6g8S", "in_1MtKq3LkdIwHu7ixe2QbXW0a"
CONTOSO_PAID = "in_1MtGYkLkdIwHu7ixBWmPpQrA"
ALICE, BOB, SERVICE = "usr_NSPnTgXDzbCSa1", "usr_NSPoBGKfH8lF2b", "usr_NSPpXqrvT90a3c"
REASONS = ("duplicate", "fraudulent", "requested_by_customer")

router = APIRouter(prefix="/v1")
Reader = Annotated[Caller, Depends(caller_with("read_only", "read_write"))]
Writer = Annotated[Caller, Depends(caller_with("read_write"))]


@router.get("/customers/{customer_id}")
async def read_customer(customer_id: str, caller: Reader) -> Document:
    """Return one customer."""
    return _object(caller, "customer", customer_id)


@router.get("/invoices/{invoice_id}")
async def read_invoice(invoice_id: str, caller: Reader) -> Document:
    """Return one invoice."""
    return _object(caller, "invoice", invoice_id)


@router.get("/charges/{charge_id}")
async def read_charge(charge_id: str, caller: Reader) -> Document:
    """Return one charge."""
    return _object(caller, "charge", charge_id)


@router.get("/refunds/{refund_id}")
async def read_refund(refund_id: str, caller: Reader) -> Document:
    """Return one refund."""
    return _object(caller, "refund", refund_id)


@router.get("/invoices")
async def list_invoices(request: Request, caller: Reader) -> Document:
    """List invoices, by customer or status."""
    return _list(request, caller, "invoice", ("customer", "status"))


@router.get("/charges")
async def list_charges(request: Request, caller: Reader) -> Document:
    """List charges, by customer or payment intent."""
    return _list(request, caller, "charge", ("customer", "payment_intent"))


@router.get("/refunds")
async def list_refunds(request: Request, caller: Reader) -> Document:
    """List refunds, by charge."""
    return _list(request, caller, "refund", ("charge",))


@router.post("/refunds")
async def create_refund(request: Request, caller: Writer) -> JSONResponse:
    """Refund a charge, once for each Idempotency-Key."""
    form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    key = request.headers.get("idempotency-key")
    digest = hashlib.sha256(json.dumps([request.url.path, form], sort_keys=True).encode()).hexdigest()
    earlier = caller.database.document("idempotency", f"{caller.person.sub} {key}") if key else None
    if earlier is not None:
        if earlier["digest"] != digest:
            message = f"Keys for idempotent requests serve only the parameters of their first use: {key}"
            raise RequestRefused(400, {"error": {"type": "idempotency_error", "message": message}})
        return JSONResponse(earlier["refund"], headers={"Idempotent-Replayed": "true"})
    with caller.database.transaction():
        refund = _refund(caller, form)
        if key:
            stored_refund = {"digest": digest, "refund": refund}
            caller.database.keep("idempotency", f"{caller.person.sub} {key}", stored_refund)
    return JSONResponse(refund)


def _refund(caller: Caller, form: Mapping[str, str]) -> Document:
    metadata = {name[9:-1]: value for name, value in form.items() if name.startswith("metadata[")}
    for name in form:
        if name not in {"charge", "amount", "reason"} and not name.startswith("metadata["):
            raise _invalid(f"Received unknown parameter: {name}", "parameter_unknown", name)
    if "charge" not in form:
        raise _invalid("Missing required param: charge.", "parameter_missing", "charge")
    if form.get("reason") not in (None, *REASONS):
        raise _invalid(f"Invalid reason: must be one of {', '.join(REASONS)}", "parameter_invalid", "reason")
    charge = _object(caller, "charge", form["charge"])
    caller.require("write", f"customers/{charge['customer']}")
    if charge["refunded"]:
        raise _invalid(f"Charge {charge['id']} has already been refunded.", "charge_already_refunded")
    left = charge["amount"] - charge["amount_refunded"]
    amount = form.get("amount", str(left))
    if not amount.isdecimal() or int(amount) < 1:
        raise _invalid(f"Invalid integer: {amount}", "parameter_invalid_integer", "amount")
    if int(amount) > left:
        message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
        raise _invalid(message, "amount_too_large", "amount")
    refund = {
        "id": f"re_{secrets.token_hex(12)}",
        "object": "refund",
        "amount": int(amount),
        "charge": charge["id"],
        "created": int(time.time()),
        "currency": charge["currency"],
        "customer": charge["customer"],
        "metadata": metadata,
        "payment_intent": charge["payment_intent"],
        "reason": form.get("reason"),
        "status": "succeeded",
    }
    charge["amount_refunded"] += int(amount)
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    caller.database.keep("charge", charge["id"], charge)
    caller.database.keep("refund", refund["id"], refund)
    return refund


def _object(caller: Caller, kind: str, key: str) -> Document:
    document = caller.database.document(kind, key)
    if document is None:
        body = {"code": "resource_missing", "message": f"No such {kind}: '{key}'", "param": "id"}
        raise RequestRefused(404, {"error": {"type": "invalid_request_error"} | body})
    caller.require("read", _customer_of(document))
    return document


def _list(request: Request, caller: Caller, kind: str, filters: tuple[str, ...]) -> Document:
    parameters = dict(request.query_params)
    limit = parameters.pop("limit", "10")
    after = parameters.pop("starting_after", None)
    if not limit.isdecimal() or not 1 <= int(limit) <= 100:
        raise _invalid(f"Invalid limit: {limit}, must be from 1 to 100", "parameter_invalid_integer", "limit")
    if unknown := set(parameters) - set(filters):
        raise _invalid(f"Received unknown parameter: {unknown.pop()}", "parameter_unknown")
    rows = [
        row
        # The newest comes first, as at Stripe.
        for row in reversed(caller.database.documents(kind))
        if caller.may("read", _customer_of(row))
        and all(row[name] == value for name, value in parameters.items())
    ]
    if after is not None:
        keys = [row["id"] for row in rows]
        if after not in keys:
            raise _invalid(f"No such {kind}: '{after}'", "resource_missing", "starting_after")
        rows = rows[keys.index(after) + 1 :]
    has_more = len(rows) > int(limit)
    return {"object": "list", "url": request.url.path, "has_more": has_more, "data": rows[: int(limit)]}


def _customer_of(row: Mapping[str, Any]) -> str:
    return f"customers/{row['id'] if row['object'] == 'customer' else row['customer']}"


def _invalid(message: str, code: str, param: str | None = None) -> RequestRefused:
    error = {"type": "invalid_request_error", "code": code, "message": message}
    return RequestRefused(400, {"error": error | ({"param": param} if param else {})})


def _error(status: int, message: str) -> Document:
    kind = "api_error" if status >= 500 else "invalid_request_error"
    code = {429: {"code": "rate_limit"}, 403: {"code": "permission_denied"}}.get(status, {})
    return {"error": {"type": kind, "message": message} | code}


def _seed_customer(key: str, name: str, email: str) -> Document:
    return {
        "id": key,
        "object": "customer",
        "balance": 0,
        "created": 1680893993,
        "currency": "usd",
        "delinquent": False,
        "description": None,
        "email": email,
        "livemode": False,
        "metadata": {},
        "name": name,
    }


def _seed_invoice(key: str, customer: str, number: str, amount: int, created_at: int) -> Document:
    return {
        "id": key,
        "object": "invoice",
        "amount_due": amount,
        "amount_paid": amount,
        "amount_remaining": 0,
        "created": created_at,
        "currency": "usd",
        "customer": customer,
        "livemode": False,
        "metadata": {},
        "number": number,
        "paid": True,
        "status": "paid",
        "total": amount,
    }


def _unpaid(amount: int) -> Document:
    return {"amount_paid": 0, "amount_remaining": amount, "paid": False, "status": "open"}


def _seed_charge(key: str, customer: str, invoice: str, amount: int, created_at: int) -> Document:
    return {
        "id": key,
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "captured": True,
        "created": created_at,
        "currency": "usd",
        "customer": customer,
        "invoice": invoice,
        "livemode": False,
        "metadata": {},
        "paid": True,
        "payment_intent": key.replace("ch_", "pi_"),
        "refunded": False,
        "status": "succeeded",
    }


SYSTEM = System(
    name="billing",
    title="Acme Billing",
    api="/v1/",
    oauth=OAuthPaths(
        authorize="/oauth/authorize",
        tokens="/oauth/token",
        revoke="/oauth/revoke",
        userinfo="/oauth/userinfo",
    ),
    scopes={"read_only": "See customers, invoices and charges", "read_write": "See them, and make refunds"},
    people=(
        NewPerson(
            ALICE,
            "a.liddell@acme-billing.example",
            "Alice Liddell",
            "alice-billing",
            {
                "read": (f"customers/{NORTHWIND}", f"customers/{CONTOSO}"),
                "write": (f"customers/{NORTHWIND}",),
            },
        ),
        NewPerson(
            BOB,
            "b.baker@acme-billing.example",
            "Bob Baker",
            "bob-billing",
            {"read": (f"customers/{NORTHWIND}", f"customers/{CONTOSO}")},
        ),
        NewPerson(
            SERVICE, "service@acme-billing.example", "Billing Service", None, {"read": ("customers/*",)}
        ),
    ),
    service_account=SERVICE,
    documents={
        "customer": (
            _seed_customer(NORTHWIND, "Northwind Traders", "accounts@northwind.example"),
            _seed_customer(CONTOSO, "Contoso Freight", "finance@contoso.example"),
        ),
        "invoice": (
            _seed_invoice(PAID_ONCE, NORTHWIND, "NW-0041", 98000, 1788220800),
            _seed_invoice(PAID_TWICE, NORTHWIND, "NW-0042", 240000, 1790812800),
            _seed_invoice(OPEN, NORTHWIND, "NW-0043", 125000, 1793491200) | _unpaid(125000),
            _seed_invoice(CONTOSO_PAID, CONTOSO, "CF-0007", 56000, 1790812800),
        ),
        "charge": (
            _seed_charge("ch_3MmlLrLkdIwHu7ix0snN0B15", NORTHWIND, PAID_ONCE, 98000, 1788307200),
            _seed_charge("ch_3MrVHGLkdIwHu7ix1mN3zEiP", NORTHWIND, PAID_TWICE, 240000, 1790899200),
            _seed_charge("ch_3MrVIXLkdIwHu7ix0eHnXb6s", NORTHWIND, PAID_TWICE, 240000, 1790899262),
            _seed_charge("ch_3MsPfTLkdIwHu7ix1qJd8Wcx", CONTOSO, CONTOSO_PAID, 56000, 1790985600),
        ),
    },
    document_key="id",
    router=router,
    error=_error,
)
