"""Forms that pages of this site sent: each carries a token that only the page's own browser was given."""

import hmac
from collections.abc import Mapping

from fastapi import Request


async def fields_of(request: Request, csrf_token: str) -> Mapping[str, str] | None:
    """The fields of the form that this request posts; None where it does not carry the token."""
    form = await request.form()
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    is_own = hmac.compare_digest(fields.get("csrf_token", "").encode(), csrf_token.encode())
    return fields if is_own else None
