"""How a run's waits are put to an MCP client, and what the client's person says; it starts and follows no run."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from mcp.server.context import ServerRequestContext
from mcp_types import (
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequest,
    TextContent,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from engine.authorization.requests import AuthorizationRequest
from engine.errors import AnswerInvalid, QuestionClosed
from engine.identity.model import Principal
from engine.services import Services
from gateway.connect import connect_link
from gateway.questions import question_link
from gateway.runs import Awaiting

Mode = Literal["form", "url"]


def modes(context: ServerRequestContext[Any, Any]) -> frozenset[Mode]:
    """How a client can ask its person in the course of a call: not at all before the protocol's modern versions."""
    capabilities = context.session.client_capabilities
    if capabilities is None or capabilities.elicitation is None or not is_modern(context):
        return frozenset()
    declared = capabilities.elicitation
    by_url: frozenset[Mode] = frozenset() if declared.url is None else frozenset({"url"})
    # A client that declares elicitation and no mode of it has forms: they came first.
    return by_url if declared.form is None and by_url else by_url | {"form"}


def is_modern(context: ServerRequestContext[Any, Any]) -> bool:
    """Whether a call can take several rounds."""
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS


class Elicitation:
    """Asks by form what is asked of the caller, by link what has a page, and of others' approvals only tells."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def requests(self, awaiting: Awaiting, can: frozenset[Mode]) -> dict[str, InputRequest]:
        """What the client can ask its person now, by the id of the authorization request or question."""
        asked: dict[str, InputRequest] = {}
        if "url" in can:
            for request in awaiting.requests:
                asked[request.id] = _by_link(
                    await self._sign_in(request), connect_link(self._services, request)
                )
        for question in awaiting.questions:
            if question.role is None and "form" in can:
                form = ElicitRequestFormParams(
                    message=question.message, requested_schema=dict(question.answer_schema)
                )
                asked[question.id] = ElicitRequest(params=form)
            elif question.role is None and "url" in can:
                asked[question.id] = _by_link(question.message, question_link(self._services, question))
        return asked

    async def take(
        self, told: list[str], responses: Mapping[str, Any], principal: Principal, can: frozenset[Mode]
    ) -> bool:
        """Keep what the person said of what they were told; False where they would not say anything now.

        What was answered wrongly is taken out of `told`, so that it is asked again.
        """
        has_answered = True
        for awaited, response in responses.items():
            if awaited not in told or not isinstance(response, ElicitResult):
                continue
            if await self._services.questions.get(awaited) is None:
                # Accepting means only that the person agreed to open the page.
                if response.action != "accept":
                    await self._services.authorization.deny(awaited, principal)
                continue
            has_answered = has_answered and response.action != "cancel"
            with suppress(QuestionClosed):
                if response.action == "decline":
                    await self._services.questions.decline(awaited, principal)
                elif response.action == "accept" and "form" in can:
                    try:
                        await self._services.questions.answer(awaited, principal, response.content or {})
                    except AnswerInvalid:
                        told.remove(awaited)
        return has_answered

    async def pending(self, run_id: str, awaiting: Awaiting, collect: str) -> CallToolResult:
        """What a model is told of a run that waits for people, and what to tell them."""
        links = [
            {"question": await self._sign_in(request), "url": connect_link(self._services, request)}
            for request in awaiting.requests
        ]
        own = [question for question in awaiting.questions if question.role is None]
        links += [
            {"question": question.message, "url": question_link(self._services, question)} for question in own
        ]
        approvals = [
            {"question": question.message, "role": question.role}
            for question in awaiting.questions
            if question.role is not None
        ]
        whom, until = _waits_for(sign_in=bool(awaiting.requests), answer=bool(own))
        text = [f"NOT FINISHED: the run waits for {whom}."]
        if links:
            text.append("Show the user these links and ask them to open each one:")
            text += [f"- {link['question']} {link['url']}" for link in links]
        text += [
            f"Somebody else with the role '{each['role']}' has to decide, whom Byline asks: {each['question']}"
            for each in approvals
        ]
        text.append(
            f"The run goes on by itself as soon as {until}. Then call `{collect}` with run_id "
            f'"{run_id}" for the outcome, or call this tool again with the same arguments: it is not started twice.'
        )
        status = "authorization_required" if awaiting.requests else "answer_required" if own else None
        told = {"status": status or "approval_required", "run_id": run_id, "links": links}
        if approvals:
            told["approvals"] = approvals
        # Marked as an error because a client checks a success against the tool's output schema, which this is not.
        return CallToolResult(
            content=[TextContent(text="\n".join(text))], structured_content=told, is_error=True
        )

    async def _sign_in(self, request: AuthorizationRequest) -> str:
        connection = await self._services.catalogue.get(request.connection)
        return f"Sign in to {connection.title} so that this can go on in your name."


def _by_link(message: str, url: str) -> ElicitRequest:
    return ElicitRequest(params=ElicitRequestURLParams(message=message, url=url))


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
