"""The pages to sign in to Byline itself, built in or by way of the external issuer. They lead to no other site."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from engine.errors import AuthorizationRefused, BylineError
from engine.identity.model import Principal
from engine.services import Services
from engine.settings import IssuerSettings
from gateway.browser.forms import fields_of
from gateway.browser.rendering import notice, on_to, page, stale_form
from gateway.browser.sessions import Sessions
from gateway.browser.visits import Visit, Visits
from gateway.sign_in.openid import Issuer, SignInAttempt
from gateway.sign_in.people import People

_CALLBACK = "/sign-in/callback"
LONGEST_PATH: Final = 4000
"""Maximum characters of the path that a person is sent to after signing in."""

# A browser drops tabs and line ends and reads a backslash as a slash, so `/\host` would lead to another site.
_OWN_PATH = re.compile(r"/(?!/)[!-\[\]-~]*")
# During an external sign-in the path is kept in a cookie, of which a browser accepts 4096 bytes.
_LONGEST_KEPT: Final = 1000


def sign_in_pages(services: Services) -> APIRouter:
    """Return the routes to sign in and out, for the way to sign in that settings choose."""
    router = APIRouter(include_in_schema=False)
    issuer = services.settings.gateway.issuer
    if issuer is None:
        built_in = BuiltInSignIn(services)
        router.add_api_route("/sign-in", built_in.ask, methods=["GET"])
        router.add_api_route("/sign-in", built_in.check, methods=["POST"])
    else:
        external = ExternalSignIn(services, issuer)
        router.add_api_route("/sign-in", external.send, methods=["GET"])
        router.add_api_route(_CALLBACK, external.return_, methods=["GET"])
    router.add_api_route("/sign-out", SignOut(services).leave, methods=["POST"])
    return router


async def seed_demo_people(services: Services) -> None:
    """Add the demo people, where settings ask for them and no external issuer signs people in."""
    if services.settings.gateway.demo_people and services.settings.gateway.issuer is None:
        await People(services.database).add_demo()


def to_sign_in(path: str) -> RedirectResponse:
    """Redirect the browser to the sign-in page, from which it goes on to `next_path`."""
    return on_to(f"/sign-in?{urlencode({'next': path})}")


class Arrival:
    """The steps that both ways to sign in share."""

    def __init__(self, services: Services) -> None:
        self._principals = services.principals
        self._sessions = Sessions(services)
        self._visits = Visits(services)
        self._attempts = services.attempts

    async def goal(self, request: Request) -> str:
        """Return the path to go to after signing in. A link that would lead to another site is recorded."""
        wanted = request.query_params.get("next", "")
        path = own_path(wanted)
        if wanted not in {"", path}:
            message = "A link to sign in here would have led on to another site."
            await self._attempts.refused("link to sign in", "redirect_refused", message)
        return path

    async def visit(self, request: Request) -> Visit | None:
        """Return the visit of this browser, or None.

        A visit that somebody already signed in with is not returned, and its return is recorded.
        """
        visit = await self._visits.current(request)
        person = None if visit is None else await self._sessions.begun_by(visit)
        if visit is None or person is None:
            return visit
        message = "What a browser had before this person signed in came again: it may have been planted."
        await self._attempts.refused(f"visit {visit.id}", "session_replaced", message, principal=person)
        return None

    async def arrive(
        self, request: Request, visit: Visit, issuer: str, person: tuple[str, str], path: str
    ) -> Response:
        """Begin the session of a person who signed in at `issuer_url`, unless they were deactivated."""
        principal = await self._principals.resolve(issuer, *person)
        if not principal.active:
            return _deactivated(principal)
        new = await self._sessions.begin(request, principal, visit)
        return self._sessions.keep(self._visits.end(on_to(path)), new)


class BuiltInSignIn:
    """The page that asks for username and password."""

    def __init__(self, services: Services) -> None:
        self._arrival = Arrival(services)
        self._people = People(services.database)
        self._sessions = Sessions(services)
        self._visits = Visits(services)
        self._issuer = services.settings.public_url

    async def ask(self, request: Request) -> Response:
        """GET /sign-in."""
        path = await self._arrival.goal(request)
        if await self._sessions.current(request) is not None:
            return on_to(path)
        visit = await self._arrival.visit(request) or self._visits.begin()
        return await self._visits.keep(_form(visit, path), visit)

    async def check(self, request: Request) -> Response:
        """POST /sign-in."""
        visit = await self._arrival.visit(request)
        fields = None if visit is None else await fields_of(request, visit.csrf_token)
        if visit is None or fields is None:
            return stale_form("/sign-in")
        path = own_path(fields.get("next", ""))
        person = await self._people.authenticate(fields.get("username", ""), fields.get("password", ""))
        if person is None:
            return _form(visit, path, problem="The username or the password is wrong.")
        return await self._arrival.arrive(request, visit, self._issuer, person, path)


class ExternalSignIn:
    """Sends the browser to the page of an OpenID Connect issuer, and handles its return."""

    def __init__(self, services: Services, settings: IssuerSettings) -> None:
        self._arrival = Arrival(services)
        self._sessions = Sessions(services)
        self._visits = Visits(services)
        self._issuer = Issuer(settings, services.outgoing)
        self._principals = services.principals
        self._company = services.company_sign_ins
        self._redirect_uri = f"{services.settings.public_url}{_CALLBACK}"

    async def send(self, request: Request) -> Response:
        """GET /sign-in."""
        path = await self._arrival.goal(request)
        if await self._sessions.current(request) is not None:
            return on_to(path)
        try:
            url, attempt = await self._issuer.begin(
                self._redirect_uri, afresh="afresh" in request.query_params
            )
        except BylineError as error:
            return notice("Sign-in is not possible now", str(error), status=503)
        kept = path if len(path) <= _LONGEST_KEPT else "/"
        visit = self._visits.begin({"sign_in": asdict(attempt), "next": kept})
        return await self._visits.keep(on_to(url), visit)

    async def return_(self, request: Request) -> Response:
        """GET /sign-in/callback."""
        visit = await self._arrival.visit(request)
        if visit is None or "sign_in" not in visit.data:
            text = "This sign-in was begun in another browser, or too long ago."
            return notice("Please sign in again", text, status=400, link=("/sign-in", "Sign in"))
        return await self._complete(request, visit)

    async def _complete(self, request: Request, visit: Visit) -> Response:
        attempt, path = SignInAttempt(**visit.data["sign_in"]), visit.data["next"]
        again = (str(to_sign_in(path).headers["location"]), "Sign in again")
        parameters: Mapping[str, str] = request.query_params
        try:
            signed_in = await self._issuer.complete(parameters, attempt, self._redirect_uri)
        except AuthorizationRefused as error:
            return notice("You are not signed in", str(error), status=400, link=again)
        except BylineError as error:
            return notice("Sign-in is not possible now", str(error), status=503, link=again)
        if self._issuer.settings.vouches:
            principal = await self._principals.resolve(self._issuer.settings.issuer, *signed_in.person)
            # Nothing is stored for a deactivated person.
            if principal.active:
                await self._company.keep(
                    principal.id, signed_in.id_token, signed_in.refresh_token, signed_in.expires_at
                )
        return await self._arrival.arrive(
            request, visit, self._issuer.settings.issuer, signed_in.person, path
        )


class SignOut:
    """Ends a browser session."""

    def __init__(self, services: Services) -> None:
        self._sessions = Sessions(services)

    async def leave(self, request: Request) -> Response:
        """POST /sign-out."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form("/")
        await self._sessions.end(submission.session)
        # A link and no redirect, since this page's form-action would block a redirect to an external issuer.
        query = urlencode({"next": own_path(submission.fields.get("next", "")), "afresh": "1"})
        link = (f"/sign-in?{query}", "Sign in as somebody else")
        return self._sessions.forget(
            notice("You are signed out", "This browser is signed out.", status=200, link=link)
        )


def own_path(wanted: str) -> str:
    """Return `requested_path` where it is a path of this site, and the front page otherwise."""
    return wanted if len(wanted) <= LONGEST_PATH and _OWN_PATH.fullmatch(wanted) else "/"


def _form(visit: Visit, path: str, problem: str | None = None) -> Response:
    status = 200 if problem is None else 401
    return page(
        "sign_in.html",
        title="Sign in to Byline",
        csrf_token=visit.csrf_token,
        next=path,
        problem=problem,
        status=status,
    )


def _deactivated(principal: Principal) -> Response:
    text = f"The account of {principal.name} was deactivated here. Ask your administrator if you think that is wrong."
    return notice("You cannot sign in", text, status=403)
