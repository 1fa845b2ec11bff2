"""Header values as Temporal carries them: JSON payloads, in clear, since they hold statements and never secrets."""

import json
from collections.abc import Mapping
from typing import Any

from temporalio.api.common.v1 import Payload

_METADATA = {"encoding": b"json/plain"}


def payload_of(value: object) -> Payload:
    """A header value of any JSON type."""
    return Payload(metadata=_METADATA, data=json.dumps(value, separators=(",", ":")).encode())


def read(headers: Mapping[str, Payload], name: str) -> Any:
    """The JSON value of a header; None where it is absent or not JSON."""
    payload = headers.get(name)
    if payload is None:
        return None
    try:
        return json.loads(payload.data)
    except (ValueError, RecursionError):
        return None


def read_text(headers: Mapping[str, Payload], name: str) -> str | None:
    """The text of a header; None where it is absent or not text."""
    value = read(headers, name)
    return value if isinstance(value, str) else None
