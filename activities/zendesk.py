"""Actions on a Zendesk account through its Ticketing API, version 2."""

from typing import Literal

from pydantic import BaseModel

from engine.sdk import action, upstream

Status = Literal["new", "open", "pending", "hold", "solved"]


class Ticket(BaseModel):
    """A support ticket."""

    id: int
    subject: str
    status: str


class TicketUpdate(BaseModel):
    """A change to a ticket: a new status, and a comment that says why."""

    ticket_id: int
    status: Status
    comment: str
    public: bool = False


@action("zendesk.read_ticket", connection="support", scopes=("tickets:read",), reads_only=True)
async def read_ticket(ticket_id: int) -> Ticket:
    """Read one ticket."""
    response = await upstream().get(f"/api/v2/tickets/{ticket_id}.json", record=f"ticket/{ticket_id}")
    return _ticket(response.json())


@action("zendesk.update_ticket", connection="support", scopes=("tickets:write",))
async def update_ticket(update: TicketUpdate) -> Ticket:
    """Comment on a ticket and set its status.

    A repeated update would add its comment again, so an update without a response is not sent twice.
    """
    comment = {"body": update.comment, "public": update.public}
    response = await upstream().request(
        "PUT",
        f"/api/v2/tickets/{update.ticket_id}.json",
        record=f"ticket/{update.ticket_id}",
        idempotent=False,
        json={"ticket": {"status": update.status, "comment": comment}},
    )
    return _ticket(response.json())


def _ticket(body: dict[str, dict[str, object]]) -> Ticket:
    return Ticket.model_validate({name: body["ticket"][name] for name in ("id", "subject", "status")})
