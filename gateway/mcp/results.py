"""What a model reads of a run: its value, why it failed, or what to tell its user and what to call next."""

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
    """The value that a tool returned: in the blocks that it chose itself, or as JSON."""
    return CallToolResult.model_validate(value) if tool.returns_content else as_json(value)


def as_json(value: Any) -> CallToolResult:
    """A value as JSON, for models and for programs."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return CallToolResult(
        content=[TextContent(text=text)], structured_content=value if isinstance(value, dict) else None
    )


def failure(code: str, message: str) -> CallToolResult:
    """Why a call has no value."""
    return _no_value(f"{code}: {message}", {"error": code, "message": message})


def still_running(run_id: str) -> CallToolResult:
    """That a run goes on, and how to get its outcome."""
    text = (
        f'NOT FINISHED: the run goes on. Call `{COLLECT}` with run_id "{run_id}" in a while for the outcome.'
    )
    return _no_value(text, {"status": "running", "run_id": run_id})


def _no_value(text: str, outcome: dict[str, Any]) -> CallToolResult:
    """What a call has instead of a value: in words, and for programs in `_meta`.

    Clients hold structured content against the tool's output schema, many of them that of an error too.
    """
    return CallToolResult(content=[TextContent(text=text)], is_error=True, meta={OUTCOME_META: outcome})


class Pending:
    """Tells of runs that wait for people, where the client cannot ask them itself."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._asking = Asking(services)

    async def result(self, run_id: str, awaiting: Awaiting, tool: str) -> CallToolResult:
        """What a model is told of such a run of a tool, and what to tell its user."""
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
        """What a run waits for, and what its person can do about it."""
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
