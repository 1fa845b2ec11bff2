"""Requests to addresses that others supplied: none to a private network, no redirects, and each limited in time."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLContext
from types import TracebackType
from typing import Final, Self

import httpx2

from engine.errors import AddressRefused, RequestRejected, UpstreamUnavailable
from engine.outgoing.addresses import HostResolver, resolve_host
from engine.outgoing.bodies import TRANSFER_HEADERS, read_response_body
from engine.outgoing.transport import CheckedBackend, CheckedTransport
from engine.settings import OutgoingSettings

_REQUEST_TIMEOUT_SECONDS = 20.0
_OPERATION_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
_MAX_RESPONSE_BYTES: Final = 1_000_000
_MAX_URL_CHARS = 2000
_MAX_RETRY_AFTER_SECONDS = 86_400.0
_TRANSPORT_HEADERS: Final = frozenset(
    {"host", "accept-encoding", "connection", "content-length", "transfer-encoding"}
)


@dataclass(frozen=True, slots=True)
class OutgoingResponse:
    """The response to a request; `body` is decoded."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, at most a day, from either form of Retry-After (RFC 9110 section 10.2.3).

    Returns None where the header is missing or has neither form.
    """
    header_value = headers.get("Retry-After", "")
    try:
        remaining_time = parsedate_to_datetime(header_value) - datetime.now(UTC)
        retry_after_seconds = remaining_time.total_seconds()
    except (TypeError, ValueError):
        if not (header_value.isascii() and header_value.isdecimal()):
            return None
        retry_after_seconds = float(header_value)
    return min(max(0.0, retry_after_seconds), _MAX_RETRY_AFTER_SECONDS)


class OutgoingClient:
    """The one HTTP client of a process. It keeps no cookie, which would be sent with another person's request."""

    def __init__(
        self,
        settings: OutgoingSettings,
        *,
        resolver: HostResolver = resolve_host,
        tls_context: SSLContext | None = None,
    ) -> None:
        self._backend = CheckedBackend(settings, resolver)
        self._transport = CheckedTransport(settings, self._backend, tls_context)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self.http_client = httpx2.AsyncClient(
            transport=self._transport,
            timeout=_OPERATION_TIMEOUT,
            follow_redirects=False,
            trust_env=False,
            cookies=no_cookies,
        )
        """For callers that limit the response themselves. It has 30 seconds an operation; all other rules apply."""

    async def __aenter__(self) -> Self:
        """Open the client."""
        await self.http_client.__aenter__()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.http_client.__aexit__(error_type, error, traceback)

    def check_url(self, url_text: str) -> httpx2.URL:
        """Return the address, parsed, if its form is allowed; raises AddressRefused."""
        try:
            parsed_url = httpx2.URL(url_text)
        except (httpx2.InvalidURL, ValueError) as error:
            raise AddressRefused("This is not an address: write https://host/path.") from error
        if len(url_text) > _MAX_URL_CHARS:
            raise AddressRefused(f"An address has at most {_MAX_URL_CHARS:,} characters.")
        self._transport.check_url(parsed_url)
        return parsed_url

    async def require_callable_url(self, url_text: str) -> None:
        """Check that this may be called; raises AddressRefused, or UpstreamUnavailable where the host is unknown."""
        parsed_url = self.check_url(url_text)
        await self._backend.resolve_checked_addresses(
            parsed_url.host, parsed_url.port or (443 if parsed_url.scheme == "https" else 80)
        )

    async def send_request(
        self,
        method: str,
        url_text: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_bytes: int = _MAX_RESPONSE_BYTES,
    ) -> OutgoingResponse:
        """Make one request and return its response, whatever its status, except for a redirect.

        Raises AddressRefused for an address that may not be called, RequestRejected for a redirect or a body larger
        than `max_bytes`, and UpstreamUnavailable where no response arrives within 20 seconds.
        """
        parsed_url = self.check_url(url_text)
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                response = await self._exchange_request(parsed_url, method, headers or {}, content, max_bytes)
        except TimeoutError:
            raise UpstreamUnavailable(f"{parsed_url.host} did not answer in time.") from None
        except httpx2.HTTPError as error:
            raise UpstreamUnavailable(
                f"{parsed_url.host} cannot be reached ({type(error).__name__})."
            ) from None
        if 300 <= response.status_code < 400:
            raise RequestRejected(
                f"{parsed_url.host} answers with a redirect, which is not followed: give the address it leads to.",
                status_code=response.status_code,
            )
        return response

    async def _exchange_request(
        self,
        parsed_url: httpx2.URL,
        method: str,
        headers: Mapping[str, str],
        content: bytes | None,
        max_bytes: int,
    ) -> OutgoingResponse:
        request = self.http_client.build_request(
            method, parsed_url, headers={**headers, "Accept-Encoding": "identity"}, content=content
        )
        response = await self.http_client.send(request, stream=True)
        response_body, is_whole = await read_response_body(response, max_bytes)
        if not is_whole:
            raise RequestRejected(
                f"{parsed_url.host} answers with more than {max_bytes:,} bytes.",
                status_code=response.status_code,
            )
        response_headers = [
            (header_name, header_value)
            for header_name, header_value in response.headers.raw
            if header_name.lower() not in TRANSFER_HEADERS
        ]
        return OutgoingResponse(response.status_code, httpx2.Headers(response_headers), response_body)


class OutgoingTransport(httpx2.AsyncBaseTransport):
    """Lets a library's client make its requests through an OutgoingClient, under all of its rules."""

    def __init__(self, outgoing_client: OutgoingClient) -> None:
        self._outgoing_client = outgoing_client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; raises as `OutgoingClient.send_request` does."""
        request_headers = {
            header_name: header_value
            for header_name, header_value in request.headers.items()
            if header_name not in _TRANSPORT_HEADERS
        }
        response = await self._outgoing_client.send_request(
            request.method, str(request.url), headers=request_headers, content=await request.aread()
        )
        return httpx2.Response(
            response.status_code, headers=response.headers, content=response.body, request=request
        )
