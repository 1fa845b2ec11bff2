"""Reads a response's body up to a limit. It ignores the status, and refuses a body that was encoded more than once."""

from typing import Final

import httpx2

TRANSFER_HEADERS: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""Lower-case names of headers that describe how a body was sent, and do not apply once it is decoded."""


async def read_response_body(response: httpx2.Response, max_bytes: int) -> tuple[bytes, bool]:
    """Return the decoded body and whether it is whole; beyond `max_bytes` reading stops. Closes the response.

    Raises httpx2.DecodingError where the body cannot be decoded or was encoded more than once. A few bytes can then
    stand for terabytes, and decoding these would block the process even where it yields no data.
    """
    body_chunks, size_bytes = [], 0
    try:
        if len(response.headers.get_list("Content-Encoding", split_commas=True)) > 1:
            raise httpx2.DecodingError("The answer was packed more than once.", request=response.request)
        async for body_chunk in response.aiter_bytes():
            size_bytes += len(body_chunk)
            if size_bytes > max_bytes:
                break
            body_chunks.append(body_chunk)
    finally:
        await response.aclose()
    return b"".join(body_chunks), size_bytes <= max_bytes
