"""A composite tool that notes on systems where people sign in, at once and in turn; it knows nothing of how they do."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel
from temporalio import workflow

from engine.sdk import action, tool, upstream

System = Literal[
    "drive", "mail", "board", "chat", "wiki", "forum", "blog", "shop", "desk", "bank", "fleeting"
]

_STEP = timedelta(seconds=30)


class Errand(BaseModel):
    """What to note: on these systems at once, and afterwards on others."""

    text: str
    on: list[System]
    then: list[System] = []


class Noted(BaseModel):
    """On which systems it is noted."""

    on: list[System]


def _noting(system: System) -> Callable[[str], Awaitable[None]]:
    @action(f"errands.note_on_{system}", connection=system)
    async def note(text: str) -> None:
        await upstream().request(
            "POST",
            f"/buckets/errands/collections/{system}/records",
            created=lambda response: f"note/{response.json()['data']['id']}",
            json={"data": {"text": text}},
        )

    return note


# An action is found by its name in the module; done twice, it leaves two notes.
note_on_drive = _noting("drive")
note_on_mail = _noting("mail")
note_on_board = _noting("board")
note_on_chat = _noting("chat")
note_on_wiki = _noting("wiki")
note_on_forum = _noting("forum")
note_on_blog = _noting("blog")
note_on_shop = _noting("shop")
note_on_desk = _noting("desk")
note_on_bank = _noting("bank")
note_on_fleeting = _noting("fleeting")

NOTE_ON: dict[System, Callable[[str], Awaitable[None]]] = {
    "drive": note_on_drive,
    "mail": note_on_mail,
    "board": note_on_board,
    "chat": note_on_chat,
    "wiki": note_on_wiki,
    "forum": note_on_forum,
    "blog": note_on_blog,
    "shop": note_on_shop,
    "desk": note_on_desk,
    "bank": note_on_bank,
    "fleeting": note_on_fleeting,
}


async def note(text: str, on: list[System]) -> None:
    """Have it noted on all of these at once."""
    await asyncio.gather(
        *(workflow.execute_activity(NOTE_ON[system], text, start_to_close_timeout=_STEP) for system in on)
    )


@tool(title="Note when told", destructive=False, on_cancel="cancel")
@workflow.defn(name="note_when_told")
class NoteWhenTold:
    """Notes once it is told to, for as long as somebody waits for that."""

    def __init__(self) -> None:
        self._is_told = False

    @workflow.run
    async def run(self, errand: Errand) -> Noted:
        """Wait for the word, and note it."""
        await workflow.wait_condition(lambda: self._is_told)
        await note(errand.text, errand.on)
        return Noted(on=errand.on)

    @workflow.signal(name="word")
    def hear(self) -> None:
        """Go on."""
        self._is_told = True


@tool(title="Note", destructive=False)
@workflow.defn(name="note")
class Note:
    """Leaves the same note on several systems."""

    @workflow.run
    async def run(self, errand: Errand) -> Noted:
        """Note it on the first ones, then on the others."""
        await note(errand.text, errand.on)
        await note(errand.text, errand.then)
        return Noted(on=[*errand.on, *errand.then])
