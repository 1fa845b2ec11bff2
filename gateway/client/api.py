"""Calls the REST API of one gateway as one caller. A refusal becomes an error that says what to do next."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx2

from gateway.client.failures import CommandFailed, GatewaySilent, NotThere, Refused, WrongUse

API_PATH: Final = "/api/v1"
TIMEOUT: Final = httpx2.Timeout(60.0, connect=10.0)
_TRIES = 4
_PAGE = 100


class Gateway:
    """The REST API of one gateway, called with one caller's credentials."""

    def __init__(self, url: str, auth: httpx2.Auth) -> None:
        self.url = url
        self._http = httpx2.Client(
            base_url=f"{url}{API_PATH}",
            auth=auth,
            timeout=TIMEOUT,
            headers={"Accept": "application/json", "User-Agent": f"byline/{version('byline')}"},
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, *path: str, **query: str | int | None) -> Any:
        """Return the document at this path. Query parameters that are None are not sent."""
        return self._document(self._send("GET", path, query=query))

    def items(self, *path: str, limit: int | None = None, **query: str | int | None) -> list[Any]:
        """Return the items of a list, page by page: all of them, or at most `max_items`."""
        found: list[Any] = []
        after: str | None = None
        while limit is None or len(found) < limit:
            wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page = self.get(*path, limit=wanted, after=after, **query)
            found += page["items"]
            after = page.get("next_cursor")
            if after is None:
                break
        return found

    def post(
        self, *path: str, body: Any = None, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Send a POST request and return its answer. With an idempotency key it is sent again if no answer came."""
        sent = dict(headers or {}) | ({} if key is None else {"Idempotency-Key": key})
        for tried in range(1, _TRIES):
            try:
                return self._document(self._send("POST", path, body=body, headers=sent))
            except GatewaySilent:
                if key is None:
                    raise
                time.sleep(0.5 * 2**tried)
        return self._document(self._send("POST", path, body=body, headers=sent))

    def read(self, *path: str) -> tuple[Any, str]:
        """Return the document at this path and the ETag for a conditional change (RFC 9110 section 13.1.1)."""
        response = self._send("GET", path)
        return self._document(response), response.headers.get("ETag", "*")

    def change(self, method: str, *path: str, tag: str) -> Any:
        """Change the resource that was read with this ETag. Raises CommandFailed if it has been changed since."""
        return self._document(self._send(method, path, headers={"If-Match": tag}))

    def put(self, *path: str, body: Any) -> Any:
        """Put a document at this path and return the answer."""
        return self._document(self._send("PUT", path, body=body))

    def delete(self, *path: str, **query: str | None) -> None:
        """Delete the resource at this path."""
        self._send("DELETE", path, query=query)

    @contextmanager
    def events(self, *path: str, after: str | None, silence: float) -> Iterator[httpx2.EventSource]:
        """Stream the server-sent events of a path after `last_event_id`.

        Raises ReadTimeout after `silence_seconds` without data.
        """
        headers = {} if after is None else {"Last-Event-ID": after}
        timeout = httpx2.Timeout(TIMEOUT.write, connect=TIMEOUT.connect, read=silence)
        with self._http.sse(_address(path), headers=headers, timeout=timeout) as source:
            if not source.response.is_success:
                source.response.read()
                raise _failure(source.response)
            yield source

    def _send(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        body: Any = None,
        query: Mapping[str, str | int | None] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(
                method, _address(path), json=body, params=asked or None, headers=headers
            )
        except httpx2.HTTPError as error:
            raise GatewaySilent(_silent(self.url, error)) from error
        if not response.is_success:
            raise _failure(response)
        return response

    def _document(self, response: httpx2.Response) -> Any:
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise CommandFailed(f"{self.url} does not answer as a Byline gateway does.") from error


def _address(path: tuple[str, ...]) -> str:
    return "".join(f"/{quote(step, safe='')}" for step in path)


def _silent(url: str, error: httpx2.HTTPError) -> str:
    why = "does not answer in time" if isinstance(error, httpx2.TimeoutException) else "cannot be reached"
    return f"The gateway at {url} {why}. Is it running, and is BYLINE_URL right?"


def _failure(response: httpx2.Response) -> CommandFailed:
    """Return the error for a response, by its status and its problem details (RFC 9457)."""
    status, detail = response.status_code, _detail(response)
    if status == 401:
        return Refused(f"{detail} Sign in with `byline login`, or set BYLINE_TOKEN to an API token.")
    if status == 403:
        return Refused(detail)
    if status == 404:
        return NotThere(detail)
    if status in {400, 422}:
        return WrongUse(detail)
    if status in {502, 503, 504}:
        return GatewaySilent(detail)
    return CommandFailed(detail)


def _detail(response: httpx2.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = f"{response.url.host} answers {response.status_code}: is it the address of a Byline gateway?"
    return str(detail)
