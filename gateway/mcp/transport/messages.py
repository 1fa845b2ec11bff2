"""Read JSON-RPC 2.0 messages, and refuse JSON that parsers read differently. Byline parses a body once, here."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NoReturn

from mcp_types import HEADER_MISMATCH, INVALID_REQUEST, PARSE_ERROR, PROTOCOL_VERSION_META_KEY

MAX_JSON_VALUES: Final = 100_000
"""The maximum number of JSON values in a body. Each takes far more memory than it has characters."""
MAX_JSON_DEPTH: Final = 200
"""The maximum number of objects and arrays around a value. The SDK's parser for older protocols takes no more."""
_MAX_NUMBER_DIGITS: Final = 308
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class JsonRpcMessage:
    """A request, with id and method; a notification, without an id; or a response, without a method."""

    id: str | int | None
    method: str | None
    params: Mapping[str, Any] = field(default_factory=dict)

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
    body_version = _find_protocol_version(message.params) if message.is_request else None
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
        document = _STRICT_DECODER.decode(request_body.decode())
    except ValueError as error:
        raise MessageRefused(f"The body is not JSON: {error}.", PARSE_ERROR) from error
    except RecursionError as error:
        raise _refuse_depth() from error
    # A small body holds few values, and few brackets nest in few levels.
    if len(request_body) > MAX_JSON_VALUES or _count_brackets(request_body) > MAX_JSON_DEPTH:
        _require_bounded(document)
    if _SURROGATE_ESCAPE.search(request_body):
        _require_whole_surrogates(document)
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


def _refuse_constant(constant_name: str) -> NoReturn:
    raise ValueError(f"{constant_name} is no JSON number")


# Python's own decoder takes what RFC 8259 leaves open, and these functions refuse it.
_STRICT_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_build_object,
    parse_float=_parse_float,
    parse_int=_parse_integer,
    parse_constant=_refuse_constant,
)


def _count_brackets(request_body: bytes) -> int:
    """Return how many objects and arrays a body may open, which is at least how deep it nests them."""
    return request_body.count(b"[") + request_body.count(b"{")


def _require_bounded(document: object) -> None:
    """Raise MessageRefused where a document nests too deeply or holds too many values."""
    value_count, depth, values_at_depth = 0, 0, [document]
    while values_at_depth:
        value_count += len(values_at_depth)
        if value_count > MAX_JSON_VALUES:
            raise MessageRefused(f"The body holds more than {MAX_JSON_VALUES:,} values.")
        containers = [json_value for json_value in values_at_depth if isinstance(json_value, dict | list)]
        if containers and depth >= MAX_JSON_DEPTH:
            raise _refuse_depth()
        depth += 1
        values_at_depth = [
            inner_value
            for container in containers
            for inner_value in (container.values() if isinstance(container, dict) else container)
        ]


def _refuse_depth() -> MessageRefused:
    return MessageRefused(f"The body is not JSON: it nests more than {MAX_JSON_DEPTH} levels.", PARSE_ERROR)


def _require_whole_surrogates(document: object) -> None:
    """Raise MessageRefused where a string holds half a surrogate pair, which UTF-8 has no bytes for."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise MessageRefused(
            "The body is not JSON: a string holds half a surrogate pair.", PARSE_ERROR
        ) from error


def _to_message(document: Mapping[str, Any]) -> JsonRpcMessage:
    """Convert a JSON object to a message (JSON-RPC 2.0 sections 4 and 5, with MCP's rules for ids)."""
    request_id = document.get("id")
    if "id" in document and (isinstance(request_id, bool) or not isinstance(request_id, str | int)):
        raise MessageRefused("A message's id is a string or an integer.")
    if document.get("jsonrpc") != "2.0":
        raise MessageRefused('A message says "jsonrpc": "2.0".', request_id=request_id)
    if "method" in document and ("result" in document or "error" in document):
        raise MessageRefused("A message is a request or a response, and not both.", request_id=request_id)
    if "method" not in document:
        # A response without an id, as to an unreadable request, belongs to no request of the gateway.
        if request_id is None or ("result" in document) == ("error" in document):
            raise MessageRefused(
                "A message has a method, or an id with either a result or an error.", request_id=request_id
            )
        if not isinstance(document.get("result", document.get("error")), dict):
            raise MessageRefused("A result is an object, and so is an error.")
        return JsonRpcMessage(request_id, method=None)
    method = document["method"]
    if not isinstance(method, str):
        raise MessageRefused("A message's method is a string.", request_id=request_id)
    params = document.get("params", {})
    if not isinstance(params, dict):
        raise MessageRefused("A message's params are an object.", request_id=request_id)
    return JsonRpcMessage(request_id, method, params)


def _find_protocol_version(params: Mapping[str, Any]) -> str | None:
    """Return the protocol version in the `_meta` of a message of the modern protocol, or None."""
    request_meta = params.get("_meta")
    protocol_version = request_meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(request_meta, dict) else None
    return protocol_version if isinstance(protocol_version, str) else None
