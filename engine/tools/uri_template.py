"""Matches URIs against URI templates of RFC 6570 level 1 and extracts the variables. It expands no template.

It does not use the matcher of the `mcp` package, because the engine and the workflow code that imports this module load
no protocol of the edge.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

_SCHEME_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_VARIABLE_PATTERN: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
# A value ends where the next part of the path or the query begins (RFC 3986, section 3.3: pchar).
_VALUE_PATTERN: Final = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+"


@dataclass(frozen=True)
class UriTemplate:
    """A URI, or a URI template with the names of its variables in order."""

    template_text: str
    variables: tuple[str, ...]
    uri_pattern: re.Pattern[str]

    def match_uri(self, resource_uri: str) -> dict[str, str] | None:
        """Return the value of each variable in this URI, or None if the URI does not match the template."""
        uri_match = self.uri_pattern.fullmatch(resource_uri)
        if uri_match is None:
            return None
        try:
            return {
                variable_name: unquote(variable_value, errors="strict")
                for variable_name, variable_value in uri_match.groupdict().items()
            }
        except UnicodeDecodeError:
            return None


def parse_uri_template(template_text: str) -> UriTemplate:
    """Parse a template; raises ValueError, which says what is wrong with it."""
    if not _SCHEME_PATTERN.match(template_text):
        raise ValueError("it has to begin with a scheme, such as crm://")
    template_parts = _VARIABLE_PATTERN.split(template_text)
    variable_names = template_parts[1::2]
    if any(
        forbidden_char in template_part for template_part in template_parts[::2] for forbidden_char in "{} "
    ):
        raise ValueError("it may hold variables such as {account_id}, and no other expression")
    if len(set(variable_names)) < len(variable_names):
        raise ValueError("it names a variable twice")
    uri_pattern = "".join(
        f"(?P<{template_part}>{_VALUE_PATTERN})" if part_index % 2 else re.escape(template_part)
        for part_index, template_part in enumerate(template_parts)
    )
    return UriTemplate(template_text, tuple(variable_names), re.compile(uri_pattern))
