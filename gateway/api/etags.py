"""Prevents lost updates: a strong ETag from a row's version, and the If-Match header of a change (RFC 9110)."""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, Header, Response

from gateway.api.problems import RequestRefused

_ETAG_PATTERN: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')


@dataclass(frozen=True, slots=True)
class Precondition:
    """The versions that a change is meant for, or None for any version."""

    versions: frozenset[int] | None

    def check_version(self, version: int) -> int:
        """Return the version, as the condition of the update.

        Raises RequestRefused where the change is meant for another version.
        """
        if self.versions is not None and version not in self.versions:
            raise build_stale_error()
        return version


def set_etag(response: Response, version: int) -> None:
    """Set the ETag header of a response to a version."""
    response.headers["ETag"] = f'"{version}"'


def build_stale_error() -> RequestRefused:
    """Build the error for a change that came second, also for an update that found another version."""
    detail = "It was changed since you read it. Read it again, and send its ETag in If-Match."
    return RequestRefused(HTTPStatus.PRECONDITION_FAILED, "precondition_failed", detail)


async def _read_if_match(
    if_match: Annotated[
        str | None,
        Header(
            description="The ETag of the version that you read and want to change. A change without it is refused."
        ),
    ] = None,
) -> Precondition:
    if if_match is None:
        detail = "Send the ETag of what you change in If-Match, so that no other change is lost."
        raise RequestRefused(HTTPStatus.PRECONDITION_REQUIRED, "precondition_required", detail)
    if if_match.strip() == "*":
        return Precondition(None)
    # Weak tags never match here (RFC 9110 section 13.1.1), and a tag that is no version of ours matches nothing.
    strong_etags = [
        entity_tag for weak_prefix, entity_tag in _ETAG_PATTERN.findall(if_match) if not weak_prefix
    ]
    return Precondition(
        frozenset(
            int(entity_tag)
            for entity_tag in strong_etags
            if entity_tag.isascii() and entity_tag.isdecimal() and len(entity_tag) < 10
        )
    )


IfMatch = Annotated[Precondition, Depends(_read_if_match)]
"""The precondition of a change, as in `async def change(precondition: IfMatch, …)`.

Add `describe_problems(412, 428)` to the route.
"""
