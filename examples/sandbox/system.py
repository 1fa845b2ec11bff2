"""What a sandbox system is: as declared, and as running with a database; holds no rule of any one system."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter, Request

from examples.sandbox.people import NewPerson, People
from examples.sandbox.sessions import Sessions
from examples.sandbox.storage import Database, Document
from examples.sandbox.tokens import Tokens


class Refused(Exception):
    """The answer is no: a status, a body in the system's own words, and headers."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class OAuthPaths:
    """Where a system keeps its OAuth endpoints."""

    authorize: str
    tokens: str
    revoke: str
    userinfo: str


@dataclass(frozen=True)
class System:
    """A system as its maker declares it.

    `error` words a refusal the way the real system does. `token_response` turns RFC 6749's token response,
    given the issuer and the account, into what the real system sends. Where there is a `refresh_scope`, only
    who consents to it gets a refresh token. `invalid_status` meets a body whose values are wrong.
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
    people: People
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
    """Give the running system that a request came to."""
    return cast("Sandbox", request.app.state.sandbox)
