"""Encodes and decodes Temporal header values as JSON payloads.

They are not encrypted, since they hold signed statements and never secrets.
"""

import json
from collections.abc import Mapping
from typing import Any

from temporalio.api.common.v1 import Payload

_PAYLOAD_METADATA = {"encoding": b"json/plain"}


def encode_header(header_value: object) -> Payload:
    """Encode a JSON value as the payload of a header."""
    return Payload(metadata=_PAYLOAD_METADATA, data=json.dumps(header_value, separators=(",", ":")).encode())


def read_header(headers: Mapping[str, Payload], header_name: str) -> Any:
    """Return the JSON value of a header, or None if it is absent or not JSON."""
    payload = headers.get(header_name)
    if payload is None:
        return None
    try:
        return json.loads(payload.data)
    except (ValueError, RecursionError):
        return None


def read_header_text(headers: Mapping[str, Payload], header_name: str) -> str | None:
    """Return the text of a header, or None if it is absent or not text."""
    header_value = read_header(headers, header_name)
    return header_value if isinstance(header_value, str) else None
