"""Read submitted forms. Each carries a CSRF token that only the browser which got the page knows."""

import hmac
from collections.abc import Mapping

from fastapi import Request


async def fields_of(request: Request, csrf_token: str) -> Mapping[str, str] | None:
    """Return the text fields of the posted form, or None where it does not carry this CSRF token."""
    form = await request.form()
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    is_own = hmac.compare_digest(fields.get("csrf_token", "").encode(), csrf_token.encode())
    return fields if is_own else None
