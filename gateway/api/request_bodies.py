"""Reads request bodies of the API: JSON only, within the gateway's limits, without unknown fields."""

from http import HTTPStatus
from typing import Final

from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.problems import build_problem_response

METHODS_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_ERROR_CODE_BY_STATUS: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.REQUEST_TIMEOUT: "body_too_slow",
    HTTPStatus.SERVICE_UNAVAILABLE: "too_many_bodies",
}


class RequestBody(BaseModel):
    """A request body. Unknown fields are refused, since whoever sent one meant something by it."""

    model_config = ConfigDict(extra="forbid")


class JsonBodyMiddleware:
    """Refuses bodies that the gateway's limits keep from being read (413, 408, 503) or that are not JSON (415).

    This ASGI middleware does so before anything else is done with the request.
    """

    def __init__(self, asgi_app: ASGIApp) -> None:
        self._asgi_app = asgi_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and pass it on or refuse it."""
        if scope["type"] != "http" or scope["method"] not in METHODS_WITH_BODY:
            await self._asgi_app(scope, receive, send)
            return
        try:
            request_body = await _read_body(receive)
        except HTTPException as error:
            error_code = _ERROR_CODE_BY_STATUS[HTTPStatus(error.status_code)]
            problem_response = build_problem_response(
                error.status_code, error_code, error.detail, headers=error.headers
            )
            await problem_response(scope, receive, send)
            return
        if request_body and not _is_json_content_type(Headers(scope=scope).get("content-type", "")):
            detail = "Send the body as application/json."
            problem_response = build_problem_response(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "media_type_unsupported", detail
            )
            await problem_response(scope, receive, send)
            return
        unread_messages = [{"type": "http.request", "body": request_body, "more_body": False}]

        async def replay_body() -> Message:
            return unread_messages.pop() if unread_messages else await receive()

        await self._asgi_app(scope, replay_body, send)


async def _read_body(receive: Receive) -> bytes:
    request_body = bytearray()
    while True:
        asgi_message = await receive()
        request_body += asgi_message.get("body", b"")
        if asgi_message["type"] != "http.request" or not asgi_message.get("more_body", False):
            return bytes(request_body)


def _is_json_content_type(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
