"""Requests to addresses that others gave: never to a private network, never on to another address, never for long."""

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
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from either form of Retry-After (RFC 9110 section 10.2.3)."""
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
    """One client for all of a process, which keeps no cookie: one person's would travel with another's request."""

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
        """For whoever bounds the answer themselves, with thirty seconds for each part of it; all other rules hold."""

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
        """The address, where its form is one that is called at all; raises AddressRefused."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise AddressRefused("This is not an address: write https://host/path.") from error
        if len(url) > _LONGEST_ADDRESS:
            raise AddressRefused(f"An address has at most {_LONGEST_ADDRESS:,} characters.")
        self._transport.check(parsed)
        return parsed

    async def require_callable(self, url: str) -> None:
        """Return where this may be called; raises AddressRefused, or UpstreamUnavailable where the host is unknown."""
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
        """Make one request, and give its answer whatever its status, but for a redirect.

        Raises AddressRefused for an address that may not be called, RequestRejected for a redirect or an answer
        larger than `largest` bytes, and UpstreamUnavailable where no answer comes in time.
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
    """Lets a library's client make its requests through an Outgoing, by all of its rules."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; raises as `Outgoing.send` does."""
        headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
        answer = await self._outgoing.send(
            request.method, str(request.url), headers=headers, content=await request.aread()
        )
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body, request=request)
