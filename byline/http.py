"""A generic action for systems without a file of their own: one HTTP request through the audited client."""

from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from engine.sdk import action, upstream


class HttpRequest(BaseModel):
    """A request below the base URL of the action's connection.

    `record` names the touched record, as `kind/id`, in the audit trail. `idempotent` says that sending it twice is
    harmless.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: str
    params: dict[str, str] = Field(default_factory=dict)
    body: JsonValue = None
    record: str | None = None
    idempotent: bool | None = None


class HttpAnswer(BaseModel):
    """The response: `body` if it was JSON, otherwise `text`."""

    status: int
    body: JsonValue = None
    text: str = ""


def http_action(
    name: str, *, connection: str, scopes: tuple[str, ...] = (), reads_only: bool = False
) -> Callable[[HttpRequest], Awaitable[HttpAnswer]]:
    """Make an action that sends any one request on a connection; `name` is its wire name.

    Like every action, it fails if the response is outside 2xx. With `reads_only`, only a GET is sent.
    """

    @action(name, connection=connection, scopes=scopes, reads_only=reads_only)
    async def send_request(http_request: HttpRequest) -> HttpAnswer:
        """Send the request."""
        response = await upstream().request(
            http_request.method,
            http_request.path,
            record=http_request.record,
            idempotent=http_request.idempotent,
            params=http_request.params or None,
            json=http_request.body,
        )
        try:
            return HttpAnswer(status=response.status_code, body=response.json())
        except ValueError:
            return HttpAnswer(status=response.status_code, text=response.text)

    return send_request
