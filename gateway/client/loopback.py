"""Receives the OAuth redirect on the loopback interface (RFC 8252 section 7.3). It accepts one answer."""

import hmac
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

from typing_extensions import override

CALLBACK_PATH: Final = "/callback"
REGISTERED_REDIRECT: Final = f"http://127.0.0.1{CALLBACK_PATH}"
"""The redirect URI to register. Authorization servers accept it with any port (RFC 8252 section 7.3)."""

_LOOK_EVERY_SECONDS = 0.5
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<body style="font: 1.1rem/1.5 system-ui, sans-serif; margin: 4rem auto; max-width: 36rem">
<h1>{title}</h1><p>{text}</p>"""


class Loopback:
    """Waits for the browser to come back with this `state`, and refuses every other request."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._answer: dict[str, str] | None = None
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        self._server.timeout = _LOOK_EVERY_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.server_close()

    @property
    def redirect_uri(self) -> str:
        """The redirect URI, with the port that this server listens on."""
        return f"http://127.0.0.1:{self._server.server_port}{CALLBACK_PATH}"

    def wait(self, seconds: float) -> dict[str, str] | None:
        """Return the parameters that the browser came back with, or None if it did not within the timeout."""
        deadline = time.monotonic() + seconds
        while self._answer is None and time.monotonic() < deadline:
            self._server.handle_request()
        return self._answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            # In seconds. A connection that sends nothing delays the browser's request by this at most.
            timeout = 5

            def do_GET(self) -> None:
                status, title, text = loopback._heard(self.path)
                body = _PAGE.format(title=title, text=text).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Referrer-Policy", "no-referrer")
                self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
                self.end_headers()
                self.wfile.write(body)

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Log nothing, since the address holds an authorization code."""

        return Handler

    def _heard(self, path: str) -> tuple[int, str, str]:
        parts = urlsplit(path)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        parameters = dict(pairs)
        if parts.path != CALLBACK_PATH:
            return 404, "Nothing here", "This address only takes an answer to a sign-in."
        is_ours = hmac.compare_digest(parameters.get("state", "").encode(), self._state.encode())
        if not is_ours or len(pairs) != len(parameters) or self._answer is not None:
            return 400, "This is no answer to the sign-in", "Start again from your terminal: byline login"
        self._answer = parameters
        if "error" in parameters:
            return 200, "You are not signed in", "Go back to your terminal: it says why."
        return 200, "Go back to your terminal", "You can close this window."
