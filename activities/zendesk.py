"""Actions on a Zendesk account through its Ticketing API, version 2."""

from typing import Literal

from pydantic import BaseModel

from byline import action, upstream

TicketStatus = Literal["new", "open", "pending", "hold", "solved"]


class Ticket(BaseModel):
    """A support ticket."""

    id: int
    subject: str
    status: str


class TicketUpdate(BaseModel):
    """A change to a ticket: a new status, and a comment that says why."""

    ticket_id: int
    status: TicketStatus
    comment: str
    public: bool = False


@action("zendesk.read_ticket", connection="support", scopes=("tickets:read",), reads_only=True)
async def read_ticket(ticket_id: int) -> Ticket:
    """Read one ticket."""
    response = await upstream().get(f"/api/v2/tickets/{ticket_id}.json", record=f"ticket/{ticket_id}")
    return _parse_ticket(response.json())


@action("zendesk.update_ticket", connection="support", scopes=("tickets:write",))
async def update_ticket(ticket_update: TicketUpdate) -> Ticket:
    """Comment on a ticket and set its status.

    A repeated update would add its comment again, so an update without a response is not sent twice.
    """
    ticket_comment = {"body": ticket_update.comment, "public": ticket_update.public}
    response = await upstream().request(
        "PUT",
        f"/api/v2/tickets/{ticket_update.ticket_id}.json",
        record=f"ticket/{ticket_update.ticket_id}",
        idempotent=False,
        json={"ticket": {"status": ticket_update.status, "comment": ticket_comment}},
    )
    return _parse_ticket(response.json())


def _parse_ticket(response_body: dict[str, dict[str, object]]) -> Ticket:
    return Ticket.model_validate(
        {field_name: response_body["ticket"][field_name] for field_name in ("id", "subject", "status")}
    )
