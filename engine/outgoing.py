"""Requests to addresses that others gave: never to a private network, never on to another address, never for long."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLContext
from types import TracebackType
from typing import Final, Self

import httpx2

from engine.errors import AddressRefused, RequestRejected, UpstreamUnavailable
from engine.settings import OutgoingSettings

_WITHIN_SECONDS = 20.0
_TIMEOUT = httpx2.Timeout(10.0, connect=5.0)
_LARGEST_ANSWER: Final = 1_000_000
_LONGEST_ADDRESS = 2000
_LONGEST_PATIENCE = 86_400.0
_OWN_HEADERS: Final = frozenset(
    {"host", "accept-encoding", "connection", "content-length", "transfer-encoding"}
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

# Of IPv6, only this block is handed out for the Internet (RFC 4291 section 2.4); NAT64 hides IPv4 addresses (RFC 6052).
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, as the system's resolver says; numbers in any spelling are addresses too."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        msg = f"The host '{host}' is not known."
        raise UpstreamUnavailable(msg) from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the Internet may reach, whatever it is wrapped in."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        hidden = _within(ip)
        if hidden:
            return all(is_public(str(each)) for each in hidden)
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _within(ip: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that traffic to this IPv6 address may end at."""
    if ip.ipv4_mapped is not None:
        return (ip.ipv4_mapped,)
    if ip.sixtofour is not None:
        return (ip.sixtofour,)
    if ip.teredo is not None:
        return ip.teredo
    return (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF),) if ip in _NAT64 else ()


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
    """One client for all of a process. A host is resolved once per request, and what was checked is what is called."""

    def __init__(
        self,
        settings: OutgoingSettings,
        *,
        resolver: Resolver = resolve,
        trust: SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._resolve = resolver
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        # A connection kept open would be found again by its address alone, under another host's certificate.
        self._http = httpx2.AsyncClient(
            timeout=_TIMEOUT,
            follow_redirects=False,
            trust_env=False,
            cookies=no_cookies,
            verify=trust or True,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def __aenter__(self) -> Self:
        """Open the client."""
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self._http.__aexit__(kind, error, trace)

    def check(self, url: str) -> httpx2.URL:
        """The address, where its form is one that is called at all; raises AddressRefused."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise AddressRefused("This is not an address: write https://host/path.") from error
        schemes = {"https", "http"} if self._settings.allow_http else {"https"}
        if parsed.scheme not in schemes or not parsed.host or len(url) > _LONGEST_ADDRESS:
            msg = f"An address begins with {' or '.join(f'{each}://' for each in sorted(schemes))} and names a host."
            raise AddressRefused(msg)
        if not 0 < (parsed.port or 443) < 65536 or parsed.userinfo or parsed.fragment:
            raise AddressRefused(
                "An address holds no user name, no password, no fragment and no port above 65535."
            )
        return parsed

    async def require_public(self, url: str) -> None:
        """Return where this may be called; raises AddressRefused, or UpstreamUnavailable where the host is unknown."""
        await self._addresses(self.check(url))

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
                addresses = await self._addresses(parsed)
                answer = await self._first(addresses, parsed, method, headers or {}, content, largest)
        except TimeoutError:
            raise UpstreamUnavailable(f"{parsed.host} did not answer in time.") from None
        except httpx2.HTTPError as error:
            msg = f"{parsed.host} cannot be reached ({type(error).__name__})."
            raise UpstreamUnavailable(msg) from None
        if 300 <= answer.status < 400:
            msg = (
                f"{parsed.host} answers with a redirect, which is not followed: give the address it leads to."
            )
            raise RequestRejected(msg, status=answer.status)
        return answer

    async def _addresses(self, url: httpx2.URL) -> list[str]:
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._resolve(url.host, port)
        # One private address among public ones is how a name is turned against the network that resolves it.
        allowed = self._settings.allow_private or url.host in self._settings.private_hosts
        if not addresses or not (allowed or all(map(is_public, addresses))):
            msg = f"{url.host} is not on the public Internet, so it is not called."
            raise AddressRefused(msg)
        return addresses

    async def _first(
        self,
        addresses: list[str],
        url: httpx2.URL,
        method: str,
        headers: Mapping[str, str],
        content: bytes | None,
        largest: int,
    ) -> Answer:
        """The answer of the first address that takes the connection."""
        for address in addresses[:-1]:
            try:
                return await self._ask(address, url, method, headers, content, largest)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return await self._ask(addresses[-1], url, method, headers, content, largest)

    async def _ask(
        self,
        address: str,
        url: httpx2.URL,
        method: str,
        headers: Mapping[str, str],
        content: bytes | None,
        largest: int,
    ) -> Answer:
        request = self._http.build_request(
            method,
            url.copy_with(host=address.partition("%")[0]),
            headers={**headers, "Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
            content=content,
            # The certificate has to be the named host's, although the connection goes to the address.
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        response = await self._http.send(request, stream=True)
        try:
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > largest:
                    msg = f"{url.host} answers with more than {largest:,} bytes."
                    raise RequestRejected(msg, status=response.status_code)
        finally:
            await response.aclose()
        return Answer(response.status_code, response.headers, bytes(body))


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
