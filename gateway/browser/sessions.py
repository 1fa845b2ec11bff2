"""Browser sessions of people who are signed in: a random cookie whose hash is stored, and a token for their forms."""

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
    """One browser in which somebody is signed in; `id` names it without giving its cookie away."""

    id: str
    csrf_token: str
    principal: Principal
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session just begun, with the cookie that only the browser keeps."""

    session: BrowserSession
    cookie: str


@dataclass(frozen=True, slots=True)
class Submission:
    """A form that a page of this very session sent."""

    session: BrowserSession
    fields: Mapping[str, str]


class Sessions:
    """Owner of the table of browser sessions."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._principals = services.principals
        self._life = timedelta(seconds=services.settings.gateway.session_life)
        self._cookie = Cookie("byline", is_secure=services.settings.public_url.startswith("https://"))

    async def current(self, request: Request) -> BrowserSession | None:
        """The session of this browser; the one of a deactivated principal counts as none."""
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
        """The form that this request posts, where its token is the session's own."""
        session = await self.current(request)
        if session is None:
            return None
        fields = await fields_of(request, session.csrf_token)
        return None if fields is None else Submission(session, fields)

    async def begun_by(self, visit: Visit) -> Principal | None:
        """Who signed in by this visit already, and still is, though their browser gave it up."""
        query = select(BrowserSessionRow.principal_id).where(BrowserSessionRow.visit == visit.id)
        async with self._database.reading() as session:
            found = (await session.exec(query)).first()
        return None if found is None else await self._principals.get(found)

    async def begin(self, request: Request, principal: Principal, visit: Visit) -> NewSession:
        """A new session in the place of the browser's earlier one, which ends: an id never outlives a sign-in."""
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
        """Sign the browser out."""
        async with self._database.writing() as database_session:
            await database_session.exec(
                delete(BrowserSessionRow).where(col(BrowserSessionRow.id_hash) == session.id)
            )

    def keep(self, response: Response, new: NewSession) -> Response:
        """Hand the cookie to the browser."""
        seconds = int((new.session.expires_at - now()).total_seconds())
        return self._cookie.keep(response, new.cookie, seconds=seconds)

    def forget(self, response: Response) -> Response:
        """Take the cookie from the browser."""
        return self._cookie.forget(response)


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


def _session(row: BrowserSessionRow, principal: Principal) -> BrowserSession:
    return BrowserSession(row.id_hash, row.csrf_token, principal, row.expires_at)
