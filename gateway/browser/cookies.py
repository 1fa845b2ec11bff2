"""Cookies of this host alone, which scripts and other sites cannot read."""

from fastapi import Request
from fastapi.responses import Response


class BrowserCookie:
    """One cookie, by its name. `is_secure` says that the site is served over HTTPS."""

    def __init__(self, cookie_name: str, *, is_secure: bool) -> None:
        # Browsers accept a `__Host-` cookie only with Secure, which does not work over plain HTTP on the loopback.
        self._cookie_name = f"__Host-{cookie_name}" if is_secure else cookie_name
        self._is_secure = is_secure

    def read_value(self, request: Request) -> str:
        """Return the value that the browser sent, or an empty string where it sent none."""
        return request.cookies.get(self._cookie_name, "")

    def store_value(self, response: Response, cookie_value: str, *, max_age_seconds: int) -> Response:
        """Set the cookie in a response, with a Max-Age in seconds."""
        response.set_cookie(
            self._cookie_name,
            cookie_value,
            max_age=max_age_seconds,
            path="/",
            secure=self._is_secure,
            httponly=True,
            samesite="lax",
        )
        return response

    def delete_value(self, response: Response) -> Response:
        """Delete the cookie in a response."""
        response.delete_cookie(
            self._cookie_name, path="/", secure=self._is_secure, httponly=True, samesite="lax"
        )
        return response
