"""Build the tool results that a model reads: a value, a failure, or what to tell the user and to call next."""

import json
from typing import Any

from mcp_types import CallToolResult, TextContent

from engine.runs.runs import PendingWaits
from engine.tools.registry import CompositeTool
from engine.waiting.page_paths import PageLinks
from engine.wire import OUTCOME_META
from gateway.mcp.exchange.elicitation import ElicitationBuilder
from gateway.mcp.own_tools import COLLECT_TOOL_NAME


def to_success_result(tool: CompositeTool, result_value: Any) -> CallToolResult:
    """Return a tool's value as a result: in its own content blocks where it returns content, or else as JSON."""
    return (
        CallToolResult.model_validate(result_value) if tool.returns_content else to_json_result(result_value)
    )


def to_json_result(result_value: Any) -> CallToolResult:
    """Return a value as JSON text and, where it is an object, as structured content."""
    json_text = json.dumps(result_value, ensure_ascii=False, indent=1)
    return CallToolResult(
        content=[TextContent(text=json_text)],
        structured_content=result_value if isinstance(result_value, dict) else None,
    )


def to_failure_result(error_code: str, error_message: str) -> CallToolResult:
    """Return the result of a failed run, with its error code and message."""
    return _to_error_result(f"{error_code}: {error_message}", {"error": error_code, "message": error_message})


def to_running_result(run_id: str) -> CallToolResult:
    """Return the result that says that a run continues, and how to collect its outcome."""
    result_text = (
        f'NOT FINISHED: the run goes on. Call `{COLLECT_TOOL_NAME}` with run_id "{run_id}" in a '
        "while for the outcome."
    )
    return _to_error_result(result_text, {"status": "running", "run_id": run_id})


def _to_error_result(result_text: str, meta_outcome: dict[str, Any]) -> CallToolResult:
    """Return an error result with a text for models and an outcome for programs in `_meta`.

    It is not in structured content, since many clients validate that against the output schema even for errors.
    """
    return CallToolResult(
        content=[TextContent(text=result_text)], is_error=True, meta={OUTCOME_META: meta_outcome}
    )


class PendingResults:
    """Describes runs that wait for people, for clients that cannot ask the people themselves."""

    def __init__(self, elicitation_builder: ElicitationBuilder, page_links: PageLinks) -> None:
        self._elicitation_builder = elicitation_builder
        self._page_links = page_links

    async def build_result(self, run_id: str, pending_waits: PendingWaits, tool_name: str) -> CallToolResult:
        """Build the result for a waiting run of a tool: what the model shows its user, and what it calls next."""
        links = await self._build_links(pending_waits)
        text_lines = [*await self.describe_waits(pending_waits)]
        text_lines[0] = f"NOT FINISHED: {text_lines[0]}"
        connect_all_url = self._page_links.build_tool_link(tool_name)
        if pending_waits.requests:
            text_lines.append(
                f"Whatever else this tool may need can be connected as well, at {connect_all_url}"
            )
        text_lines.append(
            f'Then call `{COLLECT_TOOL_NAME}` with run_id "{run_id}" for the outcome, or call '
            "this tool again with the same "
            "arguments: it is not started twice."
        )
        meta_outcome: dict[str, Any] = {
            "status": _describe_status(pending_waits),
            "run_id": run_id,
            "links": links,
        }
        if pending_waits.requests:
            meta_outcome["connect_all"] = connect_all_url
        if approvals := _list_approvals(pending_waits):
            meta_outcome["approvals"] = approvals
        return _to_error_result("\n".join(text_lines), meta_outcome)

    async def describe_waits(self, pending_waits: PendingWaits) -> list[str]:
        """Describe in lines of text what a run waits for, and what its user can do."""
        own_questions = _list_own_questions(pending_waits)
        waits_for, end_condition = _describe_awaited(
            has_sign_in=bool(pending_waits.requests), has_question=bool(own_questions)
        )
        text_lines = [f"the run waits for {waits_for}."]
        if links := await self._build_links(pending_waits):
            text_lines.append("Show the user these links and ask them to open each one:")
            text_lines += [f"- {link['question']} {link['url']}" for link in links]
        text_lines += [
            f"Somebody else with the role '{approval['role']}' has to decide, whom Byline asks: {approval['question']}"
            for approval in _list_approvals(pending_waits)
        ]
        if any(question.kind != "form" for question in pending_waits.questions):
            text_lines.append(
                "It asks something of a chat client with abilities that this one does not have."
            )
        return [*text_lines, f"The run goes on by itself as soon as {end_condition}."]

    async def _build_links(self, pending_waits: PendingWaits) -> list[dict[str, str]]:
        connect_links = [
            {
                "question": await self._elicitation_builder.describe_sign_in(authorization_request),
                "url": self._page_links.build_connect_link(authorization_request.id),
            }
            for authorization_request in pending_waits.requests
        ]
        return connect_links + [
            {"question": question.message, "url": self._page_links.build_question_link(question.id)}
            for question in _list_own_questions(pending_waits)
        ]


def _list_own_questions(pending_waits: PendingWaits) -> list[Any]:
    return [
        question for question in pending_waits.questions if question.role is None and question.kind == "form"
    ]


def _list_approvals(pending_waits: PendingWaits) -> list[dict[str, str]]:
    return [
        {"question": question.message, "role": question.role}
        for question in pending_waits.questions
        if question.role is not None
    ]


def _describe_status(pending_waits: PendingWaits) -> str:
    if pending_waits.requests:
        return "authorization_required"
    return (
        "answer_required"
        if _list_own_questions(pending_waits)
        else "approval_required"
        if _list_approvals(pending_waits)
        else "waiting"
    )


def _describe_awaited(*, has_sign_in: bool, has_question: bool) -> tuple[str, str]:
    match has_sign_in, has_question:
        case True, True:
            return "the user to sign in and to answer a question", "they have done both"
        case True, False:
            return "the user to sign in", "they have signed in"
        case False, True:
            return "the user to answer a question", "they have answered"
        case _:
            return "an approval", "it is given"
