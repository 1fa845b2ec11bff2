"""The pages to sign in to Byline itself, built in or by way of the external issuer. They lead to no other site."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from engine.audit.attempts import RefusedAttempts
from engine.errors import AuthorizationRefused, BylineError
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.sign_in.idp_sessions import IdpSessions
from gateway.browser.forms import read_form_fields
from gateway.browser.page_requests import PossibleSession, redirect_to_sign_in, require_form
from gateway.browser.rendering import redirect_see_other, render_notice, render_page, render_stale_form
from gateway.browser.sessions import BrowserSessions, FormSubmission
from gateway.browser.visits import BrowserVisit, BrowserVisits
from gateway.sign_in.built_in_people import BuiltInPeople
from gateway.sign_in.issuer_client import IssuerClient, SignInAttempt

_CALLBACK_PATH = "/sign-in/callback"
MAX_PATH_CHARS: Final = 4000
"""Maximum characters of the path that a person is sent to after signing in."""

# A browser drops tabs and line ends and reads a backslash as a slash, so `/\host` would lead to another site.
_OWN_PATH_PATTERN = re.compile(r"/(?!/)[!-\[\]-~]*")
# During an external sign-in the path is kept in a cookie, of which a browser accepts 4096 bytes.
_MAX_COOKIE_PATH_CHARS: Final = 1000
_SignOutForm = Annotated[FormSubmission, Depends(require_form("/"))]


class SignInArrival:
    """The steps that both ways to sign in share."""

    def __init__(
        self,
        principals: Principals,
        browser_sessions: BrowserSessions,
        browser_visits: BrowserVisits,
        attempts: RefusedAttempts,
    ) -> None:
        self._principals = principals
        self._browser_sessions = browser_sessions
        self._browser_visits = browser_visits
        self._attempts = attempts

    async def read_next_path(self, request: Request) -> str:
        """Return the path to go to after signing in. A link that would lead to another site is recorded."""
        requested_path = request.query_params.get("next", "")
        next_path = keep_own_path(requested_path)
        if requested_path not in {"", next_path}:
            attempt_message = "A link to sign in here would have led on to another site."
            await self._attempts.record_refusal("link to sign in", "redirect_refused", attempt_message)
        return next_path

    async def find_visit(self, request: Request) -> BrowserVisit | None:
        """Return the visit of this browser, or None.

        A visit that somebody already signed in with is not returned, and its return is recorded.
        """
        browser_visit = await self._browser_visits.find_visit(request)
        signed_in_principal = (
            None
            if browser_visit is None
            else await self._browser_sessions.find_signed_in_principal(browser_visit)
        )
        if browser_visit is None or signed_in_principal is None:
            return browser_visit
        attempt_message = (
            "What a browser had before this person signed in came again: it may have been planted."
        )
        await self._attempts.record_refusal(
            f"visit {browser_visit.id}", "session_replaced", attempt_message, principal=signed_in_principal
        )
        return None

    async def begin_session(
        self,
        request: Request,
        browser_visit: BrowserVisit,
        issuer_url: str,
        subject_and_name: tuple[str, str],
        next_path: str,
    ) -> Response:
        """Begin the session of a person who signed in at `issuer_url`, unless they were deactivated."""
        principal = await self._principals.resolve_principal(issuer_url, *subject_and_name)
        if not principal.is_active:
            return _render_deactivated(principal)
        new_session = await self._browser_sessions.begin_session(request, principal, browser_visit)
        return self._browser_sessions.store_session_cookie(
            self._browser_visits.delete_visit(redirect_see_other(next_path)), new_session
        )


class BuiltInSignIn:
    """The page that asks for username and password."""

    def __init__(
        self,
        sign_in_arrival: SignInArrival,
        built_in_people: BuiltInPeople,
        browser_visits: BrowserVisits,
        *,
        issuer_url: str,
    ) -> None:
        self._sign_in_arrival = sign_in_arrival
        self._built_in_people = built_in_people
        self._browser_visits = browser_visits
        self._issuer_url = issuer_url

    def build_router(self) -> APIRouter:
        """GET and POST /sign-in."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route("/sign-in", self.show_form, methods=["GET"])
        page_router.add_api_route("/sign-in", self.check_password, methods=["POST"])
        return page_router

    async def show_form(self, request: Request, browser_session: PossibleSession) -> Response:
        """GET /sign-in."""
        next_path = await self._sign_in_arrival.read_next_path(request)
        if browser_session is not None:
            return redirect_see_other(next_path)
        browser_visit = await self._sign_in_arrival.find_visit(request) or self._browser_visits.create_visit()
        return await self._browser_visits.store_visit(_render_form(browser_visit, next_path), browser_visit)

    async def check_password(self, request: Request) -> Response:
        """POST /sign-in."""
        browser_visit = await self._sign_in_arrival.find_visit(request)
        form_fields = (
            None if browser_visit is None else await read_form_fields(request, browser_visit.csrf_token)
        )
        if browser_visit is None or form_fields is None:
            return render_stale_form("/sign-in")
        next_path = keep_own_path(form_fields.get("next", ""))
        subject_and_name = await self._built_in_people.authenticate_person(
            form_fields.get("username", ""), form_fields.get("password", "")
        )
        if subject_and_name is None:
            return _render_form(
                browser_visit, next_path, problem_text="The username or the password is wrong."
            )
        return await self._sign_in_arrival.begin_session(
            request, browser_visit, self._issuer_url, subject_and_name, next_path
        )


