"""Read submitted forms. Each carries a CSRF token that only the browser which got the page knows."""

import hmac
from collections.abc import Mapping

from fastapi import Request


async def read_form_fields(request: Request, csrf_token: str) -> Mapping[str, str] | None:
    """Return the text fields of the posted form, or None where it does not carry this CSRF token."""
    form_data = await request.form()
    form_fields = {
        field_name: field_value
        for field_name, field_value in form_data.items()
        if isinstance(field_value, str)
    }
    is_token_valid = hmac.compare_digest(form_fields.get("csrf_token", "").encode(), csrf_token.encode())
    return form_fields if is_token_valid else None
