"""Calls the REST API of one gateway as one caller. A refusal becomes an error that says what to do next."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx2

from gateway.client.command_errors import (
    AccessRefused,
    CommandFailed,
    GatewayUnreachable,
    ResourceNotFound,
    UsageInvalid,
)

API_PATH: Final = "/api/v1"
REQUEST_TIMEOUT: Final = httpx2.Timeout(60.0, connect=10.0)
_MAX_ATTEMPTS = 4
_MAX_PAGE_ITEMS = 100


class GatewayClient:
    """The REST API of one gateway, called with one caller's credentials."""

    def __init__(self, gateway_url: str, http_auth: httpx2.Auth) -> None:
        self.gateway_url = gateway_url
        self._http_client = httpx2.Client(
            base_url=f"{gateway_url}{API_PATH}",
            auth=http_auth,
            timeout=REQUEST_TIMEOUT,
            headers={"Accept": "application/json", "User-Agent": f"byline/{version('byline')}"},
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http_client.close()

    def get_document(self, *path_segments: str, **query_parameters: str | int | None) -> Any:
        """Return the document at this path. Query parameters that are None are not sent."""
        return self._parse_document(
            self._send_request("GET", path_segments, query_parameters=query_parameters)
        )

    def list_items(
        self, *path_segments: str, max_items: int | None = None, **query_parameters: str | int | None
    ) -> list[Any]:
        """Return the items of a list, page by page: all of them, or at most `max_items`."""
        collected_items: list[Any] = []
        page_cursor: str | None = None
        while max_items is None or len(collected_items) < max_items:
            page_size = (
                _MAX_PAGE_ITEMS
                if max_items is None
                else min(_MAX_PAGE_ITEMS, max_items - len(collected_items))
            )
            page_document = self.get_document(
                *path_segments, limit=page_size, after=page_cursor, **query_parameters
            )
            collected_items += page_document["items"]
            page_cursor = page_document.get("next_cursor")
            if page_cursor is None:
                break
        return collected_items

    def post_document(
        self,
        *path_segments: str,
        request_body: Any = None,
        idempotency_key: str | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a POST request and return its answer. With an idempotency key it is sent again if no answer came."""
        request_headers = dict(extra_headers or {}) | (
            {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        )
        for attempt_number in range(1, _MAX_ATTEMPTS):
            try:
                return self._parse_document(
                    self._send_request(
                        "POST", path_segments, request_body=request_body, request_headers=request_headers
                    )
                )
            except GatewayUnreachable:
                if idempotency_key is None:
                    raise
                time.sleep(0.5 * 2**attempt_number)
        return self._parse_document(
            self._send_request(
                "POST", path_segments, request_body=request_body, request_headers=request_headers
            )
        )

    def read_with_etag(self, *path_segments: str) -> tuple[Any, str]:
        """Return the document at this path and the ETag for a conditional change (RFC 9110 section 13.1.1)."""
        response = self._send_request("GET", path_segments)
        return self._parse_document(response), response.headers.get("ETag", "*")

    def change_if_unchanged(self, http_method: str, *path_segments: str, etag: str) -> Any:
        """Change the resource that was read with this ETag. Raises CommandFailed if it has been changed since."""
        return self._parse_document(
            self._send_request(http_method, path_segments, request_headers={"If-Match": etag})
        )

    def put_document(self, *path_segments: str, request_body: Any) -> Any:
        """Put a document at this path and return the answer."""
        return self._parse_document(self._send_request("PUT", path_segments, request_body=request_body))

    def delete_resource(self, *path_segments: str, **query_parameters: str | None) -> None:
        """Delete the resource at this path."""
        self._send_request("DELETE", path_segments, query_parameters=query_parameters)

    @contextmanager
    def stream_events(
        self, *path_segments: str, last_event_id: str | None, silence_seconds: float
    ) -> Iterator[httpx2.EventSource]:
        """Stream the server-sent events of a path after `last_event_id`.

        Raises ReadTimeout after `silence_seconds` without data.
        """
        request_headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        stream_timeout = httpx2.Timeout(
            REQUEST_TIMEOUT.write, connect=REQUEST_TIMEOUT.connect, read=silence_seconds
        )
        with self._http_client.sse(
            _to_url_path(path_segments), headers=request_headers, timeout=stream_timeout
        ) as event_source:
            if not event_source.response.is_success:
                event_source.response.read()
                raise _to_command_error(event_source.response)
            yield event_source

    def _send_request(
        self,
        http_method: str,
        path_segments: tuple[str, ...],
        *,
        request_body: Any = None,
        query_parameters: Mapping[str, str | int | None] | None = None,
        request_headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        sent_parameters = {
            parameter_name: parameter_value
            for parameter_name, parameter_value in (query_parameters or {}).items()
            if parameter_value is not None
        }
        try:
            response = self._http_client.request(
                http_method,
                _to_url_path(path_segments),
                json=request_body,
                params=sent_parameters or None,
                headers=request_headers,
            )
        except httpx2.HTTPError as error:
            raise GatewayUnreachable(_describe_silence(self.gateway_url, error)) from error
        if not response.is_success:
            raise _to_command_error(response)
        return response

    def _parse_document(self, response: httpx2.Response) -> Any:
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise CommandFailed(f"{self.gateway_url} does not answer as a Byline gateway does.") from error


def _to_url_path(path_segments: tuple[str, ...]) -> str:
    return "".join(f"/{quote(path_segment, safe='')}" for path_segment in path_segments)


def _describe_silence(gateway_url: str, http_error: httpx2.HTTPError) -> str:
    failure_text = (
        "does not answer in time" if isinstance(http_error, httpx2.TimeoutException) else "cannot be reached"
    )
    return f"The gateway at {gateway_url} {failure_text}. Is it running, and is BYLINE_URL right?"


def _to_command_error(response: httpx2.Response) -> CommandFailed:
    """Return the error for a response, by its status and its problem details (RFC 9457)."""
    status_code, problem_detail = response.status_code, _read_problem_detail(response)
    if status_code == 401:
        return AccessRefused(
            f"{problem_detail} Sign in with `byline login`, or set BYLINE_TOKEN to an API token."
        )
    if status_code == 403:
        return AccessRefused(problem_detail)
    if status_code == 404:
        return ResourceNotFound(problem_detail)
    if status_code in {400, 422}:
        return UsageInvalid(problem_detail)
    if status_code in {502, 503, 504}:
        return GatewayUnreachable(problem_detail)
    return CommandFailed(problem_detail)


def _read_problem_detail(response: httpx2.Response) -> str:
    try:
        problem_detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        problem_detail = (
            f"{response.url.host} answers {response.status_code}: is it the address of a Byline gateway?"
        )
    return str(problem_detail)
