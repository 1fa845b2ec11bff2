"""Connects under the rules for outgoing requests: a host is resolved once, and the checked address is connected to."""

from collections.abc import Iterable
from ssl import SSLContext
from typing import Final

import httpcore2
import httpx2

from engine.errors import AddressRefused
from engine.outgoing.addresses import HostResolver, is_public_address
from engine.settings import OutgoingSettings

_MAX_IDLE_CONNECTIONS: Final = 20
_IDLE_EXPIRY_SECONDS: Final = 5.0


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to the addresses of a host, if all of them may be called."""

    def __init__(self, settings: OutgoingSettings, resolver: HostResolver) -> None:
        self._settings = settings
        self._resolve_host = resolver
        self._network_backend = httpcore2.AnyIOBackend()

    async def resolve_checked_addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of the host; raises AddressRefused, or UpstreamUnavailable where it is unknown."""
        ip_addresses = await self._resolve_host(host, port)
        # A name with a private address among public ones can attack the network that resolves it (DNS rebinding).
        is_private_allowed = self._settings.allow_private or host in self._settings.private_hosts
        if not ip_addresses or not (is_private_allowed or all(map(is_public_address, ip_addresses))):
            raise AddressRefused(
                f"{host} is not on the public Internet, and BYLINE_OUTGOING__PRIVATE_HOSTS does not name it."
            )
        return ip_addresses

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that accepts; each has `timeout` seconds."""
        *other_addresses, last_address = await self.resolve_checked_addresses(host, port)
        for ip_address in other_addresses:
            try:
                return await self._network_backend.connect_tcp(
                    ip_address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._network_backend.connect_tcp(
            last_address, port, timeout, local_address, socket_options
        )


class CheckedTransport(httpx2.AsyncHTTPTransport):
    """HTTP over checked connections only. They are kept open, each for the host that it was opened for."""

    def __init__(
        self, settings: OutgoingSettings, checked_backend: CheckedBackend, tls_context: SSLContext | None
    ) -> None:
        ssl_context = tls_context or httpx2.create_ssl_context(trust_env=False)
        super().__init__(verify=ssl_context, trust_env=False)
        self._allowed_schemes = {"https", "http"} if settings.allow_http else {"https"}
        # httpx2 cannot pass a backend on. Connections are not limited, so one slow host takes none from another.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=_MAX_IDLE_CONNECTIONS,
            keepalive_expiry=_IDLE_EXPIRY_SECONDS,
            network_backend=checked_backend,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send; raises AddressRefused for an address that may not be called."""
        self.check_url(request.url)
        return await super().handle_async_request(request)

    def check_url(self, parsed_url: httpx2.URL) -> None:
        """Check that the form of an address is allowed; raises AddressRefused."""
        if parsed_url.scheme == "http" and parsed_url.host and "http" not in self._allowed_schemes:
            raise AddressRefused(
                "An address begins with https://, and BYLINE_OUTGOING__ALLOW_HTTP allows no other."
            )
        if parsed_url.scheme not in self._allowed_schemes or not parsed_url.host:
            allowed_prefixes = " or ".join(f"{url_scheme}://" for url_scheme in sorted(self._allowed_schemes))
            raise AddressRefused(f"An address begins with {allowed_prefixes} and names a host.")
        if not 0 < (parsed_url.port or 443) < 65536 or parsed_url.userinfo or parsed_url.fragment:
            raise AddressRefused(
                "An address holds no user name, no password, no fragment and no port above 65535."
            )
