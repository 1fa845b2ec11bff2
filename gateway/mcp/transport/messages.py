"""Parse request bodies as JSON-RPC 2.0 messages, and refuse JSON that parsers read differently."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from mcp_types import HEADER_MISMATCH, INVALID_REQUEST, PARSE_ERROR, PROTOCOL_VERSION_META_KEY
from pydantic_core import from_json

MAX_JSON_VALUES: Final = 100_000
"""The maximum number of JSON values in a body. Each takes far more memory than it has characters."""
_MAX_NUMBER_DIGITS: Final = 308


@dataclass(frozen=True, slots=True)
class JsonRpcMessage:
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
        json_rpc_code: int = INVALID_REQUEST,
        status_code: int = HTTPStatus.BAD_REQUEST,
        *,
        request_id: str | int | None = None,
        response_headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.json_rpc_code = json_rpc_code
        self.status_code = status_code
        self.request_id = request_id
        """The id of the refused request, where it has one."""
        self.response_headers = response_headers


def read_message(request_body: bytes, header_version: str | None) -> JsonRpcMessage:
    """Parse the message in a body that came with this `MCP-Protocol-Version` header; raises MessageRefused."""
    document = _parse_body(request_body)
    if not isinstance(document, dict):
        raise MessageRefused(
            "The body is no JSON-RPC object. Send one message at a time: MCP has no batches."
        )
    message = _to_message(document)
    body_version = _find_protocol_version(document) if message.is_request else None
    # Where the header names an older protocol or none, the SDK would not check this.
    if body_version is not None and body_version != header_version:
        raise MessageRefused(
            "The header MCP-Protocol-Version does not name the protocol version that the body speaks.",
            HEADER_MISMATCH,
            request_id=message.id,
        )
    return message


def _parse_body(request_body: bytes) -> object:
    try:
        # The first parser refuses deep nesting, lone surrogates and all but UTF-8. The second refuses ambiguous JSON.
        from_json(request_body, allow_inf_nan=False)
        document = json.loads(
            request_body, object_pairs_hook=_build_object, parse_float=_parse_float, parse_int=_parse_integer
        )
    except ValueError as error:
        raise MessageRefused(f"The body is not JSON: {error}.", PARSE_ERROR) from error
    if len(request_body) > MAX_JSON_VALUES and _count_values(document) > MAX_JSON_VALUES:
        raise MessageRefused(f"The body holds more than {MAX_JSON_VALUES:,} values.")
    return document


def _build_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    members_by_name = dict(members)
    if len(members_by_name) != len(members):
        # RFC 8259 section 4: parsers differ in which of the two members they take.
        raise MessageRefused("The body has an object with two members of one name.")
    return members_by_name


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("number out of range")
    return number


def _parse_integer(digits: str) -> int:
    # RFC 8259 section 6: parsers need not support more than a double holds.
    if len(digits) > _MAX_NUMBER_DIGITS:
        raise ValueError("number out of range")
    return int(digits)


def _count_values(document: object) -> int:
    value_count, unseen_values = 0, [document]
    while unseen_values and value_count <= MAX_JSON_VALUES:
        json_value = unseen_values.pop()
        value_count += 1
        if isinstance(json_value, dict):
            unseen_values += json_value.values()
        elif isinstance(json_value, list):
            unseen_values += json_value
    return value_count


def _to_message(document: Mapping[str, Any]) -> JsonRpcMessage:
    """Convert a JSON object to a message (JSON-RPC 2.0 sections 4 and 5, with MCP's rules for ids)."""
    request_id = document.get("id")
    if "id" in document and (isinstance(request_id, bool) or not isinstance(request_id, str | int)):
        raise MessageRefused("A message's id is a string or an integer.")
    if document.get("jsonrpc") != "2.0":
        raise MessageRefused('A message says "jsonrpc": "2.0".', request_id=request_id)
    if "method" not in document:
        # A response without an id, as to an unreadable request, belongs to no request of the gateway.
        if request_id is None or ("result" in document) == ("error" in document):
            raise MessageRefused(
                "A message has a method, or an id with either a result or an error.", request_id=request_id
            )
        if not isinstance(document.get("result", document.get("error")), dict):
            raise MessageRefused("A result is an object, and so is an error.")
        return JsonRpcMessage(request_id, None)
    method = document["method"]
    if not isinstance(method, str):
        raise MessageRefused("A message's method is a string.", request_id=request_id)
    if not isinstance(document.get("params", {}), dict):
        raise MessageRefused("A message's params are an object.", request_id=request_id)
    return JsonRpcMessage(request_id, method)


def _find_protocol_version(document: Mapping[str, Any]) -> str | None:
    """Return the protocol version in the `_meta` of a message of the modern protocol, or None."""
    request_meta = document.get("params", {}).get("_meta")
    protocol_version = request_meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(request_meta, dict) else None
    return protocol_version if isinstance(protocol_version, str) else None
