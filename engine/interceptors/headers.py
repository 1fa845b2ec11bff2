"""Encodes and decodes Temporal header values as JSON payloads.

They are not encrypted, since they hold signed statements and never secrets.
"""

import json
from collections.abc import Mapping
from typing import Any

from temporalio.api.common.v1 import Payload

_METADATA = {"encoding": b"json/plain"}


def payload_of(value: object) -> Payload:
    """Encode a JSON value as the payload of a header."""
    return Payload(metadata=_METADATA, data=json.dumps(value, separators=(",", ":")).encode())


def read(headers: Mapping[str, Payload], name: str) -> Any:
    """Return the JSON value of a header, or None if it is absent or not JSON."""
    payload = headers.get(name)
    if payload is None:
        return None
    try:
        return json.loads(payload.data)
    except (ValueError, RecursionError):
        return None


def read_text(headers: Mapping[str, Payload], name: str) -> str | None:
    """Return the text of a header, or None if it is absent or not text."""
    value = read(headers, name)
    return value if isinstance(value, str) else None
