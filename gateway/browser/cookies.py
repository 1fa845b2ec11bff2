"""Cookies of this host alone, which scripts and other sites cannot read."""

from fastapi import Request
from fastapi.responses import Response


class Cookie:
    """One cookie, by its name. `is_secure` says that the site is served over HTTPS."""

    def __init__(self, name: str, *, is_secure: bool) -> None:
        # Browsers accept a `__Host-` cookie only with Secure, which does not work over plain HTTP on the loopback.
        self._name = f"__Host-{name}" if is_secure else name
        self._is_secure = is_secure

    def of(self, request: Request) -> str:
        """Return the value that the browser sent, or an empty string where it sent none."""
        return request.cookies.get(self._name, "")

    def keep(self, response: Response, value: str, *, seconds: int) -> Response:
        """Set the cookie in a response, with a Max-Age in seconds."""
        response.set_cookie(
            self._name,
            value,
            max_age=seconds,
            path="/",
            secure=self._is_secure,
            httponly=True,
            samesite="lax",
        )
        return response

    def forget(self, response: Response) -> Response:
        """Delete the cookie in a response."""
        response.delete_cookie(self._name, path="/", secure=self._is_secure, httponly=True, samesite="lax")
        return response
