"""Reads request bodies of the API: JSON only, within the gateway's limits, without unknown fields."""

from http import HTTPStatus
from typing import Final

from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.problems import problem

WRITING: Final = frozenset({"POST", "PUT", "PATCH"})
_UNREAD: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.REQUEST_TIMEOUT: "body_too_slow",
    HTTPStatus.SERVICE_UNAVAILABLE: "too_many_bodies",
}


class Body(BaseModel):
    """A request body. Unknown fields are refused, since whoever sent one meant something by it."""

    model_config = ConfigDict(extra="forbid")


class JsonBodies:
    """Refuses bodies that the gateway's limits keep from being read (413, 408, 503) or that are not JSON (415).

    This ASGI middleware does so before anything else is done with the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and pass it on or refuse it."""
        if scope["type"] != "http" or scope["method"] not in WRITING:
            await self._app(scope, receive, send)
            return
        try:
            body = await _read(receive)
        except HTTPException as error:
            code = _UNREAD[HTTPStatus(error.status_code)]
            refused = problem(error.status_code, code, error.detail, headers=error.headers)
            await refused(scope, receive, send)
            return
        if body and not _is_json(Headers(scope=scope).get("content-type", "")):
            detail = "Send the body as application/json."
            refused = problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media_type_unsupported", detail)
            await refused(scope, receive, send)
            return
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
