"""How a sign-in is refused: the line in the trail, and the words for one to another account; it refuses none itself."""

from engine.audit.trail import AuditEvent
from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.errors import AccountMismatched, BylineError
from engine.identity.model import Principal


def refusal(person: Principal, error: BylineError, request: AuthorizationRequest | None = None) -> AuditEvent:
    """The event that tells what somebody tried, for which question as far as that is known, and why it was refused."""
    return AuditEvent(
        kind="authorization.refused",
        principal=person,
        connection=None if request is None else request.connection,
        request_id=None if request is None else request.id,
        error=error.code,
        message=str(error),
    )


def mismatched(request: AuthorizationRequest, connection: Connection, account: str) -> AccountMismatched:
    """What to tell somebody who signed in to another account than the one that is waited for."""
    msg = (
        f"You signed in to {connection.title} as '{account}', and '{request.about}' is asked for: what waits goes on "
        f"with that account alone. '{account}' is connected now as well, and nothing else changed."
    )
    return AccountMismatched(msg, request=request.id)
