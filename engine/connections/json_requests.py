"""Token requests in JSON, for the providers that take no form (RFC 6749 knows forms alone); it changes no words."""

import json
from urllib.parse import parse_qsl

import httpx2


class JsonTransport(httpx2.AsyncBaseTransport):
    """Sends what was written as a form as a JSON object."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the same words in the other form."""
        if "x-www-form-urlencoded" in request.headers.get("Content-Type", ""):
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
