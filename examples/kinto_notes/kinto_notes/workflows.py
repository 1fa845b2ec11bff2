"""The composite tool that adds a note to a record."""

from datetime import timedelta

from pydantic import BaseModel, Field
from temporalio import workflow

from byline import tool
from kinto_notes.activities import Record, change_record, read_record

_STEP = timedelta(seconds=30)


class Annotation(BaseModel):
    """A note, and the record to add it to."""

    record: str = Field(description="The record, as bucket/collection/id.", pattern=r"^[\w-]+/[\w-]+/[\w-]+$")
    note: str = Field(description="The text of the note.", min_length=1)


class Annotated(BaseModel):
    """The record's notes, the new one last."""

    record: str
    notes: list[str]


@tool(title="Annotate a record", destructive=False)
@workflow.defn(name="annotate_record")
class AnnotateRecordWorkflow:
    """Add a note to a Kinto record, in the name of the person who asks."""

    @workflow.run
    async def run(self, annotation: Annotation) -> Annotated:
        """Read the record's notes, and write them back with the new one."""
        found = await workflow.execute_activity(read_record, annotation.record, start_to_close_timeout=_STEP)
        notes = [*found.data.get("notes", []), annotation.note]
        changes = Record(name=annotation.record, data={"notes": notes})
        await workflow.execute_activity(change_record, changes, start_to_close_timeout=_STEP)
        return Annotated(record=annotation.record, notes=notes)
