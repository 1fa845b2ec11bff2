"""Sessions of signed-in browsers: a random cookie, of which only the hash is stored, and a CSRF token for forms."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy import delete
from sqlmodel import col, select

from engine.db.database import now
from engine.db.tables import BrowserSessionRow
from engine.identity.model import Principal
from engine.services import Services
from gateway.browser.cookies import Cookie
from gateway.browser.forms import fields_of
from gateway.browser.visits import Visit


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """One signed-in browser. `id` is the hash of its cookie and does not reveal the cookie."""

    id: str
    csrf_token: str
    principal: Principal
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session that has just begun, with its cookie's value, which only the browser stores."""

    session: BrowserSession
    cookie: str


@dataclass(frozen=True, slots=True)
class Submission:
    """A form that was submitted from a page of this session."""

    session: BrowserSession
    fields: Mapping[str, str]


class Sessions:
    """Begins, finds and ends browser sessions. Owns their table."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._principals = services.principals
        self._life = timedelta(seconds=services.settings.gateway.session_life)
        self._cookie = Cookie("byline", is_secure=services.settings.public_url.startswith("https://"))

    async def current(self, request: Request) -> BrowserSession | None:
        """Return this browser's session, or None where there is none, it expired or its principal is deactivated."""
        cookie = self._cookie.of(request)
        if not cookie:
            return None
        async with self._database.reading() as session:
            row = await session.get(BrowserSessionRow, _digest(cookie))
        if row is None or row.expires_at <= now():
            return None
        principal = await self._principals.get(row.principal_id)
        return _session(row, principal) if principal is not None and principal.active else None

    async def submitted(self, request: Request) -> Submission | None:
        """Return the posted form; None without a session or where the CSRF token is not the session's."""
        session = await self.current(request)
        if session is None:
            return None
        fields = await fields_of(request, session.csrf_token)
        return None if fields is None else Submission(session, fields)

    async def begun_by(self, visit: Visit) -> Principal | None:
        """Return the principal who already signed in from this visit, even if the browser dropped the response."""
        query = select(BrowserSessionRow.principal_id).where(BrowserSessionRow.visit == visit.id)
        async with self._database.reading() as session:
            found = (await session.exec(query)).first()
        return None if found is None else await self._principals.get(found)

    async def begin(self, request: Request, principal: Principal, visit: Visit) -> NewSession:
        """Begin a session and end the browser's earlier one, so that no session id survives a sign-in."""
        cookie = secrets.token_urlsafe(32)
        row = BrowserSessionRow(
            id_hash=_digest(cookie),
            principal_id=principal.id,
            csrf_token=secrets.token_urlsafe(32),
            visit=visit.id,
            created_at=now(),
            expires_at=now() + self._life,
        )
        earlier = _digest(self._cookie.of(request))
        over = (col(BrowserSessionRow.id_hash) == earlier) | (col(BrowserSessionRow.expires_at) <= now())
        async with self._database.writing() as session:
            await session.exec(delete(BrowserSessionRow).where(over))
            session.add(row)
        return NewSession(_session(row, principal), cookie)

    async def end(self, session: BrowserSession) -> None:
        """Sign the browser out by deleting its session."""
        async with self._database.writing() as database_session:
            await database_session.exec(
                delete(BrowserSessionRow).where(col(BrowserSessionRow.id_hash) == session.id)
            )

    def keep(self, response: Response, new: NewSession) -> Response:
        """Set the session's cookie in a response."""
        seconds = int((new.session.expires_at - now()).total_seconds())
        return self._cookie.keep(response, new.cookie, seconds=seconds)

    def forget(self, response: Response) -> Response:
        """Delete the session's cookie in a response."""
        return self._cookie.forget(response)


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


def _session(row: BrowserSessionRow, principal: Principal) -> BrowserSession:
    return BrowserSession(row.id_hash, row.csrf_token, principal, row.expires_at)
