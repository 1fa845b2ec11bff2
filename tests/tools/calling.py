"""Composite tools that call a tool of an MCP server, or make an HTTP request, as whoever called them."""

from datetime import timedelta

from pydantic import BaseModel
from temporalio import workflow
from temporalio.common import RetryPolicy

from byline import HttpAnswer, HttpRequest, ToolAnswer, ToolCall, http_action, mcp_action, tool

_STEP = timedelta(seconds=30)
_ONCE = RetryPolicy(maximum_attempts=1)

call_notes = mcp_action("notes.call", connection="notes")
send_to_crm = http_action("crm.send", connection="crm", scopes=("api",))
look_at_notes = mcp_action("notes.look", connection="notes", reads_only=True)


class Words(BaseModel):
    """Something said."""

    text: str


@tool(title="Say it again", read_only=True)
@workflow.defn(name="say_again")
class SayAgain:
    """Says what it was told, and touches nothing."""

    @workflow.run
    async def run(self, words: Words) -> Words:
        """Say it."""
        return words


@tool(title="Call a tool of the notes server")
@workflow.defn(name="call_notes_server")
class CallNotesServer:
    """Calls it, as the server's protocol has it."""

    @workflow.run
    async def run(self, call: ToolCall) -> ToolAnswer:
        """Call it."""
        return await workflow.execute_activity(
            call_notes, call, start_to_close_timeout=_STEP, retry_policy=_ONCE
        )


@tool(title="Look at what the notes server has", read_only=True)
@workflow.defn(name="look_at_notes_server")
class LookAtNotesServer:
    """Calls it, if the call only reads."""

    @workflow.run
    async def run(self, call: ToolCall) -> ToolAnswer:
        """Call it."""
        return await workflow.execute_activity(
            look_at_notes, call, start_to_close_timeout=_STEP, retry_policy=_ONCE
        )


@tool(title="Send something to the CRM")
@workflow.defn(name="send_to_crm")
class SendToCrm:
    """Makes one request."""

    @workflow.run
    async def run(self, request: HttpRequest) -> HttpAnswer:
        """Make it."""
        return await workflow.execute_activity(
            send_to_crm, request, start_to_close_timeout=_STEP, retry_policy=_ONCE
        )
