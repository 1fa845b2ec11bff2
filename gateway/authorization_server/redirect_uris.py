"""Checks redirect URIs: which may be registered, and whom a code sent there reaches. No prefixes are compared."""

from typing import Final
from urllib.parse import urlsplit

from pydantic import AnyUrl

_LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "[::1]", "localhost"})
_FORBIDDEN_SCHEMES: Final = frozenset(
    {"javascript", "data", "file", "vbscript", "blob", "about", "ftp", "ws", "wss"}
)


def find_uri_problem(redirect_uri: AnyUrl, application_type: str | None = None) -> str | None:
    """Return why a redirect URI may not be registered, or None where it may."""
    if redirect_uri.scheme in _FORBIDDEN_SCHEMES:
        return "this scheme leads to no application"
    if redirect_uri.fragment is not None:
        return "a redirect URI has no fragment"
    if redirect_uri.username is not None or redirect_uri.password is not None:
        return "a redirect URI holds no credentials"
    if redirect_uri.scheme == "http" and not is_loopback_uri(redirect_uri):
        return "use https, or a loopback address"
    # OpenID Connect Dynamic Client Registration 1.0, section 2.
    if application_type == "web" and redirect_uri.scheme != "https":
        return "a web application uses https: register as application_type native"
    return None


def is_loopback_uri(redirect_uri: AnyUrl) -> bool:
    """Whether a redirect URI is a loopback address, at any port (RFC 8252 section 7.3)."""
    return redirect_uri.scheme == "http" and redirect_uri.host in _LOOPBACK_HOSTS


def strip_port(redirect_uri: AnyUrl) -> tuple[str | None, str, str]:
    """Return the host, path and query of a loopback redirect URI, by which it is compared."""
    url_parts = urlsplit(str(redirect_uri))
    return redirect_uri.host, url_parts.path or "/", url_parts.query


def describe_receiver(redirect_uri: AnyUrl) -> str:
    """Return whom a code reaches, in words for a person: a host, or the application of a private-use scheme."""
    return (
        str(redirect_uri.host)
        if redirect_uri.scheme in {"http", "https"}
        else f"the application of {redirect_uri.scheme}:"
    )
