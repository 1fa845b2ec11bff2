"""Runs the tool as Byline does, with a function in place of the support system."""

import asyncio
import json
from pathlib import Path

from byline.testing import Failed, Finished, Outcome, workbench
from httpx2 import Request, Response

CONNECTIONS = Path(__file__).parents[1] / "connections.yml"
TOOL = "my_tools_add_note"
TICKET = 35436


class SupportSystem:
    """A support system with one ticket. It stores the comments that it receives."""

    def __init__(self) -> None:
        self.comments: list[dict[str, object]] = []

    def __call__(self, request: Request) -> Response:
        """Answer as Zendesk does."""
        assert request.method == "PUT"
        if request.url.path != f"/api/v2/tickets/{TICKET}.json":
            return Response(404, json={"error": "RecordNotFound"})
        self.comments.append(json.loads(request.content)["ticket"]["comment"])
        return Response(200, json={"ticket": {"id": TICKET, "status": "open"}})


async def _add_notes(
    support: SupportSystem, *tickets: int
) -> tuple[list[Outcome], list[str]]:
    """Return the outcome of a note on each ticket, and the records in the trail."""
    async with workbench(
        "my_tools",
        connections=CONNECTIONS,
        environment={"SUPPORT_URL": "https://support.example.com"},
        upstream=support,
    ) as bench:
        notes = [{"ticket_id": id_, "text": "Calls back"} for id_ in tickets]
        outcomes = [await bench.call(TOOL, note) for note in notes]
        lines = await bench.trail()
    assert all(
        trail_line["principal"]["name"] == "Alice Liddell" for trail_line in lines
    )
    return outcomes, [
        f"{trail_line['record_id']} {trail_line['verdict']}" for trail_line in lines
    ]


def test_a_note_is_added_for_colleagues_only_and_in_the_name_of_who_asked() -> None:
    """Call once for a ticket that exists, and once for a ticket that does not."""
    support = SupportSystem()

    outcomes, trail_records = asyncio.run(_add_notes(support, TICKET, 404))

    assert support.comments == [{"body": "Calls back", "public": False}]
    assert outcomes == [
        Finished({"ticket_id": TICKET, "status": "open"}),
        Failed(
            "record_not_found",
            "Support has no such record, or hides it from alice.",
        ),
    ]
    assert trail_records == [f"ticket/{TICKET} allowed", "ticket/404 not_found"]
