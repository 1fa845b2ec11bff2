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
from engine.outgoing.addresses import Resolver, resolve
from engine.outgoing.bodies import OF_THE_WIRE, read
from engine.outgoing.transport import CheckedBackend, CheckedTransport
from engine.settings import OutgoingSettings

_WITHIN_SECONDS = 20.0
_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
_LARGEST_ANSWER: Final = 1_000_000
_LONGEST_ADDRESS = 2000
_LONGEST_PATIENCE = 86_400.0
_OWN_HEADERS: Final = frozenset(
    {"host", "accept-encoding", "connection", "content-length", "transfer-encoding"}
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request; `body` is decoded."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, at most a day, from either form of Retry-After (RFC 9110 section 10.2.3).

    Returns None where the header is missing or has neither form.
    """
    value = headers.get("Retry-After", "")
    try:
        named = parsedate_to_datetime(value) - datetime.now(UTC)
        seconds = named.total_seconds()
    except (TypeError, ValueError):
        if not (value.isascii() and value.isdecimal()):
            return None
        seconds = float(value)
    return min(max(0.0, seconds), _LONGEST_PATIENCE)


class Outgoing:
    """The one HTTP client of a process. It keeps no cookie, which would be sent with another person's request."""

    def __init__(
        self,
        settings: OutgoingSettings,
        *,
        resolver: Resolver = resolve,
        trust: SSLContext | None = None,
    ) -> None:
        self._backend = CheckedBackend(settings, resolver)
        self._transport = CheckedTransport(settings, self._backend, trust)
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self.http = httpx2.AsyncClient(
            transport=self._transport,
            timeout=_TIMEOUT,
            follow_redirects=False,
            trust_env=False,
            cookies=no_cookies,
        )
        """For callers that limit the response themselves. It has 30 seconds an operation; all other rules apply."""

    async def __aenter__(self) -> Self:
        """Open the client."""
        await self.http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.http.__aexit__(kind, error, trace)

    def check(self, url: str) -> httpx2.URL:
        """Return the address, parsed, if its form is allowed; raises AddressRefused."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise AddressRefused("This is not an address: write https://host/path.") from error
        if len(url) > _LONGEST_ADDRESS:
            raise AddressRefused(f"An address has at most {_LONGEST_ADDRESS:,} characters.")
        self._transport.check(parsed)
        return parsed

    async def require_callable(self, url: str) -> None:
        """Check that this may be called; raises AddressRefused, or UpstreamUnavailable where the host is unknown."""
        parsed = self.check(url)
        await self._backend.addresses(parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80))

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        largest: int = _LARGEST_ANSWER,
    ) -> Answer:
        """Make one request and return its response, whatever its status, except for a redirect.

        Raises AddressRefused for an address that may not be called, RequestRejected for a redirect or a body larger
        than `max_bytes`, and UpstreamUnavailable where no response arrives within 20 seconds.
        """
        parsed = self.check(url)
        try:
            async with asyncio.timeout(_WITHIN_SECONDS):
                answer = await self._ask(parsed, method, headers or {}, content, largest)
        except TimeoutError:
            raise UpstreamUnavailable(f"{parsed.host} did not answer in time.") from None
        except httpx2.HTTPError as error:
            raise UpstreamUnavailable(f"{parsed.host} cannot be reached ({type(error).__name__}).") from None
        if 300 <= answer.status < 400:
            raise RequestRejected(
                f"{parsed.host} answers with a redirect, which is not followed: give the address it leads to.",
                status=answer.status,
            )
        return answer

    async def _ask(
        self, url: httpx2.URL, method: str, headers: Mapping[str, str], content: bytes | None, largest: int
    ) -> Answer:
        request = self.http.build_request(
            method, url, headers={**headers, "Accept-Encoding": "identity"}, content=content
        )
        response = await self.http.send(request, stream=True)
        body, is_whole = await read(response, largest)
        if not is_whole:
            raise RequestRejected(
                f"{url.host} answers with more than {largest:,} bytes.", status=response.status_code
            )
        told = [(name, value) for name, value in response.headers.raw if name.lower() not in OF_THE_WIRE]
        return Answer(response.status_code, httpx2.Headers(told), body)


class OutgoingTransport(httpx2.AsyncBaseTransport):
    """Lets a library's client make its requests through an OutgoingClient, under all of its rules."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; raises as `OutgoingClient.send_request` does."""
        headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
        answer = await self._outgoing.send(
            request.method, str(request.url), headers=headers, content=await request.aread()
        )
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body, request=request)
