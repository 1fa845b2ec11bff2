"""Composite tools whose upstream chooses the new record's name, and may choose it badly."""

from datetime import timedelta

from pydantic import BaseModel
from temporalio import workflow

from engine.sdk import action, tool, upstream


class Note(BaseModel):
    """What to note."""

    text: str


class Noted(BaseModel):
    """The name that the upstream gave the note."""

    id: str


@action("tests.create_note", connection="crm")
async def create_note(note: Note) -> Noted:
    """Create a note; the upstream names it."""
    answer = await upstream().request(
        "POST", "/notes", created=lambda response: f"note/{response.json()['id']}", json={"text": note.text}
    )
    return Noted(id=answer.json()["id"])


@tool(title="Create a note")
@workflow.defn(name="create_note")
class CreateNote:
    """Creates a note."""

    @workflow.run
    async def run(self, note: Note) -> Noted:
        """Create it."""
        return await workflow.execute_activity(
            create_note, note, start_to_close_timeout=timedelta(seconds=20)
        )
