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
from gateway.api.problems import RequestRefused

PageItem = TypeVar("PageItem")

CursorPosition = Sequence[str | int]
"""The sort key of the last item of a page, as JSON holds it."""

TimeAndId = tuple[datetime, str]
"""The time and id of an item, in a list that is ordered by them."""

_MAC_BYTES: Final = 16

DEFAULT_PAGE_ITEMS: Final = 20
PageLimit = Annotated[int, Query(ge=1, le=200, description="The maximum number of items on a page.")]
PageCursor = Annotated[
    str | None,
    Query(max_length=1000, description="`next_cursor` of the previous page. Omit it for the first page."),
]


class Page(BaseModel, Generic[PageItem]):
    """A page of items, with the cursor of the page after it."""

    items: list[PageItem]
    next_cursor: str | None = Field(
        description="Send it as `after` to get the next page. Null on the last page."
    )


class ListCursors:
    """Seals and opens the cursors of one list."""

    def __init__(self, vault: Vault, list_name: str) -> None:
        self._vault = vault
        self._key_purpose = f"api cursor {list_name}"

    def seal_position(self, cursor_position: CursorPosition) -> str:
        """Return the cursor of a position."""
        position_json = json.dumps(list(cursor_position), separators=(",", ":")).encode()
        position_mac = _compute_mac(self._vault.derive_keys(self._key_purpose)[0], position_json)
        return base64.urlsafe_b64encode(position_mac + position_json).decode().rstrip("=")

    def open_cursor(self, cursor: str | None) -> CursorPosition | None:
        """Return the position of a cursor, or None for the first page.

        Raises RequestRefused for a cursor of another list.
        """
        if cursor is None:
            return None
        try:
            sealed_position = base64.b64decode(
                cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True
            )
        except ValueError:
            sealed_position = b""
        position_mac, position_json = sealed_position[:_MAC_BYTES], sealed_position[_MAC_BYTES:]
        if not any(
            hmac.compare_digest(position_mac, _compute_mac(mac_key, position_json))
            for mac_key in self._vault.derive_keys(self._key_purpose)
        ):
            detail = "This cursor belongs to no page of this list. Start again without one."
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "cursor_invalid", detail)
        cursor_position: CursorPosition = json.loads(position_json)
        return cursor_position

    def open_time_and_id(self, cursor: str | None) -> TimeAndId | None:
        """Return the time and id of a cursor, for a list that is ordered by them. Otherwise as `open_cursor`."""
        cursor_position = self.open_cursor(cursor)
        return (
            None
            if cursor_position is None
            else (datetime.fromisoformat(str(cursor_position[0])), str(cursor_position[1]))
        )

    def build_page(
        self, items: list[PageItem], cursor_positions: Sequence[CursorPosition], limit: int
    ) -> Page[PageItem]:
        """Build a page of at most `limit` items from the items of a query for one more, and the position of each."""
        is_last = len(items) <= limit
        return Page(
            items=items[:limit],
            next_cursor=None if is_last else self.seal_position(cursor_positions[limit - 1]),
        )


def to_cursor_position(time_and_id: TimeAndId) -> CursorPosition:
    """Convert a time and id to the position that a cursor holds."""
    sort_time, item_id = time_and_id
    return [sort_time.isoformat(), item_id]


def _compute_mac(mac_key: bytes, position_json: bytes) -> bytes:
    return hmac.digest(mac_key, position_json, hashlib.sha256)[:_MAC_BYTES]
