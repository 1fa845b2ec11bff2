"""Codes, access tokens and refresh tokens of one system: issues, redeems, rotates and revokes them.

A family is every token of one consent. If its code or a refresh token is used twice, all are revoked (RFC 9700, 4.14).
"""

import base64
import hashlib
import hmac
import secrets
import sqlite3
import time
from dataclasses import dataclass

from examples.sandbox.storage import Database, Document

CODE_SECONDS = 60


class InvalidGrant(Exception):
    """The code or refresh token is unknown, used, expired, or from another request."""


class ScopeExceeded(Exception):
    """A refresh requested more scopes than the consent has."""


@dataclass(frozen=True)
class Consent:
    """What a person consented to: the account, the scopes, and the family of their tokens."""

    family: str
    sub: str
    scopes: tuple[str, ...]


class Tokens:
    """The tokens of one system, stored by hash."""

    def __init__(self, database: Database, access_token_seconds: int) -> None:
        self._database = database
        self._access_token_seconds = access_token_seconds

    def issue_code(self, sub: str, scopes: tuple[str, ...], redirect_uri: str, challenge: str) -> str:
        """Issue the authorization code of a new consent."""
        code = secrets.token_urlsafe(32)
        self._database.run(
            "INSERT INTO codes VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            _hash(code),
            secrets.token_hex(16),
            sub,
            " ".join(scopes),
            redirect_uri,
            challenge,
            time.time() + CODE_SECONDS,
        )
        return code

    def redeem_code(self, code: str, redirect_uri: str, verifier: str) -> Consent:
        """Redeem a code, once and only for its own request (RFC 6749, 4.1.3; RFC 7636, 4.6). Raises InvalidGrant."""
        row = self._database.one("SELECT * FROM codes WHERE hash = ?", _hash(code))
        if row is None:
            raise InvalidGrant
        if row["spent"]:
            self._revoke_family(row["family"])
            raise InvalidGrant
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            row["expires_at"] < time.time()
            or row["redirect_uri"] != redirect_uri
            or not hmac.compare_digest(row["challenge"], challenge)
        ):
            raise InvalidGrant
        self._database.run("UPDATE codes SET spent = 1 WHERE hash = ?", row["hash"])
        return _consent(row)

    def rotate(self, refresh_token: str, scopes: tuple[str, ...]) -> Consent:
        """Use up a refresh token, for the requested scopes or, if there are none, for all scopes of the consent."""
        sql = "SELECT * FROM tokens WHERE kind = 'refresh' AND hash = ?"
        row = self._database.one(sql, _hash(refresh_token))
        if row is None:
            raise InvalidGrant
        if row["spent"]:
            self._revoke_family(row["family"])
            raise InvalidGrant
        consent = _consent(row)
        if not set(scopes) <= set(consent.scopes):
            raise ScopeExceeded
        self._database.run("UPDATE tokens SET spent = 1 WHERE hash = ?", row["hash"])
        return consent

    def issue(self, consent: Consent, scopes: tuple[str, ...] = (), *, refreshable: bool) -> Document:
        """Return a token response (RFC 6749, 5.1). Its refresh token has all scopes of the consent."""
        granted_scopes = scopes or consent.scopes
        response: Document = {
            "access_token": self._store(
                "access", consent, granted_scopes, time.time() + self._access_token_seconds
            ),
            "token_type": "Bearer",
            "expires_in": self._access_token_seconds,
            "scope": " ".join(granted_scopes),
        }
        if refreshable:
            response["refresh_token"] = self._store("refresh", consent, consent.scopes, None)
        return response

    def holder(self, access_token: str) -> Consent | None:
        """Return the consent of an access token, or None if it is not valid."""
        row = self._database.one(
            "SELECT * FROM tokens WHERE kind = 'access' AND hash = ? AND NOT spent AND expires_at > ?",
            _hash(access_token),
            time.time(),
        )
        return _consent(row) if row else None

    def revoke(self, token: str) -> None:
        """Revoke an access token alone, or the whole family of a refresh token (RFC 7009, 2.1)."""
        row = self._database.one("SELECT * FROM tokens WHERE hash = ?", _hash(token))
        if row is None:
            return
        if row["kind"] == "refresh":
            self._revoke_family(row["family"])
        else:
            self._database.run("UPDATE tokens SET spent = 1 WHERE hash = ?", row["hash"])

    def _store(self, kind: str, consent: Consent, scopes: tuple[str, ...], expires_at: float | None) -> str:
        token = secrets.token_urlsafe(32)
        self._database.run(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, 0)",
            _hash(token),
            kind,
            consent.family,
            consent.sub,
            " ".join(scopes),
            expires_at,
        )
        return token

    def _revoke_family(self, family: str) -> None:
        self._database.run("UPDATE tokens SET spent = 1 WHERE family = ?", family)


def _consent(row: sqlite3.Row) -> Consent:
    return Consent(family=row["family"], sub=row["sub"], scopes=tuple(row["scope"].split()))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
