"""Builds the audit event for a refused sign-in, and the error for a sign-in to another account than is asked for."""

from engine.audit.trail import AuditEvent
from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.errors import AccountMismatched, BylineError
from engine.identity.model import Principal


def build_refusal_event(
    person: Principal, error: BylineError, authorization_request: AuthorizationRequest | None = None
) -> AuditEvent:
    """Return the audit event for a refused attempt: who tried, for which request if that is known, and why."""
    return AuditEvent(
        kind="authorization.refused",
        principal=person,
        connection=None if authorization_request is None else authorization_request.connection_name,
        request_id=None if authorization_request is None else authorization_request.id,
        error=error.code,
        message=str(error),
    )


def build_mismatch_error(
    authorization_request: AuthorizationRequest, connection: Connection, account: str
) -> AccountMismatched:
    """Return the error for somebody who signed in to another account than the request asks for."""
    msg = (
        f"You signed in to {connection.title} as '{account}', and "
        f"'{authorization_request.about}' is asked for: what waits goes on "
        f"with that account alone. '{account}' is connected now as well, and nothing else changed."
    )
    return AccountMismatched(msg, request_id=authorization_request.id)
