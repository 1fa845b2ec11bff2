"""Sessions of signed-in browsers: a random cookie, of which only the hash is stored, and a CSRF token for forms."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy import delete
from sqlmodel import col, select

from engine.db.database import Database, utc_now
from engine.db.tables import BrowserSessionRow
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.vault.digests import digest_secret
from gateway.browser.cookies import BrowserCookie
from gateway.browser.forms import read_form_fields
from gateway.browser.visits import BrowserVisit


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """One signed-in browser. `id` is the hash of its cookie and does not reveal the cookie."""

    id: str
    csrf_token: str
    principal: Principal
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class NewBrowserSession:
    """A session that has just begun, with its cookie's value, which only the browser stores."""

    browser_session: BrowserSession
    cookie_value: str


@dataclass(frozen=True, slots=True)
class FormSubmission:
    """A form that was submitted from a page of this session."""

    browser_session: BrowserSession
    form_fields: Mapping[str, str]


class BrowserSessions:
    """Begins, finds and ends browser sessions. Owns their table."""

    def __init__(
        self, database: Database, principals: Principals, *, session_lifetime: timedelta, is_secure: bool
    ) -> None:
        self._database = database
        self._principals = principals
        self._session_lifetime = session_lifetime
        self._session_cookie = BrowserCookie("byline", is_secure=is_secure)

    async def find_session(self, request: Request) -> BrowserSession | None:
        """Return this browser's session, or None where there is none, it expired or its principal is deactivated."""
        cookie_value = self._session_cookie.read_value(request)
        if not cookie_value:
            return None
        async with self._database.open_read_session() as db_session:
            session_row = await db_session.get(BrowserSessionRow, digest_secret(cookie_value))
        if session_row is None or session_row.expires_at <= utc_now():
            return None
        principal = await self._principals.find_principal(session_row.principal_id)
        return (
            _to_browser_session(session_row, principal)
            if principal is not None and principal.is_active
            else None
        )

    async def read_submission(self, request: Request) -> FormSubmission | None:
        """Return the posted form; None without a session or where the CSRF token is not the session's."""
        browser_session = await self.find_session(request)
        if browser_session is None:
            return None
        form_fields = await read_form_fields(request, browser_session.csrf_token)
        return None if form_fields is None else FormSubmission(browser_session, form_fields)

    async def find_signed_in_principal(self, visit: BrowserVisit) -> Principal | None:
        """Return the principal who already signed in from this visit, even if the browser dropped the response."""
        statement = select(BrowserSessionRow.principal_id).where(BrowserSessionRow.visit == visit.id)
        async with self._database.open_read_session() as db_session:
            principal_id = (await db_session.exec(statement)).first()
        return None if principal_id is None else await self._principals.find_principal(principal_id)

    async def begin_session(
        self, request: Request, principal: Principal, visit: BrowserVisit
    ) -> NewBrowserSession:
        """Begin a session and end the browser's earlier one, so that no session id survives a sign-in."""
        cookie_value = secrets.token_urlsafe(32)
        session_row = BrowserSessionRow(
            id_hash=digest_secret(cookie_value),
            principal_id=principal.id,
            csrf_token=secrets.token_urlsafe(32),
            visit=visit.id,
            created_at=utc_now(),
            expires_at=utc_now() + self._session_lifetime,
        )
        earlier_hash = digest_secret(self._session_cookie.read_value(request))
        deletion_condition = (col(BrowserSessionRow.id_hash) == earlier_hash) | (
            col(BrowserSessionRow.expires_at) <= utc_now()
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(delete(BrowserSessionRow).where(deletion_condition))
            db_session.add(session_row)
        return NewBrowserSession(_to_browser_session(session_row, principal), cookie_value)

    async def end_session(self, browser_session: BrowserSession) -> None:
        """Sign the browser out by deleting its session."""
        async with self._database.open_write_session() as db_session:
            await db_session.exec(
                delete(BrowserSessionRow).where(col(BrowserSessionRow.id_hash) == browser_session.id)
            )

    def store_session_cookie(self, response: Response, new_session: NewBrowserSession) -> Response:
        """Set the session's cookie in a response."""
        max_age_seconds = int((new_session.browser_session.expires_at - utc_now()).total_seconds())
        return self._session_cookie.store_value(
            response, new_session.cookie_value, max_age_seconds=max_age_seconds
        )

    def delete_session_cookie(self, response: Response) -> Response:
        """Delete the session's cookie in a response."""
        return self._session_cookie.delete_value(response)


def _to_browser_session(session_row: BrowserSessionRow, principal: Principal) -> BrowserSession:
    return BrowserSession(session_row.id_hash, session_row.csrf_token, principal, session_row.expires_at)
