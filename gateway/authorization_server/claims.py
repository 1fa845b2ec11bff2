"""Claims of Byline's access tokens beyond RFC 9068, and the `sub` of a principal. This module signs nothing."""

from typing import Final

from engine.identity.model import Principal

CLIENT_NAME_CLAIM: Final = "client_name"
ACT_CLAIM: Final = "act"
FAMILY_CLAIM: Final = "sid"
"""The id of the consent under which a token was issued. When the consent ends, all of its tokens end."""


def derive_subject(principal: Principal, issuer_url: str) -> str:
    """Return the `sub` of a principal at this issuer.

    It is the principal's own subject where this issuer signed them in, and otherwise the principal's id: another
    issuer's subject could be anybody's here.
    """
    return principal.subject if principal.issuer == issuer_url else principal.id
