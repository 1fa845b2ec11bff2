"""An HTTP protocol for uvicorn that closes connections of slow clients. Body timeouts are set in `limits.py`."""

import asyncio
from collections.abc import Callable
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_REQUEST_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def impatient(seconds: float) -> type[H11Protocol]:
    """Build uvicorn's h11 protocol class with a timeout, in seconds.

    It limits how long a client may take to send a request's head, and to read more of a response. Uvicorn itself
    waits for both without limit.
    """

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = _Timer(seconds, self._give_up)
            self._reading = _Timer(seconds, self.transport.abort)
            self._head.start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.stop()
            self._reading.stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            # Data after a response is the head of the next request, or the unread rest of a body.
            if getattr(before, "response_complete", False):
                self._head.start()
            super().data_received(data)
            if self.cycle is not before:
                self._head.stop()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading.start()

        def resume_writing(self) -> None:
            self._reading.stop()
            super().resume_writing()

        def _give_up(self) -> None:
            has_begun, _ = self.conn.trailing_data
            if has_begun and self.conn.our_state is h11.IDLE:
                self.transport.write(_REQUEST_TIMEOUT)
            self.transport.close()

    return Impatient


class _Timer:
    """Calls a function after some seconds unless it is stopped before."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        self._seconds = seconds
        self._then = then
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer if it is not running."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self._then)

    def stop(self) -> None:
        """Stop the timer and reset it."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
