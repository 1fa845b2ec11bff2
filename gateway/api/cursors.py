"""Builds pages of a list that grows. Cursors carry a MAC, so that only a cursor of this list is accepted."""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Final, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from engine.vault.vault import Vault
from gateway.api.problems import Refused

T = TypeVar("T")

Position = Sequence[str | int]
"""The sort key of the last item of a page, as JSON holds it."""

Place = tuple[datetime, str]
"""The time and id of an item, in a list that is ordered by them."""

_MAC_BYTES: Final = 16

USUAL_LIMIT: Final = 20
Limit = Annotated[int, Query(ge=1, le=200, description="The most items on a page.")]
After = Annotated[
    str | None,
    Query(max_length=1000, description="`next_cursor` of the page before; leave it out for the first."),
]


class Page(BaseModel, Generic[T]):
    """A page of items, with the cursor of the page after it."""

    items: list[T]
    next_cursor: str | None = Field(description="Send it as `after` for the next page; null on the last one.")


class Cursors:
    """Seals and opens the cursors of one list."""

    def __init__(self, vault: Vault, of: str) -> None:
        self._vault = vault
        self._purpose = f"api cursor {of}"

    def seal(self, position: Position) -> str:
        """Return the cursor of a position."""
        body = json.dumps(list(position), separators=(",", ":")).encode()
        mac = _mac(self._vault.derived(self._purpose)[0], body)
        return base64.urlsafe_b64encode(mac + body).decode().rstrip("=")

    def open(self, cursor: str | None) -> Position | None:
        """Return the position of a cursor, or None for the first page.

        Raises RequestRefused for a cursor of another list.
        """
        if cursor is None:
            return None
        try:
            sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            sealed = b""
        mac, body = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        if not any(hmac.compare_digest(mac, _mac(key, body)) for key in self._vault.derived(self._purpose)):
            detail = "This cursor belongs to no page of this list. Start again without one."
            raise Refused(HTTPStatus.BAD_REQUEST, "cursor_invalid", detail)
        position: Position = json.loads(body)
        return position

    def place(self, cursor: str | None) -> Place | None:
        """Return the time and id of a cursor, for a list that is ordered by them. Otherwise as `open_cursor`."""
        position = self.open(cursor)
        return None if position is None else (datetime.fromisoformat(str(position[0])), str(position[1]))

    def page(self, items: list[T], positions: Sequence[Position], limit: int) -> Page[T]:
        """Build a page of at most `limit` items from the items of a query for one more, and the position of each."""
        is_last = len(items) <= limit
        return Page(items=items[:limit], next_cursor=None if is_last else self.seal(positions[limit - 1]))


def position(place: Place) -> Position:
    """Convert a time and id to the position that a cursor holds."""
    moment, item_id = place
    return [moment.isoformat(), item_id]


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES]
