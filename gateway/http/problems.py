"""Describes an error with problem details (RFC 9457), in the same way at every entry point that answers with them."""

from collections.abc import Mapping
from typing import Final

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from engine.errors import BylineError
from gateway.error_codes import to_http_status

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
PROBLEM_TYPE_PREFIX: Final = "urn:byline:error:"


class InvalidPart(BaseModel):
    """A part of a request that does not match its schema."""

    pointer: str = Field(description="A JSON pointer into the body, or the kind and name of a parameter.")
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description=f"`{PROBLEM_TYPE_PREFIX}` and the error's code, which never changes its meaning."
    )
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what to do about it.")
    errors: list[InvalidPart] | None = None


def build_problem_response(
    status_code: int,
    error_code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    invalid_parts: list[InvalidPart] | None = None,
) -> JSONResponse:
    """Build the response that describes a problem."""
    problem_details = Problem(
        type=f"{PROBLEM_TYPE_PREFIX}{error_code}",
        title=error_code.replace("_", " ").capitalize(),
        status=status_code,
        detail=detail,
        errors=invalid_parts,
    )
    problem_json = problem_details.model_dump(exclude_none=True)
    return JSONResponse(
        problem_json, status_code=status_code, headers=dict(headers or {}), media_type=PROBLEM_MEDIA_TYPE
    )


def answer_domain_error(_request: Request, error: Exception) -> JSONResponse:
    """Build the response to a domain error."""
    if not isinstance(error, BylineError):
        raise error
    return build_problem_response(to_http_status(error), error.code, str(error))