class ExternalSignIn:
    """Sends the browser to the page of an OpenID Connect issuer, and handles its return."""

    def __init__(
        self,
        sign_in_arrival: SignInArrival,
        issuer_client: IssuerClient,
        browser_visits: BrowserVisits,
        principals: Principals,
        idp_sessions: IdpSessions,
        *,
        public_url: str,
    ) -> None:
        self._sign_in_arrival = sign_in_arrival
        self._issuer_client = issuer_client
        self._browser_visits = browser_visits
        self._principals = principals
        self._idp_sessions = idp_sessions
        self._redirect_uri = f"{public_url}{_CALLBACK_PATH}"

    def build_router(self) -> APIRouter:
        """GET /sign-in and GET /sign-in/callback."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route("/sign-in", self.redirect_to_issuer, methods=["GET"])
        page_router.add_api_route(_CALLBACK_PATH, self.handle_callback, methods=["GET"])
        return page_router

    async def redirect_to_issuer(self, request: Request, browser_session: PossibleSession) -> Response:
        """GET /sign-in."""
        next_path = await self._sign_in_arrival.read_next_path(request)
        if browser_session is not None:
            return redirect_see_other(next_path)
        try:
            authorization_url, sign_in_attempt = await self._issuer_client.begin_sign_in(
                self._redirect_uri, should_prompt="afresh" in request.query_params
            )
        except BylineError as error:
            return render_notice("Sign-in is not possible now", str(error), status_code=503)
        cookie_path = next_path if len(next_path) <= _MAX_COOKIE_PATH_CHARS else "/"
        browser_visit = self._browser_visits.create_visit(
            {"sign_in": asdict(sign_in_attempt), "next": cookie_path}
        )
        return await self._browser_visits.store_visit(redirect_see_other(authorization_url), browser_visit)

    async def handle_callback(self, request: Request) -> Response:
        """GET /sign-in/callback."""
        browser_visit = await self._sign_in_arrival.find_visit(request)
        if browser_visit is None or "sign_in" not in browser_visit.sign_in_data:
            notice_text = "This sign-in was begun in another browser, or too long ago."
            return render_notice(
                "Please sign in again", notice_text, status_code=400, next_link=("/sign-in", "Sign in")
            )
        return await self._complete_sign_in(request, browser_visit)

    async def _complete_sign_in(self, request: Request, browser_visit: BrowserVisit) -> Response:
        sign_in_attempt, next_path = (
            SignInAttempt(**browser_visit.sign_in_data["sign_in"]),
            browser_visit.sign_in_data["next"],
        )
        retry_link = (str(redirect_to_sign_in(next_path).headers["location"]), "Sign in again")
        callback_params: Mapping[str, str] = request.query_params
        try:
            completed_sign_in = await self._issuer_client.complete_sign_in(
                callback_params, sign_in_attempt, self._redirect_uri
            )
        except AuthorizationRefused as error:
            return render_notice("You are not signed in", str(error), status_code=400, next_link=retry_link)
        except BylineError as error:
            return render_notice(
                "Sign-in is not possible now", str(error), status_code=503, next_link=retry_link
            )
        if self._issuer_client.issuer_settings.vouches:
            principal = await self._principals.resolve_principal(
                self._issuer_client.issuer_settings.issuer, *completed_sign_in.subject_and_name
            )
            # Nothing is stored for a deactivated person.
            if principal.is_active:
                await self._idp_sessions.store_session(
                    principal.id,
                    completed_sign_in.id_token,
                    completed_sign_in.refresh_token,
                    completed_sign_in.expires_at,
                )
        return await self._sign_in_arrival.begin_session(
            request,
            browser_visit,
            self._issuer_client.issuer_settings.issuer,
            completed_sign_in.subject_and_name,
            next_path,
        )


class SignOutPage:
    """Ends a browser session."""

    def __init__(self, browser_sessions: BrowserSessions) -> None:
        self._browser_sessions = browser_sessions

    def build_router(self) -> APIRouter:
        """POST /sign-out."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route("/sign-out", self.sign_out, methods=["POST"])
        return page_router

    async def sign_out(self, submission: _SignOutForm) -> Response:
        """POST /sign-out."""
        await self._browser_sessions.end_session(submission.browser_session)
        # A link and no redirect, since this page's form-action would block a redirect to an external issuer.
        query_string = urlencode(
            {"next": keep_own_path(submission.form_fields.get("next", "")), "afresh": "1"}
        )
        sign_in_link = (f"/sign-in?{query_string}", "Sign in as somebody else")
        return self._browser_sessions.delete_session_cookie(
            render_notice(
                "You are signed out", "This browser is signed out.", status_code=200, next_link=sign_in_link
            )
        )


def keep_own_path(requested_path: str) -> str:
    """Return `requested_path` where it is a path of this site, and the front page otherwise."""
    return (
        requested_path
        if len(requested_path) <= MAX_PATH_CHARS and _OWN_PATH_PATTERN.fullmatch(requested_path)
        else "/"
    )


def _render_form(browser_visit: BrowserVisit, next_path: str, problem_text: str | None = None) -> Response:
    status_code = 200 if problem_text is None else 401
    return render_page(
        "sign_in.html",
        page_title="Sign in to Byline",
        csrf_token=browser_visit.csrf_token,
        next=next_path,
        problem=problem_text,
        status_code=status_code,
    )


def _render_deactivated(principal: Principal) -> Response:
    notice_text = (
        f"The account of {principal.name} was deactivated here. Ask your administrator if you "
        "think that is wrong."
    )
    return render_notice("You cannot sign in", notice_text, status_code=403)
