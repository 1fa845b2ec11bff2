"""Build the links and the short texts that ask a person to sign in or to answer, alike for every door."""

from engine.authorization.requests import AuthorizationRequest
from engine.questions.questions import Question
from engine.services import Services
from engine.waiting.addresses import connect_path, question_path


def connect_link(services: Services, request: AuthorizationRequest) -> str:
    """Return the address of an authorization request's page, which opens only for the people it is addressed to."""
    return f"{services.settings.public_url}{connect_path(request.id)}"


def question_link(services: Services, question: Question) -> str:
    """Return the address of a question's page, which opens only for the people it is addressed to."""
    return f"{services.settings.public_url}{question_path(question.id)}"


def what_is_asked(request: AuthorizationRequest, title: str) -> str:
    """Describe in a few words what the person has to do at the connection with this title, naming no account."""
    if request.asks == "choice":
        return f"Choose which of your accounts at {title} to use"
    return f"Sign in to {title}"
