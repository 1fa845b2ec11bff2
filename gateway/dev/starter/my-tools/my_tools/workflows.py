"""The composite tools: plain Temporal workflows that name no token, link or user."""

from datetime import timedelta

from byline import tool
from temporalio import workflow

from my_tools.actions import NotedTicket, TicketNote, add_note


@tool(title="Add a note to a ticket", destructive=False)
@workflow.defn(name="my_tools_add_note")
class AddNoteWorkflow:
    """Add an internal note to a support ticket, in the name of the person who asks.

    Customers do not see it.
    """

    @workflow.run
    async def run(self, ticket_note: TicketNote) -> NotedTicket:
        """Send the note to the support system."""
        return await workflow.execute_activity(
            add_note, ticket_note, start_to_close_timeout=timedelta(seconds=30)
        )
