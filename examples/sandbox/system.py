"""A sandbox system, as it is declared, and as it runs with a database."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter, Request

from examples.sandbox.people import NewPerson, SandboxPeople
from examples.sandbox.sessions import Sessions
from examples.sandbox.storage import Database, Document
from examples.sandbox.tokens import Tokens


class RequestRefused(Exception):
    """The request is refused, with a status, a body in the system's own format, and headers."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class OAuthPaths:
    """The paths of a system's OAuth endpoints."""

    authorize: str
    tokens: str
    revoke: str
    userinfo: str


@dataclass(frozen=True)
class System:
    """A system as it is declared.

    `error` formats a refusal as the real system does. `token_response` converts a token response of RFC 6749, with
    the issuer and the account, to the real system's form. If there is a `refresh_scope`, a refresh token requires
    consent to it. `invalid_status` is the status for a body with invalid values.
    """

    name: str
    title: str
    api: str
    oauth: OAuthPaths
    scopes: Mapping[str, str]
    people: tuple[NewPerson, ...]
    service_account: str
    documents: Mapping[str, tuple[Document, ...]]
    document_key: str
    router: APIRouter
    error: Callable[[int, str], Any]
    token_response: Callable[[Document, str, str], Document] = lambda response, _issuer, _sub: response
    refresh_scope: str | None = None
    invalid_status: int = 400


@dataclass(frozen=True)
class Client:
    """The one OAuth client registered with a system."""

    id: str
    secret: str
    redirect_uris: tuple[str, ...]


@dataclass(frozen=True)
class Sandbox:
    """A running system."""

    system: System
    issuer: str
    client: Client
    database: Database
    people: SandboxPeople
    sessions: Sessions
    tokens: Tokens

    def seed(self) -> None:
        """Fill an empty database with the system's people and documents."""
        if self.database.one("SELECT 1 FROM people"):
            return
        with self.database.transaction():
            for person in self.system.people:
                self.people.add(person)
            for kind, documents in self.system.documents.items():
                for document in documents:
                    self.database.keep(kind, str(document[self.system.document_key]), document)


def sandbox_of(request: Request) -> Sandbox:
    """Return the running system that received a request."""
    return cast("Sandbox", request.app.state.sandbox)
