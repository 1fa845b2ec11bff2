"""Support, in the form of Zendesk's Ticketing API: it reads and changes tickets, and audits each change."""

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Request
from pydantic import BaseModel

from examples.sandbox.access import Caller, caller_with
from examples.sandbox.people import NewPerson, SandboxPerson
from examples.sandbox.storage import Document
from examples.sandbox.system import OAuthPaths, RequestRefused, System

ALICE, BOB, SERVICE, CUSTOMER = 21931890, 21931891, 21931892, 20978392
DISPUTE, LATE_DELIVERY = 35436, 35437
ERRORS = {400: "InvalidRequest", 422: "RecordInvalid", 404: "RecordNotFound", 429: "APIRateLimitExceeded"}

router = APIRouter(prefix="/api/v2")
Reader = Annotated[Caller, Depends(caller_with("tickets:read"))]
Writer = Annotated[Caller, Depends(caller_with("tickets:write"))]


class Comment(BaseModel):
    """A comment to add to a ticket."""

    body: str
    public: bool = True


class TicketChange(BaseModel):
    """The fields that a PUT may change. As at Zendesk, unknown fields and nulls are ignored."""

    subject: str | None = None
    status: Literal["new", "open", "pending", "hold", "solved", "closed"] | None = None
    priority: Literal["low", "normal", "high", "urgent"] | None = None
    type: Literal["problem", "incident", "question", "task"] | None = None
    assignee_id: int | None = None
    tags: list[str] | None = None
    comment: Comment | None = None


@router.get("/users/me.json")
async def me(request: Request, caller: Annotated[Caller, Depends(caller_with())]) -> Document:
    """Return the account of the access token."""
    return {"user": _user(request, caller.person)}


@router.get("/users/{user_id}.json")
async def read_user(request: Request, user_id: int, caller: Reader) -> Document:
    """Return the person with this id, as tickets and audits refer to them."""
    person = caller.sandbox.people.get(str(user_id))
    if person is None:
        raise _not_found()
    return {"user": _user(request, person)}


@router.get("/tickets/{ticket_id}.json")
async def read_ticket(request: Request, ticket_id: int, caller: Reader) -> Document:
    """Return one ticket."""
    return {"ticket": _present(request, _ticket(caller, "read", ticket_id))}


@router.put("/tickets/{ticket_id}.json")
async def change_ticket(
    request: Request, ticket_id: int, ticket: Annotated[TicketChange, Body(embed=True)], caller: Writer
) -> Document:
    """Change a ticket, add a comment to it, and store an audit of who did so."""
    before = _ticket(caller, "write", ticket_id)
    if before["status"] == "closed":
        details = {"status": [{"description": "Status: closed prevents ticket update"}]}
        body = {"error": "RecordInvalid", "description": "Record validation errors", "details": details}
        raise RequestRefused(422, body)
    changes = ticket.model_dump(exclude_none=True, exclude={"comment"})
    events: list[Document] = []
    if ticket.comment:
        comment = ticket.comment.model_dump()
        events.append({"type": "Comment", "author_id": int(caller.person.sub)} | comment)
    for name, value in changes.items():
        if value != before[name]:
            change = {"field_name": name, "value": value, "previous_value": before[name]}
            events.append({"type": "Change"} | change)
    with caller.database.transaction():
        audit = _audit(caller, ticket_id, events)
        after = before | changes | {"updated_at": audit["created_at"]}
        caller.database.keep("tickets", str(ticket_id), after)
    return {"ticket": _present(request, after), "audit": audit}


@router.get("/tickets/{ticket_id}/comments.json")
async def list_comments(ticket_id: int, caller: Reader) -> Document:
    """List the comments of a ticket, oldest first."""
    comments = [
        {
            "id": event["id"],
            "type": "Comment",
            "author_id": event["author_id"],
            "body": event["body"],
            "plain_body": event["body"],
            "html_body": f"<p>{escape(event['body'])}</p>",
            "public": event["public"],
            "attachments": [],
            "audit_id": audit["id"],
            "created_at": audit["created_at"],
        }
        for audit in _audits(caller, ticket_id)
        for event in audit["events"]
        if event["type"] == "Comment"
    ]
    return _list("comments", comments)


@router.get("/tickets/{ticket_id}/audits.json")
async def list_audits(ticket_id: int, caller: Reader) -> Document:
    """List who changed a ticket and how, oldest first."""
    return _list("audits", _audits(caller, ticket_id))


def _ticket(caller: Caller, action: str, ticket_id: int) -> Document:
    ticket = caller.database.document("tickets", str(ticket_id))
    if ticket is None:
        raise _not_found()
    caller.require(action, f"tickets/{ticket_id}")
    return ticket


def _audits(caller: Caller, ticket_id: int) -> list[Document]:
    _ticket(caller, "read", ticket_id)
    return [audit for audit in caller.database.documents("audits") if audit["ticket_id"] == ticket_id]


