"""Checks redirect URIs: which may be registered, and whom a code sent there reaches. No prefixes are compared."""

from typing import Final
from urllib.parse import urlsplit

from pydantic import AnyUrl

_LOOPBACK: Final = frozenset({"127.0.0.1", "[::1]", "localhost"})
_NO_APPLICATION: Final = frozenset(
    {"javascript", "data", "file", "vbscript", "blob", "about", "ftp", "ws", "wss"}
)


def problem(uri: AnyUrl, application_type: str | None = None) -> str | None:
    """Return why a redirect URI may not be registered, or None where it may."""
    if uri.scheme in _NO_APPLICATION:
        return "this scheme leads to no application"
    if uri.fragment is not None:
        return "a redirect URI has no fragment"
    if uri.username is not None or uri.password is not None:
        return "a redirect URI holds no credentials"
    if uri.scheme == "http" and not is_loopback(uri):
        return "use https, or a loopback address"
    # OpenID Connect Dynamic Client Registration 1.0, section 2.
    if application_type == "web" and uri.scheme != "https":
        return "a web application uses https: register as application_type native"
    return None


def is_loopback(uri: AnyUrl) -> bool:
    """Whether a redirect URI is a loopback address, at any port (RFC 8252 section 7.3)."""
    return uri.scheme == "http" and uri.host in _LOOPBACK


def without_port(uri: AnyUrl) -> tuple[str | None, str, str]:
    """Return the host, path and query of a loopback redirect URI, by which it is compared."""
    parts = urlsplit(str(uri))
    return uri.host, parts.path or "/", parts.query


def reaches(uri: AnyUrl) -> str:
    """Return whom a code reaches, in words for a person: a host, or the application of a private-use scheme."""
    return str(uri.host) if uri.scheme in {"http", "https"} else f"the application of {uri.scheme}:"
