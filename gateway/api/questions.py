"""REST routes for what runs ask the caller, or people with the caller's roles: list, read, answer, decline."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from engine.errors import NotAllowed, QuestionUnknown
from engine.identity.principals import Principals
from engine.questions.questions import Question, Questions, QuestionState
from engine.runs.caller import Caller
from engine.runs.records import RunRecords
from engine.vault.vault import Vault
from engine.waiting.page_paths import PageLinks
from gateway.api.authentication import ApiCaller
from gateway.api.cursors import (
    DEFAULT_PAGE_ITEMS,
    ListCursors,
    Page,
    PageCursor,
    PageLimit,
    TimeAndId,
    to_cursor_position,
)
from gateway.api.problems import describe_problems
from gateway.api.request_bodies import RequestBody

_QuestionId = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]


class QuestionShown(BaseModel):
    """A question or approval that a run asks for."""

    id: str
    kind: Literal["question", "approval"] = Field(
        description="The run's own principal answers a question. Anybody else with `role` answers an approval."
    )
    message: str
    role: str | None
    run_id: str
    tool: str
    asked_for: str = Field(description="The name of the principal whose run asks.")
    state: QuestionState
    answer_schema: dict[str, Any] = Field(
        description="The flat JSON Schema of an answer. The answer to an approval has no fields."
    )
    created_at: datetime
    expires_at: datetime
    url: str = Field(description="The page on which it can also be answered.")


class GivenAnswer(RequestBody):
    """The answer to a question."""

    answer: dict[str, str | int | float | bool | list[str] | None] = Field(
        max_length=200, description="The fields that `answer_schema` describes. Empty for an approval."
    )


def build_routes(
    questions: Questions, run_records: RunRecords, principals: Principals, page_links: PageLinks, vault: Vault
) -> APIRouter:
    """Build the router of `/questions` and what is below it."""
    router = APIRouter(tags=["questions"])
    routes_context = _QuestionRoutesContext(
        questions, run_records, principals, page_links, ListCursors(vault, "questions")
    )

    @router.get(
        "/questions",
        summary="List the open questions and approvals that you may answer",
        responses=describe_problems(400, 422),
    )
    async def list_questions(
        caller: ApiCaller, after: PageCursor = None, limit: PageLimit = DEFAULT_PAGE_ITEMS
    ) -> Page[QuestionShown]:
        return await routes_context.build_page(caller, after, limit)

    @router.get(
        "/questions/{question_id}",
        summary="Get a question or an approval",
        responses=describe_problems(403, 404, 422),
    )
    async def get_question(caller: ApiCaller, question_id: _QuestionId) -> QuestionShown:
        return await routes_context.to_question_shown(
            await routes_context.require_visible_question(caller, question_id)
        )

    @router.post(
        "/questions/{question_id}/answer",
        summary="Answer a question, or approve a request",
        responses=describe_problems(403, 404, 409, 422),
    )
    async def answer_question(
        caller: ApiCaller, question_id: _QuestionId, given_answer: GivenAnswer
    ) -> QuestionShown:
        await routes_context.require_answerable(caller, question_id)
        return await routes_context.to_question_shown(
            await questions.answer_question(question_id, caller.principal, given_answer.answer)
        )

    @router.post(
        "/questions/{question_id}/decline",
        summary="Decline a question or a request for approval",
        responses=describe_problems(403, 404, 409, 422),
    )
    async def decline_question(caller: ApiCaller, question_id: _QuestionId) -> QuestionShown:
        await routes_context.require_answerable(caller, question_id)
        return await routes_context.to_question_shown(
            await questions.decline_question(question_id, caller.principal)
        )

    return router


@dataclass(frozen=True, slots=True)
class _QuestionRoutesContext:
    questions: Questions
    run_records: RunRecords
    principals: Principals
    page_links: PageLinks
    question_cursors: ListCursors

    async def build_page(self, caller: Caller, after: str | None, limit: int) -> Page[QuestionShown]:
        page_start = self.question_cursors.open_time_and_id(after)
        page_questions = [
            question
            for question in await self.questions.list_open_questions(caller.principal)
            if (page_start is None or _to_time_and_id(question) > page_start)
            and caller.covers_tool(await self._find_tool_name(question))
        ][: limit + 1]
        page_items = [await self.to_question_shown(question) for question in page_questions]
        return self.question_cursors.build_page(
            page_items, [to_cursor_position(_to_time_and_id(question)) for question in page_questions], limit
        )

    async def require_visible_question(self, caller: Caller, question_id: str) -> Question:
        """Return a question that the caller may see: one that they are asked, or that their own run asks somebody.

        Raises QuestionUnknown or NotAllowed.
        """
        question = await self.questions.find_question(question_id)
        if question is None or question.kind != "form":
            raise QuestionUnknown("You are asked no such question.")
        if question.principal_id != caller.principal.id:
            await self.questions.require_may_answer(question, caller.principal)
        if not caller.covers_tool(await self._find_tool_name(question)):
            raise NotAllowed("This token does not reach the tool whose run asks.")
        return question

    async def require_answerable(self, caller: Caller, question_id: str) -> None:
        """Raise NotAllowed where the caller's token may not answer. The answer checks whether their principal may."""
        question = await self.require_visible_question(caller, question_id)
        if question.role is not None and not caller.is_in_person:
            raise NotAllowed(
                "An approval takes a person who signed in: no API token and no back end gives one."
            )

    async def to_question_shown(self, question: Question) -> QuestionShown:
        asking_principal = await self.principals.find_principal(question.principal_id)
        return QuestionShown(
            id=question.id,
            kind="question" if question.role is None else "approval",
            message=question.message,
            role=question.role,
            run_id=question.run_id,
            tool=await self._find_tool_name(question),
            asked_for="" if asking_principal is None else asking_principal.name,
            state=question.state,
            answer_schema=dict(question.answer_schema),
            created_at=question.created_at,
            expires_at=question.expires_at,
            url=self.page_links.build_question_link(question.id),
        )

    async def _find_tool_name(self, question: Question) -> str:
        run = await self.run_records.find_run(question.run_id)
        return "" if run is None else run.tool_name


def _to_time_and_id(question: Question) -> TimeAndId:
    return question.created_at, question.id