def _audit(caller: Caller, ticket_id: int, events: list[Document]) -> Document:
    last = max(audit["id"] for audit in caller.database.documents("audits"))
    # Audits and their events share one sequence of ids, so ids are left free for the events between two audits.
    audit = _seed_audit(last + 100, ticket_id, int(caller.person.sub), _now(), events)
    caller.database.keep("audits", str(audit["id"]), audit)
    return audit


def _present(request: Request, ticket: Mapping[str, Any]) -> Document:
    return {"url": str(request.url_for("read_ticket", ticket_id=ticket["id"]))} | dict(ticket)


def _user(request: Request, person: SandboxPerson) -> Document:
    return {
        "id": int(person.sub),
        "url": str(request.url_for("read_user", user_id=person.sub)),
        "name": person.name,
        "email": person.username,
        "role": "end-user" if person.sub == str(CUSTOMER) else "agent",
        "active": True,
        "verified": True,
    }


def _list(name: str, rows: list[Document]) -> Document:
    return {name: rows, "next_page": None, "previous_page": None, "count": len(rows)}


def _not_found() -> RequestRefused:
    return RequestRefused(404, _error(404, "Not found"))


def _error(status: int, message: str) -> Document:
    if status == 401:
        return {"error": "invalid_token", "error_description": message}
    if status == 403:
        return {"error": {"title": "Forbidden", "message": message}}
    return {"error": ERRORS.get(status, "InternalError"), "description": message}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seed_audit(key: int, ticket_id: int, author: int, created_at: str, events: list[Document]) -> Document:
    return {
        "id": key,
        "ticket_id": ticket_id,
        "created_at": created_at,
        "author_id": author,
        "metadata": {"system": {}, "custom": {}},
        "events": [{"id": key + place} | event for place, event in enumerate(events, start=1)],
        "via": {"channel": "api", "source": {"from": {}, "to": {}, "rel": None}},
    }


def _seed_opening(key: int, ticket_id: int, created_at: str, body: str) -> Document:
    comment = {"type": "Comment", "author_id": CUSTOMER, "body": body, "public": True}
    status = {"type": "Create", "field_name": "status", "value": "open"}
    return _seed_audit(key, ticket_id, CUSTOMER, created_at, [comment, status])


def _seed_ticket(key: int, subject: str, description: str, created_at: str, tags: list[str]) -> Document:
    return {
        "id": key,
        "external_id": None,
        "subject": subject,
        "raw_subject": subject,
        "description": description,
        "status": "open",
        "priority": "normal",
        "type": "problem",
        "tags": tags,
        "requester_id": CUSTOMER,
        "submitter_id": CUSTOMER,
        "assignee_id": ALICE,
        "custom_fields": [],
        "is_public": True,
        "created_at": created_at,
        "updated_at": created_at,
    }


_DOUBLE_CHARGE = (
    "Our card was charged twice for invoice NW-0042, USD 2,400.00 each time. Please return one of them."
)
_LATE = "The pallets of 12 October came four days late. What happened?"

SYSTEM = System(
    name="support",
    title="Acme Support",
    api="/api/v2/",
    oauth=OAuthPaths(
        authorize="/oauth/authorizations/new",
        tokens="/oauth/tokens",
        revoke="/oauth/revoke",
        userinfo="/oauth/userinfo",
    ),
    scopes={"tickets:read": "Read tickets and their history", "tickets:write": "Change tickets and comment"},
    people=(
        NewPerson(
            str(ALICE),
            "alice@acme-support.example",
            "Alice L. (Support)",
            "alice-support",
            {"read": (f"tickets/{DISPUTE}", f"tickets/{LATE_DELIVERY}"), "write": (f"tickets/{DISPUTE}",)},
        ),
        NewPerson(
            str(BOB),
            "bob@acme-support.example",
            "Bob B. (Support)",
            "bob-support",
            {"read": (f"tickets/{DISPUTE}",), "write": (f"tickets/{DISPUTE}",)},
        ),
        NewPerson(
            str(SERVICE), "service@acme-support.example", "Support Service", None, {"read": ("tickets/*",)}
        ),
        NewPerson(str(CUSTOMER), "accounts@northwind.example", "Nora Northwind", None, {}),
    ),
    service_account=str(SERVICE),
    documents={
        "tickets": (
            _seed_ticket(
                DISPUTE,
                "Charged twice for invoice NW-0042",
                _DOUBLE_CHARGE,
                "2026-10-03T09:12:44Z",
                ["billing", "dispute"],
            ),
            _seed_ticket(LATE_DELIVERY, "Late delivery", _LATE, "2026-10-17T14:02:10Z", ["delivery"]),
        ),
        "audits": (
            _seed_opening(35000100, DISPUTE, "2026-10-03T09:12:44Z", _DOUBLE_CHARGE),
            _seed_opening(35000200, LATE_DELIVERY, "2026-10-17T14:02:10Z", _LATE),
        ),
    },
    document_key="id",
    router=router,
    error=_error,
    invalid_status=422,
)
