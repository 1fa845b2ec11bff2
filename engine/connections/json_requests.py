"""Token requests in JSON, for the providers that take no form (RFC 6749 knows forms alone); it changes no words."""

import json
from urllib.parse import parse_qsl

import httpx2


class JsonTransport(httpx2.AsyncBaseTransport):
    """Sends the forms for one address as JSON objects, and everything else as it is."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, address: str) -> None:
        self._inner = inner
        self._address = httpx2.URL(address)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the same words in the other form."""
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
        """Close what sends."""
        await self._inner.aclose()
