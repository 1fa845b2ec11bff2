"""The authorization endpoint, with the pages on which a person signs in and allows or denies access.

A request whose client or redirect URI is wrong never redirects (RFC 6749, 4.1.2.1).
"""

from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel

from examples.sandbox import pages
from examples.sandbox.sessions import Session
from examples.sandbox.system import OAuthPaths, Sandbox, sandbox_of


class NotAQuestion(Exception):
    """The authorization request is invalid. `response` informs the client or, if that is unsafe, the person."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


@dataclass(frozen=True)
class Question:
    """A valid authorization request."""

    redirect_uri: str
    state: str | None
    scopes: tuple[str, ...]
    challenge: str


class Pressed(BaseModel):
    """A form of one of the pages, as it was sent."""

    decision: Literal["sign-in", "allow", "deny", "switch"]
    form_token: str = ""
    username: str = ""
    password: str = ""


async def read_question(request: Request) -> Question:
    """Read the authorization request from the query. Raises NotAQuestion."""
    sandbox = sandbox_of(request)
    sent = request.query_params
    if len(sent.multi_items()) != len(sent):
        raise _no_way_back(sandbox, "The request names a parameter twice. Go back and start again.")
    if sent.get("client_id") != sandbox.client.id:
        raise _no_way_back(
            sandbox, "The application that sent you here is not registered. Tell its operator."
        )
    if sent.get("redirect_uri") not in sandbox.client.redirect_uris:
        raise _no_way_back(sandbox, "The application's return address is not registered. Tell its operator.")
    question = Question(
        redirect_uri=sent["redirect_uri"],
        state=sent.get("state"),
        scopes=tuple(dict.fromkeys(sent.get("scope", "").split())) or tuple(sandbox.system.scopes),
        challenge=sent.get("code_challenge", ""),
    )
    if sent.get("response_type") != "code":
        raise NotAQuestion(_redirect(sandbox, question, error="unsupported_response_type"))
    if not question.challenge or sent.get("code_challenge_method") != "S256":
        raise NotAQuestion(_redirect(sandbox, question, error="invalid_request"))
    if not set(question.scopes) <= set(sandbox.system.scopes):
        raise NotAQuestion(_redirect(sandbox, question, error="invalid_scope"))
    return question


def authorize_routes(paths: OAuthPaths) -> APIRouter:
    """Build the router with the endpoint at the system's path."""
    router = APIRouter()
    router.add_api_route(paths.authorize, ask, methods=["GET"])
    router.add_api_route(paths.authorize, answer, methods=["POST"])
    return router


async def ask(request: Request, question: Annotated[Question, Depends(read_question)]) -> Response:
    """Show the sign-in page, or the consent page if the person is signed in."""
    sandbox = sandbox_of(request)
    session = _session(request, sandbox) or sandbox.sessions.start(None)
    return _with_cookie(_current_page(sandbox, session, question), sandbox, session)


async def answer(
    request: Request,
    question: Annotated[Question, Depends(read_question)],
    pressed: Annotated[Pressed, Form()],
) -> Response:
    """Act on the button that was pressed."""
    sandbox = sandbox_of(request)
    session = _session(request, sandbox)
    if session is None or not session.sent(pressed.form_token):
        session = sandbox.sessions.start(None)
        page = pages.sign_in(sandbox.system.title, session, "That page was too old. Please sign in again.")
        return _with_cookie(page, sandbox, session)
    match pressed.decision:
        case "sign-in":
            return _sign_in(request, sandbox, session, pressed)
        case "allow" if session.sub:
            code = sandbox.tokens.issue_code(
                session.sub, question.scopes, question.redirect_uri, question.challenge
            )
            return _redirect(sandbox, question, code=code)
        case "deny" if session.sub:
            return _redirect(sandbox, question, error="access_denied")
        case "switch":
            sandbox.sessions.end(session)
            return _with_cookie(_again(request), sandbox, sandbox.sessions.start(None))
        case _:
            return _with_cookie(_current_page(sandbox, session, question), sandbox, session)


def _no_way_back(sandbox: Sandbox, message: str) -> NotAQuestion:
    return NotAQuestion(pages.error(sandbox.system.title, message))


def _current_page(sandbox: Sandbox, session: Session, question: Question) -> HTMLResponse:
    system = sandbox.system
    person = sandbox.people.get(session.sub) if session.sub else None
    if person is None:
        return pages.sign_in(system.title, session)
    meanings = {scope: system.scopes[scope] for scope in question.scopes}
    return pages.consent(system.title, session, person, sandbox.client.id, meanings)


def _sign_in(request: Request, sandbox: Sandbox, session: Session, pressed: Pressed) -> Response:
    person = sandbox.people.sign_in(pressed.username, pressed.password)
    if person is None:
        return pages.sign_in(sandbox.system.title, session, "The account name or the password is wrong.")
    sandbox.sessions.end(session)
    return _with_cookie(_again(request), sandbox, sandbox.sessions.start(person.sub))


def _again(request: Request) -> RedirectResponse:
    return RedirectResponse(f"{request.url.path}?{request.url.query}", 303)


def _redirect(sandbox: Sandbox, question: Question, **outcome: str) -> RedirectResponse:
    if question.state is not None:
        outcome["state"] = question.state
    outcome["iss"] = sandbox.issuer
    separator = "&" if urlsplit(question.redirect_uri).query else "?"
    target = f"{question.redirect_uri}{separator}{urlencode(outcome)}"
    return RedirectResponse(target, 303, {"Cache-Control": "no-store"})


def _cookie(sandbox: Sandbox) -> str:
    # Cookies ignore the port, and the sandbox systems share a host.
    return f"{sandbox.system.name}_session"


def _session(request: Request, sandbox: Sandbox) -> Session | None:
    return sandbox.sessions.find(request.cookies.get(_cookie(sandbox)))


def _with_cookie(response: Response, sandbox: Sandbox, session: Session) -> Response:
    response.set_cookie(_cookie(sandbox), session.secret, httponly=True, samesite="lax")
    return response
