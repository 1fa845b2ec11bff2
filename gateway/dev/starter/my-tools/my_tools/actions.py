"""Actions on the support system, in the shapes of Zendesk's Ticketing API."""

from byline import action, upstream
from pydantic import BaseModel, Field


class TicketNote(BaseModel):
    """A note, and the ticket to add it to."""

    ticket_id: int = Field(description="The number of the ticket.", gt=0)
    text: str = Field(description="The text of the note.", min_length=1)


class NotedTicket(BaseModel):
    """The ticket with the note."""

    ticket_id: int
    status: str


@action(
    "my_tools.add_note",
    connection="support",
    scopes=("tickets:write",),
)
async def add_note(ticket_note: TicketNote) -> NotedTicket:
    """Add a comment that customers do not see.

    A second request would add a second comment. So a request that got no response is
    not sent again, and its outcome is reported as unknown.
    """
    response = await upstream().request(
        "PUT",
        f"/api/v2/tickets/{ticket_note.ticket_id}.json",
        record=f"ticket/{ticket_note.ticket_id}",
        idempotent=False,
        json={"ticket": {"comment": {"body": ticket_note.text, "public": False}}},
    )
    ticket = response.json()["ticket"]
    return NotedTicket(ticket_id=ticket["id"], status=ticket["status"])
