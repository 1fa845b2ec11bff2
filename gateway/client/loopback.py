"""Receives the OAuth redirect on the loopback interface (RFC 8252 section 7.3). It accepts one answer."""

import hmac
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

from typing_extensions import override

CALLBACK_PATH: Final = "/callback"
REGISTERED_REDIRECT_URI: Final = f"http://127.0.0.1{CALLBACK_PATH}"
"""The redirect URI to register. Authorization servers accept it with any port (RFC 8252 section 7.3)."""

_POLL_INTERVAL_SECONDS = 0.5
_PAGE_TEMPLATE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<body style="font: 1.1rem/1.5 system-ui, sans-serif; margin: 4rem auto; max-width: 36rem">
<h1>{title}</h1><p>{text}</p>"""


class LoopbackServer:
    """Waits for the browser to come back with this `state`, and refuses every other request."""

    def __init__(self, expected_state: str) -> None:
        self._expected_state = expected_state
        self._redirect_parameters: dict[str, str] | None = None
        self._http_server = HTTPServer(("127.0.0.1", 0), self._build_handler())
        self._http_server.timeout = _POLL_INTERVAL_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http_server.server_close()

    @property
    def redirect_uri(self) -> str:
        """The redirect URI, with the port that this server listens on."""
        return f"http://127.0.0.1:{self._http_server.server_port}{CALLBACK_PATH}"

    def wait_for_redirect(self, timeout_seconds: float) -> dict[str, str] | None:
        """Return the parameters that the browser came back with, or None if it did not within the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while self._redirect_parameters is None and time.monotonic() < deadline:
            self._http_server.handle_request()
        return self._redirect_parameters

    def _build_handler(self) -> type[BaseHTTPRequestHandler]:
        loopback_server = self

        class RedirectHandler(BaseHTTPRequestHandler):
            # In seconds. A connection that sends nothing delays the browser's request by this at most.
            timeout = 5

            def do_GET(self) -> None:
                status_code, page_title, page_text = loopback_server._handle_redirect(self.path)
                page_body = _PAGE_TEMPLATE.format(title=page_title, text=page_text).encode()
                self.send_response(status_code)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(page_body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Referrer-Policy", "no-referrer")
                self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
                self.end_headers()
                self.wfile.write(page_body)

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Log nothing, since the address holds an authorization code."""

        return RedirectHandler

    def _handle_redirect(self, request_path: str) -> tuple[int, str, str]:
        url_parts = urlsplit(request_path)
        query_pairs = parse_qsl(url_parts.query, keep_blank_values=True)
        parameters = dict(query_pairs)
        if url_parts.path != CALLBACK_PATH:
            return 404, "Nothing here", "This address only takes an answer to a sign-in."
        has_expected_state = hmac.compare_digest(
            parameters.get("state", "").encode(), self._expected_state.encode()
        )
        if (
            not has_expected_state
            or len(query_pairs) != len(parameters)
            or self._redirect_parameters is not None
        ):
            return 400, "This is no answer to the sign-in", "Start again from your terminal: byline login"
        self._redirect_parameters = parameters
        if "error" in parameters:
            return 200, "You are not signed in", "Go back to your terminal: it says why."
        return 200, "Go back to your terminal", "You can close this window."
