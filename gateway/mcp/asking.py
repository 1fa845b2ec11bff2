"""Build the input requests for what a run waits for, and record the client's answers to them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequest,
    ListRootsRequest,
    ListRootsResult,
)

from engine.authorization.requests import AuthorizationRequest
from engine.errors import AnswerInvalid, QuestionClosed
from engine.identity.model import Principal
from engine.questions.questions import Question
from engine.services import Services
from gateway.links import connect_link, question_link, what_is_asked
from gateway.mcp.clients import Ability, Context, abilities, is_modern
from gateway.runs.runs import Awaiting


@dataclass(frozen=True, slots=True)
class Asked:
    """An input request to the client, for the authorization request or question with this id."""

    id: str
    request: InputRequest
    by: Ability


@dataclass(frozen=True, slots=True)
class Taken:
    """The waits that remain announced after a client's answers: their ids by key.

    `may_continue` is False where the person cancelled, which postpones the call.
    """

    told: dict[str, str]
    willing: bool = True


class Asking:
    """Builds input requests for what the caller has to answer themselves. Approvals by others are left out."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def requests(self, awaiting: Awaiting, context: Context) -> dict[str, Asked]:
        """Build the input requests that the client is able to show, by their keys."""
        can, asked = abilities(context), dict[str, Asked]()
        if "url" in can:
            for request in awaiting.requests:
                message, url = await self.sign_in(request), connect_link(self._services, request)
                asked[request.id] = Asked(request.id, _by_link(context, request.id, message, url), "url")
        for question in awaiting.questions:
            by = _way_to_ask(question, can)
            if by is not None:
                asked[question.key] = Asked(question.id, self._put(context, question, by), by)
        return asked

    async def take(
        self, told: Mapping[str, str], responses: Mapping[str, Any], principal: Principal, context: Context
    ) -> Taken:
        """Record the client's answers to the waits that it was asked about, whose ids are given by key.

        A wait is dropped from the announced ones where its answer is invalid, or where there is none and only the
        client can give it. The client is then asked again.
        """
        still_told, willing = dict[str, str](), True
        for key, awaited in told.items():
            response = responses.get(key)
            question = await self._services.questions.get(awaited)
            # Cancel only postpones: nothing is denied, and the run continues to wait.
            willing = willing and not (isinstance(response, ElicitResult) and response.action == "cancel")
            if question is None:
                if isinstance(response, ElicitResult) and response.action == "decline":
                    await self._services.authorization.deny(awaited, principal)
                still_told[key] = awaited
            elif await self._is_settled(question, response, principal, context):
                still_told[key] = awaited
        return Taken(still_told, willing)

    async def sign_in(self, request: AuthorizationRequest) -> str:
        """Describe what the person has to do for an authorization request."""
        connection = await self._services.catalogue.get(request.connection)
        return f"{what_is_asked(request, connection.title)} so that this can go on in your name."

    async def _is_settled(
        self, question: Question, response: Any, principal: Principal, context: Context
    ) -> bool:
        by = _way_to_ask(question, abilities(context))
        if not question.is_open or by is None:
            return True
        with suppress(QuestionClosed):
            match response:
                case ElicitResult(action="decline"):
                    await self._services.questions.decline(question.id, principal)
                case ElicitResult(action="cancel"):
                    return True
                case ElicitResult(action="accept") if by == "form":
                    return await self._is_answered(question, principal, response.content or {})
                case CreateMessageResult() | ListRootsResult() if by in {"sampling", "roots"}:
                    content = response.model_dump(by_alias=True, mode="json", exclude_none=True)
                    return await self._is_answered(question, principal, content)
                case _:
                    return by == "url"
        return True

    async def _is_answered(
        self, question: Question, principal: Principal, content: Mapping[str, Any]
    ) -> bool:
        try:
            await self._services.questions.answer(question.id, principal, content)
        except AnswerInvalid:
            return False
        return True

    def _put(self, context: Context, question: Question, by: Ability) -> InputRequest:
        match by:
            case "form":
                schema = dict(question.answer_schema)
                params = ElicitRequestFormParams(message=question.message, requested_schema=schema)
                return ElicitRequest(params=params)
            case "url":
                link = question_link(self._services, question)
                return _by_link(context, question.id, question.message, link)
            case "sampling":
                return CreateMessageRequest(
                    params=CreateMessageRequestParams.model_validate(question.parameters)
                )
            case "roots":
                return ListRootsRequest()


def _way_to_ask(question: Question, can: frozenset[Ability]) -> Ability | None:
    """Choose the ability by which the client is asked a question of its own user's run; None where it has none."""
    if question.kind != "form":
        return question.kind if question.kind in can else None
    if question.role is not None:
        return None
    return "form" if "form" in can else "url" if "url" in can else None


def _by_link(context: Context, elicitation_id: str, message: str, url: str) -> ElicitRequest:
    # Protocol 2026-07-28 has no elicitation ids: an input request is identified by its key.
    known_by = None if is_modern(context) else elicitation_id
    return ElicitRequest(params=ElicitRequestURLParams(message=message, url=url, elicitation_id=known_by))
