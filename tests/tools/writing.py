"""A composite tool that writes into support by an action that does not say which scope it needs."""

from datetime import timedelta

from pydantic import BaseModel
from temporalio import workflow

from activities.zendesk import Ticket, TicketUpdate, update_ticket
from engine.sdk import action, tool, upstream

_STEP = timedelta(seconds=5)


class Comment(BaseModel):
    """What to write on which ticket."""

    ticket_id: int
    text: str


@action("tests.rename_ticket", connection="support")
async def rename_ticket(comment: Comment) -> str:
    """Give a ticket another subject."""
    response = await upstream().request(
        "PUT",
        f"/api/v2/tickets/{comment.ticket_id}.json",
        record=f"ticket/{comment.ticket_id}",
        json={"ticket": {"subject": comment.text}},
    )
    return str(response.json()["ticket"]["subject"])


class Renamed(BaseModel):
    """A ticket's new subject."""

    subject: str


async def rename(comment: Comment) -> Renamed:
    """Rename a ticket, as a step of any workflow."""
    subject = await workflow.execute_activity(rename_ticket, comment, start_to_close_timeout=_STEP)
    return Renamed(subject=subject)


@tool(title="Comment on a ticket")
@workflow.defn(name="comment_on_ticket")
class CommentOnTicket:
    """Adds a comment, which is not to be sent twice."""

    @workflow.run
    async def run(self, comment: Comment) -> Ticket:
        """Write it."""
        update = TicketUpdate(ticket_id=comment.ticket_id, status="open", comment=comment.text)
        return await workflow.execute_activity(update_ticket, update, start_to_close_timeout=_STEP)


@tool(title="Rename a ticket")
@workflow.defn(name="rename_ticket")
class RenameTicket:
    """Renames a ticket, which may be sent twice."""

    @workflow.run
    async def run(self, comment: Comment) -> Renamed:
        """Write it."""
        return await rename(comment)
