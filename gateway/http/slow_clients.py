"""HTTP without clients who hold a connection by being slow; how long a body may take is up to whoever reads it."""

import asyncio
from collections.abc import Callable
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_REQUEST_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def impatient(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol, which by itself waits without end for a head to be sent and for an answer to be read."""

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
            # What follows an answer is the head of the next request, or the rest of a body that nobody reads.
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
    """Calls back once the time is over, unless it is stopped."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        self._seconds = seconds
        self._then = then
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to count, where it does not count already."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self._then)

    def stop(self) -> None:
        """Forget the time so far."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
