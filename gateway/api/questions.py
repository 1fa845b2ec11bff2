"""REST routes for what runs ask the caller, or people with the caller's roles: list, read, answer, decline."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from engine.errors import NotAllowed, QuestionUnknown
from engine.questions.questions import Question, QuestionState
from engine.services import Services
from gateway.api.bodies import Body
from gateway.api.callers import Calling
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page, Place, position
from gateway.api.problems import problems
from gateway.links import question_link
from gateway.runs.runs import Caller

_ID = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]


class QuestionShown(BaseModel):
    """What a run asks."""

    id: str
    kind: Literal["question", "approval"] = Field(
        description="A question is put to the run's own principal, an approval to anybody else with `role`."
    )
    message: str
    role: str | None
    run_id: str
    tool: str
    asked_for: str = Field(description="The name of the principal whose run asks.")
    state: QuestionState
    answer_schema: dict[str, Any] = Field(
        description="What an answer looks like: a flat JSON schema. An approval takes an answer without fields."
    )
    created_at: datetime
    expires_at: datetime
    url: str = Field(description="The page where it can be answered as well.")


class GivenAnswer(Body):
    """An answer."""

    answer: dict[str, str | int | float | bool | list[str] | None] = Field(
        max_length=200, description="The fields that `answer_schema` describes; empty for an approval."
    )


def routes(services: Services) -> APIRouter:
    """Build the router of `/questions` and what is below it."""
    router = APIRouter(tags=["questions"])
    asked = _Asked(services)

    @router.get("/questions", summary="List what you are asked", responses=problems(400, 422))
    async def list_questions(
        caller: Calling, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[QuestionShown]:
        return await asked.page(caller, after, limit)

    @router.get(
        "/questions/{question_id}", summary="Get what you are asked", responses=problems(403, 404, 422)
    )
    async def get_question(caller: Calling, question_id: _ID) -> QuestionShown:
        return await asked.shown(await asked.owned(caller, question_id))

    @router.post(
        "/questions/{question_id}/answer",
        summary="Answer a question, or approve",
        responses=problems(403, 404, 409, 422),
    )
    async def answer_question(caller: Calling, question_id: _ID, given: GivenAnswer) -> QuestionShown:
        await asked.answerable(caller, question_id)
        return await asked.shown(await services.questions.answer(question_id, caller.principal, given.answer))

    @router.post(
        "/questions/{question_id}/decline",
        summary="Decline to answer or to approve",
        responses=problems(403, 404, 409, 422),
    )
    async def decline_question(caller: Calling, question_id: _ID) -> QuestionShown:
        await asked.answerable(caller, question_id)
        return await asked.shown(await services.questions.decline(question_id, caller.principal))

    return router


class _Asked:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._cursors = Cursors(services.vault, "questions")

    async def page(self, caller: Caller, after: str | None, limit: int) -> Page[QuestionShown]:
        reached = self._cursors.place(after)
        found = [
            question
            for question in await self._services.questions.open_for(caller.principal)
            if (reached is None or _place(question) > reached) and caller.reaches(await self._tool(question))
        ][: limit + 1]
        items = [await self.shown(question) for question in found]
        return self._cursors.page(items, [position(_place(question)) for question in found], limit)

    async def owned(self, caller: Caller, question_id: str) -> Question:
        """Return a question that the caller may see: one that they are asked, or that their own run asks somebody.

        Raises QuestionUnknown or NotAllowed.
        """
        question = await self._services.questions.get(question_id)
        if question is None or question.kind != "form":
            raise QuestionUnknown("You are asked no such question.")
        if question.principal_id != caller.principal.id:
            await self._services.questions.require_asked(question, caller.principal)
        if not caller.reaches(await self._tool(question)):
            raise NotAllowed("This token does not reach the tool whose run asks.")
        return question

    async def answerable(self, caller: Caller, question_id: str) -> None:
        """Raise NotAllowed where the caller's token may not answer. The answer checks whether their principal may."""
        question = await self.owned(caller, question_id)
        if question.role is not None and not caller.in_person:
            raise NotAllowed(
                "An approval takes a person who signed in: no API token and no back end gives one."
            )

    async def shown(self, question: Question) -> QuestionShown:
        asker = await self._services.principals.get(question.principal_id)
        return QuestionShown(
            id=question.id,
            kind="question" if question.role is None else "approval",
            message=question.message,
            role=question.role,
            run_id=question.run_id,
            tool=await self._tool(question),
            asked_for="" if asker is None else asker.name,
            state=question.state,
            answer_schema=dict(question.answer_schema),
            created_at=question.created_at,
            expires_at=question.expires_at,
            url=question_link(self._services, question),
        )

    async def _tool(self, question: Question) -> str:
        run = await self._services.runs.get(question.run_id)
        return "" if run is None else run.tool


def _place(question: Question) -> Place:
    return question.created_at, question.id
