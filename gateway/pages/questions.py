"""The page of one question: a form built from its answer schema, shown only to those whom it asks."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.errors import AnswerInvalid, NotAllowed, QuestionClosed
from engine.identity.model import Principal
from engine.questions.questions import Question
from engine.questions.schemas import choices
from engine.services import Services
from engine.waiting.addresses import question_path
from gateway.browser.rendering import notice, on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.sign_in.pages import to_sign_in

_FIELD = "answer."
_INPUTS = {"email": "email", "uri": "url", "date": "date"}
_ENDED = {
    "answered": ("This is answered", "You can go back: the tool goes on by itself.", 200),
    "declined": ("This was declined", "The tool was told.", 200),
    "expired": ("This question is too old", "Nobody waits for the answer any more.", 410),
    "cancelled": ("Nobody waits for this any more", "The run that asked has ended or was cancelled.", 410),
}


def question_pages(services: Services) -> APIRouter:
    """GET and POST /questions/{question_id}."""
    router = APIRouter(include_in_schema=False)
    pages = QuestionPage(services)
    router.add_api_route("/questions/{question_id}", pages.ask, methods=["GET"])
    router.add_api_route("/questions/{question_id}", pages.answer, methods=["POST"])
    return router


class QuestionPage:
    """Shows a question to those whom it asks, and takes their answer."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._questions = services.questions
        self._sessions = Sessions(services)

    async def ask(self, request: Request, question_id: str) -> Response:
        """GET /questions/{question_id}."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(request.url.path)
        asked = await self._asked(session, session.principal, question_id)
        return asked if isinstance(asked, Response) else await self._shown(session, asked)

    async def answer(self, request: Request, question_id: str) -> Response:
        """POST /questions/{question_id}."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(request.url.path)
        session, principal = submission.session, submission.session.principal
        asked = await self._asked(session, principal, question_id)
        if isinstance(asked, Response):
            return asked
        given = {
            name.removeprefix(_FIELD): value
            for name, value in submission.fields.items()
            if name.startswith(_FIELD)
        }
        try:
            if submission.fields.get("decision") == "answer":
                content = _content(asked.answer_schema, given)
                await self._questions.answer(asked.id, principal, content)
            else:
                await self._questions.decline(asked.id, principal)
        except AnswerInvalid as error:
            return await self._shown(session, asked, given, problem=str(error), status=422)
        except NotAllowed:
            return _wrong_person(session, principal, asked)
        except QuestionClosed:
            pass  # The page that follows says how the question ended.
        return on_to(request.url.path)

    async def _asked(
        self, session: BrowserSession, principal: Principal, question_id: str
    ) -> Question | Response:
        question = await self._questions.get(question_id) if question_id.isprintable() else None
        if question is None or question.kind != "form":
            text = "This link is not known here. Call the tool again to get a new one."
            return notice("Unknown link", text, status=404, session=session)
        try:
            await self._questions.require_asked(question, principal)
        except NotAllowed:
            return _wrong_person(session, principal, question)
        return question

    async def _shown(
        self,
        session: BrowserSession,
        question: Question,
        given: Mapping[str, str] | None = None,
        *,
        problem: str = "",
        status: int = 200,
    ) -> Response:
        if not question.is_open:
            title, text, ended = _ENDED[question.state]
            return notice(title, text, status=ended, session=session)
        tools = await self._services.runs.tools([question.run_id])
        asker = await self._services.principals.get(question.principal_id)
        return page(
            "question.html",
            title="Do you approve?" if question.role is not None else "A tool asks you",
            session=session,
            question=question,
            asker=None if asker is None else asker.name,
            tools=tools,
            fields=_fields(question.answer_schema, given),
            problem=problem,
            status=status,
        )


def question_links(questions: list[Question]) -> list[tuple[str, str]]:
    """Return the address and message of each question."""
    return [(question_path(question.id), question.message) for question in questions]


def _wrong_person(session: BrowserSession, principal: Principal, question: Question) -> Response:
    who = "another person" if question.role is None else f"somebody else with the role {question.role}"
    return page(
        "wrong_person.html",
        title="This link was made for somebody else",
        session=session,
        principal=principal,
        meant_for=who,
        next=question_path(question.id),
        status=403,
    )


def _fields(schema: Mapping[str, Any], given: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """Return the fields that the template draws. A form that was sent before keeps what was entered."""
    return [
        {
            "id": f"answer-{number}",
            "name": f"{_FIELD}{name}",
            "label": described.get("title", name),
            "hint": described.get("description", ""),
            "type": described["type"],
            "input": _INPUTS.get(described.get("format", ""), "text"),
            "choices": choices(described),
            "required": name in schema["required"],
            "value": _entered(name, described, given),
            "longest": described.get("maxLength"),
        }
        for number, (name, described) in enumerate(schema["properties"].items())
    ]


def _entered(name: str, described: Mapping[str, Any], given: Mapping[str, str] | None) -> Any:
    if described["type"] == "array":
        return described.get("default", []) if given is None else _checked(name, described, given)
    return described.get("default", "") if given is None else given.get(name, "")


def _checked(name: str, described: Mapping[str, Any], given: Mapping[str, str]) -> list[str]:
    return [value for number, (value, _) in enumerate(choices(described), 1) if f"{name}[{number}]" in given]


def _content(schema: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer that a form holds, whose every value is text. What is left empty is omitted."""
    content: dict[str, Any] = {}
    for name, described in schema["properties"].items():
        value = given.get(name, "")
        match described["type"]:
            case "boolean":
                content[name] = value == "yes"
            case "array":
                content[name] = _checked(name, described, given)
            case "string" if value or name in schema["required"]:
                content[name] = value
            case "number" | "integer" if value:
                content[name] = _number(value)
    return content


def _number(value: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
