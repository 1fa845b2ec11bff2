"""Resolves hosts to IP addresses, and tells which of these are public on the Internet. It connects to none."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from engine.errors import UpstreamUnavailable

HostResolver = Callable[[str, int], Awaitable[list[str]]]

# Only this block of IPv6 is assigned for the Internet (RFC 4291 section 2.4). NAT64 embeds IPv4 addresses (RFC 6052).
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


async def resolve_host(host: str, port: int) -> list[str]:
    """Return every address of a host from the system's resolver, which also reads numbers in any spelling.

    Raises UpstreamUnavailable where the host is unknown.
    """
    try:
        address_infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UpstreamUnavailable(f"The host '{host}' is not known.") from error
    return list(dict.fromkeys(str(socket_address[0]) for *_, socket_address in address_infos))


def is_public_address(ip_text: str) -> bool:
    """Whether anybody on the Internet may reach an IP address, and every IPv4 address that it embeds."""
    ip_address = ipaddress.ip_address(ip_text)
    if isinstance(ip_address, ipaddress.IPv6Address):
        embedded_addresses = _extract_embedded_addresses(ip_address)
        if embedded_addresses:
            return all(is_public_address(str(embedded_address)) for embedded_address in embedded_addresses)
        if ip_address not in _GLOBAL_UNICAST:
            return False
    return ip_address.is_global and not (ip_address.is_multicast or ip_address.is_reserved)


def _extract_embedded_addresses(ipv6_address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """Return the IPv4 addresses at which traffic to this IPv6 address may end."""
    if ipv6_address.ipv4_mapped is not None:
        return (ipv6_address.ipv4_mapped,)
    if ipv6_address.sixtofour is not None:
        return (ipv6_address.sixtofour,)
    if ipv6_address.teredo is not None:
        return ipv6_address.teredo
    return (ipaddress.IPv4Address(int(ipv6_address) & 0xFFFFFFFF),) if ipv6_address in _NAT64 else ()
