"""Build the links and the short texts that ask a person to sign in or to answer, for every entry point."""

from engine.authorization.requests import AuthorizationRequest
from engine.questions.questions import Question
from engine.services import Services
from engine.waiting.page_paths import build_connect_path, build_question_path


def build_connect_link(services: Services, authorization_request: AuthorizationRequest) -> str:
    """Return the address of an authorization request's page, which opens only for the people it is addressed to."""
    return f"{services.settings.public_url}{build_connect_path(authorization_request.id)}"


def build_question_link(services: Services, question: Question) -> str:
    """Return the address of a question's page, which opens only for the people it is addressed to."""
    return f"{services.settings.public_url}{build_question_path(question.id)}"


def describe_request(authorization_request: AuthorizationRequest, connection_title: str) -> str:
    """Describe in a few words what the person has to do at the connection with this title, naming no account."""
    if authorization_request.request_kind == "choice":
        return f"Choose which of your accounts at {connection_title} to use"
    return f"Sign in to {connection_title}"
