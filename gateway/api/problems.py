"""Answers every error of the API with problem details (RFC 9457), the web framework's own errors included."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from engine.errors import BylineError
from gateway.http.problems import PROBLEM_MEDIA_TYPE, InvalidPart, answer_domain_error, build_problem_response


class RequestRefused(Exception):
    """An error of the HTTP request itself, with its status. Errors of the domain are BylineErrors."""

    def __init__(
        self, status_code: HTTPStatus, error_code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status_code = status_code
        self.error_code = error_code
        self.headers = headers


def describe_problems(*status_codes: int) -> dict[int | str, dict[str, Any]]:
    """Build `responses=` of a route: the errors that it answers with, besides those that every route may."""
    return {
        status_code: {
            "description": HTTPStatus(status_code).phrase,
            "content": {PROBLEM_MEDIA_TYPE: {"schema": _PROBLEM_REFERENCE}},
        }
        for status_code in status_codes
    }


async def answer_framework_error(request: Request, error: Exception) -> JSONResponse:
    """Build the response to an error of the web framework, such as a path or method that no route has."""
    if not isinstance(error, HTTPException):
        raise error
    error_code, detail = _FRAMEWORK_PROBLEMS.get(
        HTTPStatus(error.status_code), ("request_refused", str(error.detail))
    )
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_list_methods(request))
    return build_problem_response(error.status_code, error_code, detail, headers=headers)


async def answer_not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request with 404. This ASGI application serves the paths beside the API's versions."""
    not_found_response = build_problem_response(
        HTTPStatus.NOT_FOUND, *_FRAMEWORK_PROBLEMS[HTTPStatus.NOT_FOUND]
    )
    await not_found_response(scope, receive, send)


def register_error_handlers(api_app: FastAPI, bearer_challenge: str) -> None:
    """Register the handlers that answer every error with a problem. `challenge` goes with every 401."""

    async def answer_with_challenge(request: Request, error: Exception) -> JSONResponse:
        problem_response = answer_domain_error(request, error)
        if problem_response.status_code == HTTPStatus.UNAUTHORIZED:
            problem_response.headers["WWW-Authenticate"] = bearer_challenge
        return problem_response

    api_app.add_exception_handler(BylineError, answer_with_challenge)
    api_app.add_exception_handler(RequestRefused, _answer_refused_request)
    api_app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    api_app.add_exception_handler(HTTPException, answer_framework_error)
    api_app.add_exception_handler(Exception, _answer_unexpected_error)


_PROBLEM_REFERENCE: Final = {"$ref": "#/components/schemas/Problem"}
_FRAMEWORK_PROBLEMS: Final = {
    HTTPStatus.NOT_FOUND: (
        "not_found",
        "There is nothing at this address. /api/v1/openapi.json lists what there is.",
    ),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "method_not_allowed",
        "This address does not take this method; see Allow.",
    ),
    HTTPStatus.BAD_REQUEST: ("request_unreadable", "The body cannot be read: send JSON in UTF-8."),
}


async def _answer_refused_request(request: Request, error: Exception) -> JSONResponse:
    del request
    if not isinstance(error, RequestRefused):
        raise error
    return build_problem_response(error.status_code, error.error_code, str(error), headers=error.headers)


async def _answer_invalid_request(request: Request, error: Exception) -> JSONResponse:
    del request
    if not isinstance(error, RequestValidationError):
        raise error
    validation_errors = error.errors()
    if any(validation_error["type"] == "json_invalid" for validation_error in validation_errors):
        return build_problem_response(HTTPStatus.BAD_REQUEST, *_FRAMEWORK_PROBLEMS[HTTPStatus.BAD_REQUEST])
    invalid_parts = [
        InvalidPart(pointer=_build_pointer(validation_error["loc"]), detail=validation_error["msg"])
        for validation_error in validation_errors
    ]
    parts_text = "; ".join(f"{invalid_part.pointer}: {invalid_part.detail}" for invalid_part in invalid_parts)
    return build_problem_response(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "request_invalid",
        f"The request does not fit: {parts_text}.",
        invalid_parts=invalid_parts,
    )


def _list_methods(request: Request) -> list[str]:
    """List every method of an address. The framework knows only those of the first route that has its path."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({http_method for route in routes for http_method in getattr(route, "methods", None) or ()})


async def _answer_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    del request, error
    detail = "Something went wrong here that is not your request's fault. The gateway's log says what."
    return build_problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail)


def _build_pointer(location: tuple[str | int, ...]) -> str:
    location_kind, *field_path = location
    if location_kind != "body":
        return " ".join(map(str, location))
    return "".join(
        f"/{str(path_segment).replace('~', '~0').replace('/', '~1')}" for path_segment in field_path
    )
