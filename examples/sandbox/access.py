"""Authenticates the callers of a system's API and checks their permissions."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from examples.sandbox.people import SandboxPerson
from examples.sandbox.storage import Database
from examples.sandbox.system import RequestRefused, Sandbox, sandbox_of


@dataclass(frozen=True)
class Caller:
    """The account of an access token, and the system that received it."""

    person: SandboxPerson
    sandbox: Sandbox

    @property
    def database(self) -> Database:
        """The system's database."""
        return self.sandbox.database

    def may(self, action: str, target: str) -> bool:
        """Return whether this account may perform the action on the object."""
        return self.sandbox.people.may(self.person, action, target)

    def require(self, action: str, target: str) -> None:
        """Raise Refused unless this account may perform the action on the object."""
        if not self.may(action, target):
            message = f"{self.person.username} may not {action} {target}"
            raise RequestRefused(403, self.sandbox.system.error(403, message))


def caller_with(*scopes: str) -> Callable[[Request], Awaitable[Caller]]:
    """Return the dependency that requires a valid access token with one of the scopes, or with any scope."""

    async def caller(request: Request) -> Caller:
        sandbox = sandbox_of(request)
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        consent = sandbox.tokens.holder(token.strip()) if kind.lower() == "bearer" else None
        person = sandbox.people.get(consent.sub) if consent else None
        if consent is None or person is None:
            challenge = 'Bearer error="invalid_token"' if kind else "Bearer"
            body = sandbox.system.error(401, "Session expired or invalid")
            raise RequestRefused(401, body, {"WWW-Authenticate": challenge})
        request.state.account = person.username
        if scopes and not set(scopes) & set(consent.scopes):
            body = sandbox.system.error(403, f"The access token lacks the scope {scopes[0]}")
            challenge = f'Bearer error="insufficient_scope", scope="{scopes[0]}"'
            raise RequestRefused(403, body, {"WWW-Authenticate": challenge})
        return Caller(person, sandbox)

    return caller
