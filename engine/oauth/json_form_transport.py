"""Sends token requests as JSON, for providers that accept no form.

RFC 6749 defines forms only. The parameter names and values stay the same.
"""

import json
from urllib.parse import parse_qsl

import httpx2


class JsonFormTransport(httpx2.AsyncBaseTransport):
    """Sends forms to one URL as JSON objects, and every other request unchanged."""

    def __init__(self, inner_transport: httpx2.AsyncBaseTransport, form_url: str) -> None:
        self._inner_transport = inner_transport
        self._form_url = httpx2.URL(form_url)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request, as JSON if it is a form to the URL."""
        is_form = "x-www-form-urlencoded" in request.headers.get("Content-Type", "")
        if is_form and request.url == self._form_url:
            form_fields = parse_qsl((await request.aread()).decode(), keep_blank_values=True)
            headers = {
                header_name: header_value
                for header_name, header_value in request.headers.multi_items()
                if header_name.lower() not in {"content-type", "content-length"}
            }
            request = httpx2.Request(
                request.method,
                request.url,
                headers={**headers, "Content-Type": "application/json"},
                content=json.dumps(dict(form_fields)).encode(),
                extensions=request.extensions,
            )
        return await self._inner_transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner_transport.aclose()
