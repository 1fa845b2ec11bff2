"""Matches URIs against URI templates of RFC 6570 level 1 and extracts the variables. It expands no template."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
# A value ends where the next part of the path or the query begins (RFC 3986, section 3.3: pchar).
_VALUE: Final = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+"


@dataclass(frozen=True)
class UriTemplate:
    """A URI, or a URI template with the names of its variables in order."""

    text: str
    variables: tuple[str, ...]
    pattern: re.Pattern[str]

    def values(self, uri: str) -> dict[str, str] | None:
        """Return the value of each variable in this URI, or None if the URI does not match the template."""
        found = self.pattern.fullmatch(uri)
        if found is None:
            return None
        try:
            return {name: unquote(value, errors="strict") for name, value in found.groupdict().items()}
        except UnicodeDecodeError:
            return None


def uri_template(text: str) -> UriTemplate:
    """Parse a template; raises ValueError, which says what is wrong with it."""
    if not _SCHEME.match(text):
        raise ValueError("it has to begin with a scheme, such as crm://")
    parts = _VARIABLE.split(text)
    names = parts[1::2]
    if any(mark in part for part in parts[::2] for mark in "{} "):
        raise ValueError("it may hold variables such as {account_id}, and no other expression")
    if len(set(names)) < len(names):
        raise ValueError("it names a variable twice")
    pattern = "".join(
        f"(?P<{part}>{_VALUE})" if number % 2 else re.escape(part) for number, part in enumerate(parts)
    )
    return UriTemplate(text, tuple(names), re.compile(pattern))
