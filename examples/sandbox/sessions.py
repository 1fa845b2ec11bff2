"""Browser sessions on a system's sign-in pages, and the token that proves a form came from such a page."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from examples.sandbox.storage import Database

LIFETIME_SECONDS = 3600


@dataclass(frozen=True)
class Session:
    """The session of one browser, signed in as `sub` or not yet."""

    secret: str
    sub: str | None

    @property
    def form_token(self) -> str:
        """The token in each form of this session, against cross-site request forgery."""
        return hashlib.sha256(f"form:{self.secret}".encode()).hexdigest()

    def matches_form_token(self, form_token: str) -> bool:
        """Return whether a form came from a page of this session."""
        return hmac.compare_digest(self.form_token, form_token)


class Sessions:
    """The sessions of one system, stored by hash so that the file holds no usable cookie."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, sub: str | None) -> Session:
        """Start a session with a new secret, so that nobody can know it before the sign-in."""
        session = Session(secrets.token_urlsafe(32), sub)
        self._database.run("DELETE FROM sessions WHERE expires_at < ?", time.time())
        self._database.run(
            "INSERT INTO sessions VALUES (?, ?, ?)",
            _hash(session.secret),
            sub,
            time.time() + LIFETIME_SECONDS,
        )
        return session

    def find(self, secret: str | None) -> Session | None:
        """Return the session of a cookie, or None if it has ended."""
        if secret is None:
            return None
        row = self._database.one(
            "SELECT sub FROM sessions WHERE hash = ? AND expires_at > ?", _hash(secret), time.time()
        )
        return Session(secret, row["sub"]) if row else None

    def end(self, session: Session) -> None:
        """End a session."""
        self._database.run("DELETE FROM sessions WHERE hash = ?", _hash(session.secret))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
