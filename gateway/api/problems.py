"""Answers every error of the API with problem details (RFC 9457), the web framework's own errors included."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from engine.errors import BylineError
from gateway.errors import http_status

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:byline:error:"


class Misfit(BaseModel):
    """One part of a request that does not fit its schema."""

    pointer: str = Field(
        description="Where: a JSON pointer into the body, or the kind and name of a parameter."
    )
    detail: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description=f"`{TYPE_PREFIX}` and the error's code, which never changes its meaning.")
    title: str
    status: int
    detail: str = Field(description="What happened and what to do about it.")
    errors: list[Misfit] | None = None


class Refused(Exception):
    """An error of the HTTP request itself, with its status. Errors of the domain are BylineErrors."""

    def __init__(
        self, status: HTTPStatus, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Build `responses=` of a route: the errors that it answers with, besides those that every route may."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}
        for status in statuses
    }


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: list[Misfit] | None = None,
) -> JSONResponse:
    """Build the response that describes a problem."""
    told = Problem(
        type=f"{TYPE_PREFIX}{code}",
        title=code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        errors=errors,
    )
    body = told.model_dump(exclude_none=True)
    return JSONResponse(body, status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def domain_problem(request: Request, error: Exception) -> JSONResponse:
    """Build the response to a domain error."""
    del request
    if not isinstance(error, BylineError):
        raise error
    return problem(http_status(error), error.code, str(error))


async def framework_problem(request: Request, error: Exception) -> JSONResponse:
    """Build the response to an error of the web framework, such as a path or method that no route has."""
    if not isinstance(error, HTTPException):
        raise error
    code, detail = _KNOWN.get(HTTPStatus(error.status_code), ("request_refused", str(error.detail)))
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
    return problem(error.status_code, code, detail, headers=headers)


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer every request with 404. This ASGI application serves the paths beside the API's versions."""
    answer = problem(HTTPStatus.NOT_FOUND, *_KNOWN[HTTPStatus.NOT_FOUND])
    await answer(scope, receive, send)


def tell_problems(api: FastAPI, challenge: str) -> None:
    """Register the handlers that answer every error with a problem. `challenge` goes with every 401."""

    async def domain(request: Request, error: Exception) -> JSONResponse:
        answer = domain_problem(request, error)
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            answer.headers["WWW-Authenticate"] = challenge
        return answer

    api.add_exception_handler(BylineError, domain)
    api.add_exception_handler(Refused, _refused)
    api.add_exception_handler(RequestValidationError, _misfits)
    api.add_exception_handler(HTTPException, framework_problem)
    api.add_exception_handler(Exception, _unexpected)


_REFERENCE: Final = {"$ref": "#/components/schemas/Problem"}
_KNOWN: Final = {
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


async def _refused(request: Request, error: Exception) -> JSONResponse:
    del request
    if not isinstance(error, Refused):
        raise error
    return problem(error.status, error.code, str(error), headers=error.headers)


async def _misfits(request: Request, error: Exception) -> JSONResponse:
    del request
    if not isinstance(error, RequestValidationError):
        raise error
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return problem(HTTPStatus.BAD_REQUEST, *_KNOWN[HTTPStatus.BAD_REQUEST])
    errors = [Misfit(pointer=_pointer(each["loc"]), detail=each["msg"]) for each in found]
    listed = "; ".join(f"{each.pointer}: {each.detail}" for each in errors)
    return problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "request_invalid",
        f"The request does not fit: {listed}.",
        errors=errors,
    )


def _methods(request: Request) -> list[str]:
    """List every method of an address. The framework knows only those of the first route that has its path."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in routes for method in getattr(route, "methods", None) or ()})


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    del request, error
    detail = "Something went wrong here that is not your request's fault. The gateway's log says what."
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail)


def _pointer(location: tuple[str | int, ...]) -> str:
    place, *rest = location
    if place != "body":
        return " ".join(map(str, location))
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in rest)
