"""What the handlers of pages ask for: the session of a signed-in browser, or a form that one of its pages sent.

A handler names it as a parameter, `async def show_tokens(self, browser_session: SignedInSession)`, and is not called
without it: the browser then gets another page, or is redirected to one.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from gateway.browser.rendering import redirect_see_other, render_stale_form
from gateway.browser.sessions import BrowserSession, BrowserSessions, FormSubmission


class PageInterruption(Exception):
    """Ends a request for a page with this response instead of the handler's own."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


def attach_browser_sessions(page_app: FastAPI, browser_sessions: BrowserSessions) -> None:
    """Give an application the sessions that the dependencies below use, and the way in which they interrupt."""
    page_app.state.browser_sessions = browser_sessions
    page_app.add_exception_handler(PageInterruption, _answer_interruption)


def redirect_to_sign_in(next_path: str) -> RedirectResponse:
    """Redirect the browser to the sign-in page, from which it goes on to `next_path`."""
    return redirect_see_other(f"/sign-in?{urlencode({'next': next_path})}")


async def _find_session(request: Request) -> BrowserSession | None:
    browser_sessions: BrowserSessions = request.app.state.browser_sessions
    return await browser_sessions.find_session(request)


PossibleSession = Annotated[BrowserSession | None, Depends(_find_session)]
"""This browser's session, or None where nobody is signed in."""


async def _require_session(request: Request, browser_session: PossibleSession) -> BrowserSession:
    if browser_session is None:
        raise PageInterruption(redirect_to_sign_in(request.url.path))
    return browser_session


SignedInSession = Annotated[BrowserSession, Depends(_require_session)]
"""This browser's session. Without one, the browser is sent to sign in, and from there back to this page."""


def require_form(page_path: str | None = None) -> Callable[[Request], Awaitable[FormSubmission]]:
    """Return the dependency for a form with the session's CSRF token.

    Without that token the browser gets a page with a link to `page_path`, by default to the address of the form.
    """

    async def read_form(request: Request) -> FormSubmission:
        browser_sessions: BrowserSessions = request.app.state.browser_sessions
        submission = await browser_sessions.read_submission(request)
        if submission is None:
            raise PageInterruption(render_stale_form(page_path or request.url.path))
        return submission

    return read_form


OwnForm = Annotated[FormSubmission, Depends(require_form())]
"""A form of the page at the same address."""


async def _answer_interruption(request: Request, error: Exception) -> Response:
    del request
    if not isinstance(error, PageInterruption):
        raise error
    return error.response
