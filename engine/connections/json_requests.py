"""Sends token requests as JSON, for providers that accept no form.

RFC 6749 defines forms only. The parameter names and values stay the same.
"""

import json
from urllib.parse import parse_qsl

import httpx2


class JsonTransport(httpx2.AsyncBaseTransport):
    """Sends forms to one URL as JSON objects, and every other request unchanged."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, address: str) -> None:
        self._inner = inner
        self._address = httpx2.URL(address)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request, as JSON if it is a form to the URL."""
        is_form = "x-www-form-urlencoded" in request.headers.get("Content-Type", "")
        if is_form and request.url == self._address:
            form = parse_qsl((await request.aread()).decode(), keep_blank_values=True)
            headers = {
                name: value
                for name, value in request.headers.multi_items()
                if name.lower() not in {"content-type", "content-length"}
            }
            request = httpx2.Request(
                request.method,
                request.url,
                headers={**headers, "Content-Type": "application/json"},
                content=json.dumps(dict(form)).encode(),
                extensions=request.extensions,
            )
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()
