"""What a person is asked, as a link and in words, for every door that tells of it; it lets nobody in."""

from engine.authorization.requests import AuthorizationRequest
from engine.questions.questions import Question
from engine.services import Services
from engine.waiting.addresses import connect_path, question_path


def connect_link(services: Services, request: AuthorizationRequest) -> str:
    """The page of an authorization request, which opens for whom it asks."""
    return f"{services.settings.public_url}{connect_path(request.id)}"


def question_link(services: Services, question: Question) -> str:
    """The page of a question, which opens for whom it asks."""
    return f"{services.settings.public_url}{question_path(question.id)}"


def what_is_asked(request: AuthorizationRequest, title: str) -> str:
    """What a person is asked to do at a connection with this title, in a few words that name no account."""
    if request.asks == "choice":
        return f"Choose which of your accounts at {title} to use"
    return f"Sign in to {title}"
