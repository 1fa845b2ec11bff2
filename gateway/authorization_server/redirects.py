"""Redirect URIs: which are fit to carry a code, and whom the code reaches; nothing is compared by its beginning."""

from typing import Final
from urllib.parse import urlsplit

from pydantic import AnyUrl

_LOOPBACK: Final = frozenset({"127.0.0.1", "[::1]", "localhost"})
_NO_APPLICATION: Final = frozenset(
    {"javascript", "data", "file", "vbscript", "blob", "about", "ftp", "ws", "wss"}
)


def problem(uri: AnyUrl, application_type: str | None = None) -> str | None:
    """Why a redirect URI may not be registered, if anything speaks against it."""
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
    """Whether a program on the person's own machine listens there, at whatever port (RFC 8252 section 7.3)."""
    return uri.scheme == "http" and uri.host in _LOOPBACK


def without_port(uri: AnyUrl) -> tuple[str | None, str, str]:
    """What a loopback redirect URI is known by."""
    parts = urlsplit(str(uri))
    return uri.host, parts.path or "/", parts.query


def reaches(uri: AnyUrl) -> str:
    """Whom a code reaches, in the words of a person: a host, or whatever application took a scheme for itself."""
    return str(uri.host) if uri.scheme in {"http", "https"} else f"the application of {uri.scheme}:"
