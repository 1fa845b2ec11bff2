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


class InvalidAuthorizationRequest(Exception):
    """The authorization request is invalid. `response` informs the client or, if that is unsafe, the person."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


@dataclass(frozen=True)
class AuthorizationQuestion:
    """A valid authorization request."""

    redirect_uri: str
    state: str | None
    scopes: tuple[str, ...]
    challenge: str


class ConsentForm(BaseModel):
    """A form of one of the pages, as it was sent."""

    decision: Literal["sign-in", "allow", "deny", "switch"]
    form_token: str = ""
    username: str = ""
    password: str = ""


async def read_question(request: Request) -> AuthorizationQuestion:
    """Read the authorization request from the query. Raises NotAQuestion."""
    sandbox = sandbox_of(request)
    parameters = request.query_params
    if len(parameters.multi_items()) != len(parameters):
        raise _refuse_without_redirect(
            sandbox, "The request names a parameter twice. Go back and start again."
        )
    if parameters.get("client_id") != sandbox.client.id:
        raise _refuse_without_redirect(
            sandbox, "The application that sent you here is not registered. Tell its operator."
        )
    if parameters.get("redirect_uri") not in sandbox.client.redirect_uris:
        raise _refuse_without_redirect(
            sandbox, "The application's return address is not registered. Tell its operator."
        )
    question = AuthorizationQuestion(
        redirect_uri=parameters["redirect_uri"],
        state=parameters.get("state"),
        scopes=tuple(dict.fromkeys(parameters.get("scope", "").split())) or tuple(sandbox.system.scopes),
        challenge=parameters.get("code_challenge", ""),
    )
    if parameters.get("response_type") != "code":
        raise InvalidAuthorizationRequest(_redirect(sandbox, question, error="unsupported_response_type"))
    if not question.challenge or parameters.get("code_challenge_method") != "S256":
        raise InvalidAuthorizationRequest(_redirect(sandbox, question, error="invalid_request"))
    if not set(question.scopes) <= set(sandbox.system.scopes):
        raise InvalidAuthorizationRequest(_redirect(sandbox, question, error="invalid_scope"))
    return question


def authorize_routes(paths: OAuthPaths) -> APIRouter:
    """Build the router with the endpoint at the system's path."""
    router = APIRouter()
    router.add_api_route(paths.authorize, show_question, methods=["GET"])
    router.add_api_route(paths.authorize, answer_question, methods=["POST"])
    return router


async def show_question(
    request: Request, question: Annotated[AuthorizationQuestion, Depends(read_question)]
) -> Response:
    """Show the sign-in page, or the consent page if the person is signed in."""
    sandbox = sandbox_of(request)
    session = _session(request, sandbox) or sandbox.sessions.start(None)
    return _with_cookie(_current_page(sandbox, session, question), sandbox, session)


async def answer_question(
    request: Request,
    question: Annotated[AuthorizationQuestion, Depends(read_question)],
    form: Annotated[ConsentForm, Form()],
) -> Response:
    """Act on the button that was pressed."""
    sandbox = sandbox_of(request)
    session = _session(request, sandbox)
    if session is None or not session.matches_form_token(form.form_token):
        session = sandbox.sessions.start(None)
        page = pages.sign_in(sandbox.system.title, session, "That page was too old. Please sign in again.")
        return _with_cookie(page, sandbox, session)
    match form.decision:
        case "sign-in":
            return _sign_in(request, sandbox, session, form)
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


def _refuse_without_redirect(sandbox: Sandbox, message: str) -> InvalidAuthorizationRequest:
    return InvalidAuthorizationRequest(pages.error(sandbox.system.title, message))


def _current_page(sandbox: Sandbox, session: Session, question: AuthorizationQuestion) -> HTMLResponse:
    system = sandbox.system
    person = sandbox.people.get(session.sub) if session.sub else None
    if person is None:
        return pages.sign_in(system.title, session)
    meanings = {scope: system.scopes[scope] for scope in question.scopes}
    return pages.consent(system.title, session, person, sandbox.client.id, meanings)


def _sign_in(request: Request, sandbox: Sandbox, session: Session, form: ConsentForm) -> Response:
    person = sandbox.people.sign_in(form.username, form.password)
    if person is None:
        return pages.sign_in(sandbox.system.title, session, "The account name or the password is wrong.")
    sandbox.sessions.end(session)
    return _with_cookie(_again(request), sandbox, sandbox.sessions.start(person.sub))


def _again(request: Request) -> RedirectResponse:
    return RedirectResponse(f"{request.url.path}?{request.url.query}", 303)


def _redirect(sandbox: Sandbox, question: AuthorizationQuestion, **outcome: str) -> RedirectResponse:
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
