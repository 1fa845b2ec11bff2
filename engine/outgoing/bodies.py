"""Reads the body of an answer as far as it may go; it judges no status, and trusts nothing that was packed twice."""

from typing import Final

import httpx2

OF_THE_WIRE: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""Headers, in small letters, that say how a body was sent, and nothing of one that was read."""


async def read(response: httpx2.Response, largest: int) -> tuple[bytes, bool]:
    """The body, unpacked, and whether that is all of it; beyond `largest` bytes nothing is read, and it is closed.

    Raises httpx2.DecodingError where it cannot be unpacked or was packed more than once: a few bytes then stand for
    terabytes, through which a process works its way without a pause even where nothing comes of them.
    """
    pieces, size = [], 0
    try:
        if len(response.headers.get_list("Content-Encoding", split_commas=True)) > 1:
            raise httpx2.DecodingError("The answer was packed more than once.", request=response.request)
        async for piece in response.aiter_bytes():
            size += len(piece)
            if size > largest:
                break
            pieces.append(piece)
    finally:
        await response.aclose()
    return b"".join(pieces), size <= largest
