"""An HTTP protocol for uvicorn that closes connections of slow clients. Body timeouts are set in `limits.py`."""

import asyncio
from collections.abc import Callable
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_REQUEST_TIMEOUT_RESPONSE: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


def build_timeout_protocol(timeout_seconds: float) -> type[H11Protocol]:
    """Build uvicorn's h11 protocol class with a timeout, in seconds.

    It limits how long a client may take to send a request's head, and to read more of a response. Uvicorn itself
    waits for both without limit.
    """

    class TimeoutProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head_timer = _RestartableTimer(timeout_seconds, self._close_slow_connection)
            self._reading_timer = _RestartableTimer(timeout_seconds, self.transport.abort)
            self._head_timer.start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_timer.stop()
            self._reading_timer.stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            earlier_cycle = self.cycle
            # Data after a response is the head of the next request, or the unread rest of a body.
            if getattr(earlier_cycle, "response_complete", False):
                self._head_timer.start()
            super().data_received(data)
            if self.cycle is not earlier_cycle:
                self._head_timer.stop()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading_timer.start()

        def resume_writing(self) -> None:
            self._reading_timer.stop()
            super().resume_writing()

        def _close_slow_connection(self) -> None:
            has_partial_head, _ = self.conn.trailing_data
            if has_partial_head and self.conn.our_state is h11.IDLE:
                self.transport.write(_REQUEST_TIMEOUT_RESPONSE)
            self.transport.close()

    return TimeoutProtocol


class _RestartableTimer:
    """Calls a function after some seconds unless it is stopped before."""

    def __init__(self, timeout_seconds: float, on_timeout: Callable[[], None]) -> None:
        self._timeout_seconds = timeout_seconds
        self._on_timeout = on_timeout
        self._timer_handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer if it is not running."""
        if self._timer_handle is None:
            self._timer_handle = asyncio.get_running_loop().call_later(
                self._timeout_seconds, self._on_timeout
            )

    def stop(self) -> None:
        """Stop the timer and reset it."""
        if self._timer_handle is not None:
            self._timer_handle.cancel()
            self._timer_handle = None
