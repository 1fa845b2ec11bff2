"""A cookie of this site alone, out of reach of scripts and of other sites; what it holds is its owner's to say."""

from fastapi import Request
from fastapi.responses import Response


class Cookie:
    """One cookie by its name; `is_secure` where the site is served by HTTPS."""

    def __init__(self, name: str, *, is_secure: bool) -> None:
        # Browsers take a `__Host-` cookie only with Secure, which plain HTTP on the loopback can't have.
        self._name = f"__Host-{name}" if is_secure else name
        self._is_secure = is_secure

    def of(self, request: Request) -> str:
        """What the browser sends; empty where it sends none."""
        return request.cookies.get(self._name, "")

    def keep(self, response: Response, value: str, *, seconds: int) -> Response:
        """Hand it to the browser, for so long."""
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
        """Take it from the browser."""
        response.delete_cookie(self._name, path="/", secure=self._is_secure, httponly=True, samesite="lax")
        return response
