"""Parse request bodies as JSON-RPC 2.0 messages, and refuse JSON that parsers read differently."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from mcp_types import HEADER_MISMATCH, INVALID_REQUEST, PARSE_ERROR, PROTOCOL_VERSION_META_KEY
from pydantic_core import from_json

MOST_VALUES: Final = 100_000
"""The maximum number of JSON values in a body. Each takes far more memory than it has characters."""
_MOST_DIGITS: Final = 308


@dataclass(frozen=True, slots=True)
class Message:
    """A request, by its id and method; a notification, without an id; or a response, without a method."""

    id: str | int | None
    method: str | None

    @property
    def is_request(self) -> bool:
        """Whether the message is a request, which needs a response."""
        return self.id is not None and self.method is not None


class MessageRefused(Exception):
    """A body or its headers are no message that can be served. It carries the HTTP status and the JSON-RPC code."""

    def __init__(
        self,
        message: str,
        code: int = INVALID_REQUEST,
        status: int = HTTPStatus.BAD_REQUEST,
        *,
        answers: str | int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.answers = answers
        """The id of the refused request, where it has one."""
        self.headers = headers


def read_message(body: bytes, version: str | None) -> Message:
    """Parse the message in a body that came with this `MCP-Protocol-Version` header; raises MessageRefused."""
    document = _parsed(body)
    if not isinstance(document, dict):
        raise MessageRefused(
            "The body is no JSON-RPC object. Send one message at a time: MCP has no batches."
        )
    message = _message(document)
    spoken = _spoken(document) if message.is_request else None
    # Where the header names an older protocol or none, the SDK would not check this.
    if spoken is not None and spoken != version:
        raise MessageRefused(
            "The header MCP-Protocol-Version does not name the protocol version that the body speaks.",
            HEADER_MISMATCH,
            answers=message.id,
        )
    return message


def _parsed(body: bytes) -> object:
    try:
        # The first parser refuses deep nesting, lone surrogates and all but UTF-8. The second refuses ambiguous JSON.
        from_json(body, allow_inf_nan=False)
        document = json.loads(body, object_pairs_hook=_object, parse_float=_float, parse_int=_integer)
    except ValueError as error:
        raise MessageRefused(f"The body is not JSON: {error}.", PARSE_ERROR) from error
    if len(body) > MOST_VALUES and _values(document) > MOST_VALUES:
        raise MessageRefused(f"The body holds more than {MOST_VALUES:,} values.")
    return document


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) != len(members):
        # RFC 8259 section 4: parsers differ in which of the two members they take.
        raise MessageRefused("The body has an object with two members of one name.")
    return found


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("number out of range")
    return number


def _integer(digits: str) -> int:
    # RFC 8259 section 6: parsers need not support more than a double holds.
    if len(digits) > _MOST_DIGITS:
        raise ValueError("number out of range")
    return int(digits)


def _values(document: object) -> int:
    count, unseen = 0, [document]
    while unseen and count <= MOST_VALUES:
        value = unseen.pop()
        count += 1
        if isinstance(value, dict):
            unseen += value.values()
        elif isinstance(value, list):
            unseen += value
    return count


def _message(document: Mapping[str, Any]) -> Message:
    """Convert a JSON object to a message (JSON-RPC 2.0 sections 4 and 5, with MCP's rules for ids)."""
    answers = document.get("id")
    if "id" in document and (isinstance(answers, bool) or not isinstance(answers, str | int)):
        raise MessageRefused("A message's id is a string or an integer.")
    if document.get("jsonrpc") != "2.0":
        raise MessageRefused('A message says "jsonrpc": "2.0".', answers=answers)
    if "method" not in document:
        # A response without an id, as to an unreadable request, belongs to no request of the gateway.
        if answers is None or ("result" in document) == ("error" in document):
            raise MessageRefused(
                "A message has a method, or an id with either a result or an error.", answers=answers
            )
        if not isinstance(document.get("result", document.get("error")), dict):
            raise MessageRefused("A result is an object, and so is an error.")
        return Message(answers, None)
    method = document["method"]
    if not isinstance(method, str):
        raise MessageRefused("A message's method is a string.", answers=answers)
    if not isinstance(document.get("params", {}), dict):
        raise MessageRefused("A message's params are an object.", answers=answers)
    return Message(answers, method)


def _spoken(document: Mapping[str, Any]) -> str | None:
    """Return the protocol version in the `_meta` of a message of the modern protocol, or None."""
    meta = document.get("params", {}).get("_meta")
    version = meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(meta, dict) else None
    return version if isinstance(version, str) else None
