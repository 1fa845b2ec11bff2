"""Build the tool results that a model reads: a value, a failure, or what to tell the user and to call next."""

import json
from typing import Any, Final

from mcp_types import CallToolResult, TextContent

from engine.registry import Tool
from engine.services import Services
from engine.waiting.addresses import tool_path
from engine.wire import OUTCOME_META
from gateway.links import connect_link, question_link
from gateway.mcp.asking import Asking
from gateway.runs.runs import Awaiting

COLLECT: Final = "byline_collect"


def success(tool: Tool, value: Any) -> CallToolResult:
    """Return a tool's value as a result: in its own content blocks where it returns content, or else as JSON."""
    return CallToolResult.model_validate(value) if tool.returns_content else as_json(value)


def as_json(value: Any) -> CallToolResult:
    """Return a value as JSON text and, where it is an object, as structured content."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return CallToolResult(
        content=[TextContent(text=text)], structured_content=value if isinstance(value, dict) else None
    )


def failure(code: str, message: str) -> CallToolResult:
    """Return the result of a failed run, with its error code and message."""
    return _no_value(f"{code}: {message}", {"error": code, "message": message})


def still_running(run_id: str) -> CallToolResult:
    """Return the result that says that a run continues, and how to collect its outcome."""
    text = (
        f'NOT FINISHED: the run goes on. Call `{COLLECT}` with run_id "{run_id}" in a while for the outcome.'
    )
    return _no_value(text, {"status": "running", "run_id": run_id})


def _no_value(text: str, outcome: dict[str, Any]) -> CallToolResult:
    """Return an error result with a text for models and an outcome for programs in `_meta`.

    It is not in structured content, since many clients validate that against the output schema even for errors.
    """
    return CallToolResult(content=[TextContent(text=text)], is_error=True, meta={OUTCOME_META: outcome})


class Pending:
    """Describes runs that wait for people, for clients that cannot ask the people themselves."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._asking = Asking(services)

    async def result(self, run_id: str, awaiting: Awaiting, tool: str) -> CallToolResult:
        """Build the result for a waiting run of a tool: what the model shows its user, and what it calls next."""
        links = await self._links(awaiting)
        text = [*await self.lines(awaiting)]
        text[0] = f"NOT FINISHED: {text[0]}"
        all_of_it = f"{self._services.settings.public_url}{tool_path(tool)}"
        if awaiting.requests:
            text.append(f"Whatever else this tool may need can be connected as well, at {all_of_it}")
        text.append(
            f'Then call `{COLLECT}` with run_id "{run_id}" for the outcome, or call this tool again with the same '
            "arguments: it is not started twice."
        )
        outcome: dict[str, Any] = {"status": _status(awaiting), "run_id": run_id, "links": links}
        if awaiting.requests:
            outcome["connect_all"] = all_of_it
        if approvals := _approvals(awaiting):
            outcome["approvals"] = approvals
        return _no_value("\n".join(text), outcome)

    async def lines(self, awaiting: Awaiting) -> list[str]:
        """Describe in lines of text what a run waits for, and what its user can do."""
        own = _own(awaiting)
        whom, until = _waits_for(sign_in=bool(awaiting.requests), answer=bool(own))
        text = [f"the run waits for {whom}."]
        if links := await self._links(awaiting):
            text.append("Show the user these links and ask them to open each one:")
            text += [f"- {link['question']} {link['url']}" for link in links]
        text += [
            f"Somebody else with the role '{each['role']}' has to decide, whom Byline asks: {each['question']}"
            for each in _approvals(awaiting)
        ]
        if any(question.kind != "form" for question in awaiting.questions):
            text.append("It asks something of a chat client with abilities that this one does not have.")
        return [*text, f"The run goes on by itself as soon as {until}."]

    async def _links(self, awaiting: Awaiting) -> list[dict[str, str]]:
        links = [
            {"question": await self._asking.sign_in(request), "url": connect_link(self._services, request)}
            for request in awaiting.requests
        ]
        return links + [
            {"question": question.message, "url": question_link(self._services, question)}
            for question in _own(awaiting)
        ]


def _own(awaiting: Awaiting) -> list[Any]:
    return [each for each in awaiting.questions if each.role is None and each.kind == "form"]


def _approvals(awaiting: Awaiting) -> list[dict[str, str]]:
    return [
        {"question": each.message, "role": each.role} for each in awaiting.questions if each.role is not None
    ]


def _status(awaiting: Awaiting) -> str:
    if awaiting.requests:
        return "authorization_required"
    return "answer_required" if _own(awaiting) else "approval_required" if _approvals(awaiting) else "waiting"


def _waits_for(*, sign_in: bool, answer: bool) -> tuple[str, str]:
    match sign_in, answer:
        case True, True:
            return "the user to sign in and to answer a question", "they have done both"
        case True, False:
            return "the user to sign in", "they have signed in"
        case False, True:
            return "the user to answer a question", "they have answered"
        case _:
            return "an approval", "it is given"
