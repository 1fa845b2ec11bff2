"""Resolves hosts to IP addresses, and tells which of these are public on the Internet. It connects to none."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from engine.errors import UpstreamUnavailable

Resolver = Callable[[str, int], Awaitable[list[str]]]

# Only this block of IPv6 is assigned for the Internet (RFC 4291 section 2.4). NAT64 embeds IPv4 addresses (RFC 6052).
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


async def resolve(host: str, port: int) -> list[str]:
    """Return every address of a host from the system's resolver, which also reads numbers in any spelling.

    Raises UpstreamUnavailable where the host is unknown.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UpstreamUnavailable(f"The host '{host}' is not known.") from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def is_public(address: str) -> bool:
    """Whether anybody on the Internet may reach an IP address, and every IPv4 address that it embeds."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        hidden = _within(ip)
        if hidden:
            return all(is_public(str(each)) for each in hidden)
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _within(ip: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """Return the IPv4 addresses at which traffic to this IPv6 address may end."""
    if ip.ipv4_mapped is not None:
        return (ip.ipv4_mapped,)
    if ip.sixtofour is not None:
        return (ip.sixtofour,)
    if ip.teredo is not None:
        return ip.teredo
    return (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF),) if ip in _NAT64 else ()
