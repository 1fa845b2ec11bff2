"""Connects under the rules for outgoing requests: a host is resolved once, and the checked address is connected to."""

from collections.abc import Iterable
from ssl import SSLContext
from typing import Final

import httpcore2
import httpx2

from engine.errors import AddressRefused
from engine.outgoing.addresses import Resolver, is_public
from engine.settings import OutgoingSettings

_KEPT_OPEN: Final = 20
_KEPT_OPEN_SECONDS: Final = 5.0


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to the addresses of a host, if all of them may be called."""

    def __init__(self, settings: OutgoingSettings, resolver: Resolver) -> None:
        self._settings = settings
        self._resolve = resolver
        self._network = httpcore2.AnyIOBackend()

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of the host; raises AddressRefused, or UpstreamUnavailable where it is unknown."""
        found = await self._resolve(host, port)
        # A name with a private address among public ones can attack the network that resolves it (DNS rebinding).
        allowed = self._settings.allow_private or host in self._settings.private_hosts
        if not found or not (allowed or all(map(is_public, found))):
            raise AddressRefused(
                f"{host} is not on the public Internet, and BYLINE_OUTGOING__PRIVATE_HOSTS does not name it."
            )
        return found

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that accepts; each has `timeout` seconds."""
        *others, last = await self.addresses(host, port)
        for address in others:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)


class CheckedTransport(httpx2.AsyncHTTPTransport):
    """HTTP over checked connections only. They are kept open, each for the host that it was opened for."""

    def __init__(self, settings: OutgoingSettings, backend: CheckedBackend, trust: SSLContext | None) -> None:
        tls = trust or httpx2.create_ssl_context(trust_env=False)
        super().__init__(verify=tls, trust_env=False)
        self._schemes = {"https", "http"} if settings.allow_http else {"https"}
        # httpx2 cannot pass a backend on. Connections are not limited, so one slow host takes none from another.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=_KEPT_OPEN,
            keepalive_expiry=_KEPT_OPEN_SECONDS,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; raises AddressRefused for an address that may not be called."""
        self.check(request.url)
        return await super().handle_async_request(request)

    def check(self, url: httpx2.URL) -> None:
        """Check that the form of an address is allowed; raises AddressRefused."""
        if url.scheme == "http" and url.host and "http" not in self._schemes:
            raise AddressRefused(
                "An address begins with https://, and BYLINE_OUTGOING__ALLOW_HTTP allows no other."
            )
        if url.scheme not in self._schemes or not url.host:
            begins = " or ".join(f"{each}://" for each in sorted(self._schemes))
            raise AddressRefused(f"An address begins with {begins} and names a host.")
        if not 0 < (url.port or 443) < 65536 or url.userinfo or url.fragment:
            raise AddressRefused(
                "An address holds no user name, no password, no fragment and no port above 65535."
            )
