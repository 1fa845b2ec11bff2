"""The page of one question: a form built from its answer schema, shown only to those whom it asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.errors import AnswerInvalid, NotAllowed, QuestionClosed
from engine.identity.principals import Principals
from engine.questions.answer_schemas import list_choices
from engine.questions.questions import Question, Questions
from engine.runs.records import RunRecords
from engine.waiting.page_paths import build_question_path
from gateway.browser.page_requests import OwnForm, PageInterruption, SignedInSession
from gateway.browser.rendering import PageProblem, redirect_see_other, render_notice, render_page
from gateway.browser.sessions import BrowserSession

_FIELD_PREFIX = "answer."
_INPUT_TYPES = {"email": "email", "uri": "url", "date": "date"}
_STATE_NOTICES = {
    "answered": ("This is answered", "You can go back: the tool goes on by itself.", 200),
    "declined": ("This was declined", "The tool was told.", 200),
    "expired": ("This question is too old", "Nobody waits for the answer any more.", 410),
    "cancelled": ("Nobody waits for this any more", "The run that asked has ended or was cancelled.", 410),
}


@dataclass(frozen=True, slots=True)
class QuestionPage:
    """Shows a question to those whom it asks, and takes their answer."""

    questions: Questions
    run_records: RunRecords
    principals: Principals

    def build_router(self) -> APIRouter:
        """GET and POST /questions/{question_id}."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route("/questions/{question_id}", self.show_question, methods=["GET"])
        page_router.add_api_route("/questions/{question_id}", self.answer_question, methods=["POST"])
        return page_router

    async def show_question(self, browser_session: SignedInSession, question_id: str) -> Response:
        """GET /questions/{question_id}."""
        return await self._render_question(
            browser_session, await self._require_question(browser_session, question_id)
        )

    async def answer_question(self, request: Request, submission: OwnForm, question_id: str) -> Response:
        """POST /questions/{question_id}."""
        browser_session, principal = submission.browser_session, submission.browser_session.principal
        question = await self._require_question(browser_session, question_id)
        entered_values = {
            field_name.removeprefix(_FIELD_PREFIX): field_value
            for field_name, field_value in submission.form_fields.items()
            if field_name.startswith(_FIELD_PREFIX)
        }
        try:
            if submission.form_fields.get("decision") == "answer":
                answer_content = _build_content(question.answer_schema, entered_values)
                await self.questions.answer_question(question.id, principal, answer_content)
            else:
                await self.questions.decline_question(question.id, principal)
        except AnswerInvalid as error:
            return await self._render_question(
                browser_session, question, entered_values, PageProblem.from_error(error)
            )
        except NotAllowed:
            return _render_wrong_person(browser_session, question)
        except QuestionClosed:
            pass  # The page that follows says how the question ended.
        return redirect_see_other(request.url.path)

    async def _require_question(self, browser_session: BrowserSession, question_id: str) -> Question:
        """Return the question where this person may answer it; raises PageInterruption with the page that says no."""
        question = await self.questions.find_question(question_id) if question_id.isprintable() else None
        if question is None or question.kind != "form":
            notice_text = "This link is not known here. Call the tool again to get a new one."
            raise PageInterruption(
                render_notice("Unknown link", notice_text, status_code=404, browser_session=browser_session)
            )
        try:
            await self.questions.require_may_answer(question, browser_session.principal)
        except NotAllowed:
            raise PageInterruption(_render_wrong_person(browser_session, question)) from None
        return question

    async def _render_question(
        self,
        browser_session: BrowserSession,
        question: Question,
        entered_values: Mapping[str, str] | None = None,
        page_problem: PageProblem | None = None,
    ) -> Response:
        if not question.is_open:
            notice_title, notice_text, notice_status = _STATE_NOTICES[question.state]
            return render_notice(
                notice_title, notice_text, status_code=notice_status, browser_session=browser_session
            )
        tool_names = await self.run_records.list_tools([question.run_id])
        asking_principal = await self.principals.find_principal(question.principal_id)
        return render_page(
            "question.html",
            page_title="Do you approve?" if question.role is not None else "A tool asks you",
            browser_session=browser_session,
            question=question,
            asker=None if asking_principal is None else asking_principal.name,
            tools=tool_names,
            fields=_build_fields(question.answer_schema, entered_values),
            page_problem=page_problem,
        )


def list_question_links(open_questions: list[Question]) -> list[tuple[str, str]]:
    """Return the address and message of each question."""
    return [(build_question_path(question.id), question.message) for question in open_questions]


def _render_wrong_person(browser_session: BrowserSession, question: Question) -> Response:
    receiver_text = (
        "another person" if question.role is None else f"somebody else with the role {question.role}"
    )
    return render_page(
        "wrong_person.html",
        page_title="This link was made for somebody else",
        browser_session=browser_session,
        principal=browser_session.principal,
        meant_for=receiver_text,
        next=build_question_path(question.id),
        status_code=403,
    )


def _build_fields(
    answer_schema: Mapping[str, Any], entered_values: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    """Return the fields that the template draws. A form that was sent before keeps what was entered."""
    return [
        {
            "id": f"answer-{field_number}",
            "name": f"{_FIELD_PREFIX}{field_name}",
            "label": field_schema.get("title", field_name),
            "hint": field_schema.get("description", ""),
            "type": field_schema["type"],
            "input": _INPUT_TYPES.get(field_schema.get("format", ""), "text"),
            "choices": list_choices(field_schema),
            "required": field_name in answer_schema["required"],
            "value": _read_entered_value(field_name, field_schema, entered_values),
            "longest": field_schema.get("maxLength"),
        }
        for field_number, (field_name, field_schema) in enumerate(answer_schema["properties"].items())
    ]


def _read_entered_value(
    field_name: str, field_schema: Mapping[str, Any], entered_values: Mapping[str, str] | None
) -> Any:
    if field_schema["type"] == "array":
        return (
            field_schema.get("default", [])
            if entered_values is None
            else _list_checked(field_name, field_schema, entered_values)
        )
    return field_schema.get("default", "") if entered_values is None else entered_values.get(field_name, "")


def _list_checked(
    field_name: str, field_schema: Mapping[str, Any], entered_values: Mapping[str, str]
) -> list[str]:
    return [
        choice_value
        for choice_number, (choice_value, _) in enumerate(list_choices(field_schema), 1)
        if f"{field_name}[{choice_number}]" in entered_values
    ]


def _build_content(answer_schema: Mapping[str, Any], entered_values: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer that a form holds, whose every value is text. What is left empty is omitted."""
    answer_content: dict[str, Any] = {}
    for field_name, field_schema in answer_schema["properties"].items():
        field_value = entered_values.get(field_name, "")
        match field_schema["type"]:
            case "boolean":
                answer_content[field_name] = field_value == "yes"
            case "array":
                answer_content[field_name] = _list_checked(field_name, field_schema, entered_values)
            case "string" if field_value or field_name in answer_schema["required"]:
                answer_content[field_name] = field_value
            case "number" | "integer" if field_value:
                answer_content[field_name] = _parse_number(field_value)
    return answer_content


def _parse_number(number_text: str) -> float | str:
    for number_type in (int, float):
        try:
            return number_type(number_text)
        except ValueError:
            continue
    return number_text
