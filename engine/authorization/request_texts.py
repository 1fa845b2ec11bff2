"""Says in a few words what an authorization request asks of its person. No text names an account."""

from engine.authorization.requests import AuthorizationRequest


def describe_request(authorization_request: AuthorizationRequest, connection_title: str) -> str:
    """Return the beginning of a sentence that asks the person, for a connection with this title."""
    if authorization_request.request_kind == "choice":
        return f"Choose which of your accounts at {connection_title} to use"
    return f"Sign in to {connection_title}"


def describe_awaited_action(authorization_request: AuthorizationRequest, connection_title: str) -> str:
    """Return the end of a sentence that says what a run waits for its person to do."""
    if authorization_request.request_kind == "choice":
        return f"choose an account at {connection_title}"
    return f"sign in to {connection_title}"
