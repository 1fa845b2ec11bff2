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

from engine.authorization.request_texts import describe_request
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.errors import AnswerInvalid, QuestionClosed
from engine.identity.model import Principal
from engine.questions.questions import Question, Questions
from engine.runs.runs import PendingWaits
from engine.waiting.page_paths import PageLinks
from gateway.mcp.exchange.client_abilities import (
    ClientAbility,
    is_modern_client,
    list_client_abilities,
)
from gateway.mcp.mcp_request import RequestContext


@dataclass(frozen=True, slots=True)
class ClientInputRequest:
    """An input request to the client, for the authorization request or question with this id."""

    wait_id: str
    input_request: InputRequest
    ability: ClientAbility


@dataclass(frozen=True, slots=True)
class AcceptedAnswers:
    """The waits that remain announced after a client's answers: their ids by key.

    `may_continue` is False where the person cancelled, which postpones the call.
    """

    announced_waits: dict[str, str]
    may_continue: bool = True


class ElicitationBuilder:
    """Builds input requests for what the caller has to answer themselves. Approvals by others are left out."""

    def __init__(
        self,
        catalogue: ConnectionCatalogue,
        authorization_requests: AuthorizationRequests,
        questions: Questions,
        page_links: PageLinks,
    ) -> None:
        self._catalogue = catalogue
        self._authorization_requests = authorization_requests
        self._questions = questions
        self._page_links = page_links

    async def build_input_requests(
        self, pending_waits: PendingWaits, context: RequestContext
    ) -> dict[str, ClientInputRequest]:
        """Build the input requests that the client is able to show, by their keys."""
        client_abilities = list_client_abilities(context)
        input_requests: dict[str, ClientInputRequest] = {}
        if "url" in client_abilities:
            for authorization_request in pending_waits.requests:
                message = await self.describe_sign_in(authorization_request)
                connect_url = self._page_links.build_connect_link(authorization_request.id)
                input_requests[authorization_request.id] = ClientInputRequest(
                    authorization_request.id,
                    _build_link_elicitation(context, authorization_request.id, message, connect_url),
                    "url",
                )
        for question in pending_waits.questions:
            ability = _choose_ability(question, client_abilities)
            if ability is not None:
                input_requests[question.key] = ClientInputRequest(
                    question.id, self._build_input_request(context, question, ability), ability
                )
        return input_requests

    async def record_answers(
        self,
        announced_waits: Mapping[str, str],
        input_responses: Mapping[str, Any],
        principal: Principal,
        context: RequestContext,
    ) -> AcceptedAnswers:
        """Record the client's answers to the waits that it was asked about, whose ids are given by key.

        A wait is dropped from the announced ones where its answer is invalid, or where there is none and only the
        client can give it. The client is then asked again.
        """
        remaining_waits: dict[str, str] = {}
        may_continue = True
        for request_key, wait_id in announced_waits.items():
            input_response = input_responses.get(request_key)
            question = await self._questions.find_question(wait_id)
            # Cancel only postpones: nothing is denied, and the run continues to wait.
            may_continue = may_continue and not (
                isinstance(input_response, ElicitResult) and input_response.action == "cancel"
            )
            if question is None:
                if isinstance(input_response, ElicitResult) and input_response.action == "decline":
                    await self._authorization_requests.deny_request(wait_id, principal)
                remaining_waits[request_key] = wait_id
            elif await self._settle_question(question, input_response, principal, context):
                remaining_waits[request_key] = wait_id
        return AcceptedAnswers(remaining_waits, may_continue)

    async def describe_sign_in(self, authorization_request: AuthorizationRequest) -> str:
        """Describe what the person has to do for an authorization request."""
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        return f"{describe_request(authorization_request, connection.title)} so that this can go on in your name."

    async def _settle_question(
        self, question: Question, input_response: Any, principal: Principal, context: RequestContext
    ) -> bool:
        ability = _choose_ability(question, list_client_abilities(context))
        if not question.is_open or ability is None:
            return True
        with suppress(QuestionClosed):
            match input_response:
                case ElicitResult(action="decline"):
                    await self._questions.decline_question(question.id, principal)
                case ElicitResult(action="cancel"):
                    return True
                case ElicitResult(action="accept") if ability == "form":
                    return await self._answer_question(question, principal, input_response.content or {})
                case CreateMessageResult() | ListRootsResult() if ability in {"sampling", "roots"}:
                    answer_content = input_response.model_dump(by_alias=True, mode="json", exclude_none=True)
                    return await self._answer_question(question, principal, answer_content)
                case _:
                    return ability == "url"
        return True

    async def _answer_question(
        self, question: Question, principal: Principal, answer_content: Mapping[str, Any]
    ) -> bool:
        try:
            await self._questions.answer_question(question.id, principal, answer_content)
        except AnswerInvalid:
            return False
        return True

    def _build_input_request(
        self, context: RequestContext, question: Question, ability: ClientAbility
    ) -> InputRequest:
        match ability:
            case "form":
                answer_schema = dict(question.answer_schema)
                form_params = ElicitRequestFormParams(
                    message=question.message, requested_schema=answer_schema
                )
                return ElicitRequest(params=form_params)
            case "url":
                question_url = self._page_links.build_question_link(question.id)
                return _build_link_elicitation(context, question.id, question.message, question_url)
            case "sampling":
                return CreateMessageRequest(
                    params=CreateMessageRequestParams.model_validate(question.parameters)
                )
            case "roots":
                return ListRootsRequest()


def _choose_ability(question: Question, client_abilities: frozenset[ClientAbility]) -> ClientAbility | None:
    """Choose the ability by which the client is asked a question of its own user's run; None where it has none."""
    if question.kind != "form":
        return question.kind if question.kind in client_abilities else None
    if question.role is not None:
        return None
    return "form" if "form" in client_abilities else "url" if "url" in client_abilities else None


def _build_link_elicitation(
    context: RequestContext, elicitation_id: str, message: str, elicitation_url: str
) -> ElicitRequest:
    # Protocol 2026-07-28 has no elicitation ids: an input request is identified by its key.
    legacy_elicitation_id = None if is_modern_client(context) else elicitation_id
    return ElicitRequest(
        params=ElicitRequestURLParams(
            message=message, url=elicitation_url, elicitation_id=legacy_elicitation_id
        )
    )
