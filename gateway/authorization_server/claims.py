"""The claims of access tokens that Byline signs beyond RFC 9068's, and whom `sub` means; it signs nothing itself."""

from typing import Final

from engine.identity.model import Principal

CLIENT_NAME_CLAIM: Final = "client_name"
ACT_CLAIM: Final = "act"
FAMILY_CLAIM: Final = "sid"
"""The consent that a token came of; with it, all of its tokens end."""


def subject(principal: Principal, issuer: str) -> str:
    """The `sub` of a principal at this issuer: their own where it signed them in, and otherwise the principal's id.

    Another issuer's subject could be anybody's here.
    """
    return principal.subject if principal.issuer == issuer else principal.id
