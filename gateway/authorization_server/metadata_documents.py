"""Clients whose id is the URL of a document that describes them (OAuth Client ID Metadata Document).

The document is fetched like any untrusted URL: never from a private network, and without following redirect_uris. An
invalid document is not cached: nothing of it is used, and it is fetched again at the next request.
"""

import asyncio
import json
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import AnyUrl, BaseModel, ValidationError

from engine.errors import AddressRefused, ClientRefused, RequestRejected, UpstreamUnavailable
from engine.outgoing.client import OutgoingClient, OutgoingResponse
from gateway.authorization_server import redirect_uris
from gateway.authorization_server.clients import ClientInformation

_MAX_DOCUMENT_BYTES: Final = 16 * 1024
_FETCH_TIMEOUT_SECONDS: Final = 5.0
_DEFAULT_CACHE_SECONDS: Final = 3600.0
_MIN_CACHE_SECONDS: Final = 60.0
_MAX_CACHE_SECONDS: Final = 86_400.0
_MAX_CACHED_CLIENTS: Final = 1000
_STALE_CACHE_SECONDS: Final = 86_400.0
_MAX_CONCURRENT_FETCHES: Final = 8
# Anybody who opens a page can make Byline fetch a document, so the fetches from one host are limited.
_MAX_FETCHES_PER_MINUTE: Final = 100
_JSON_CONTENT_TYPE: Final = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)


class _ClientDocument(BaseModel):
    """The fields that are read from a document (RFC 7591 section 2). Anybody can read it, so it holds no secret."""

    client_id: str
    client_name: str | None = None
    redirect_uris: list[AnyUrl]
    token_endpoint_auth_method: str = "none"
    grant_types: list[str] = ["authorization_code", "refresh_token"]
    response_types: list[str] = ["code"]
    application_type: str | None = None
    client_secret: Any = None


@dataclass(frozen=True, slots=True)
class _CachedClient:
    oauth_client: ClientInformation
    fresh_until: float


class MetadataDocuments:
    """Finds clients by their documents, each cached as its cache headers say, from a minute to a day."""

    def __init__(
        self,
        outgoing: OutgoingClient,
        scope_names: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._outgoing = outgoing
        self._scope_text = " ".join(scope_names)
        self._cached_clients: OrderedDict[str, _CachedClient] = OrderedDict()
        self._fetch_slots = asyncio.Semaphore(_MAX_CONCURRENT_FETCHES)
        self._current_minute = 0
        self._fetches_by_host: Counter[str] = Counter()

    async def find_client(self, document_url: str) -> ClientInformation:
        """Return the client at a URL.

        Raises AddressRefused for a URL that may not be called, ClientRefused for an invalid document, and
        UpstreamUnavailable where its host does not answer. A client that was valid before is used for one more day
        while its host does not answer.
        """
        cached_client = self._cached_clients.get(document_url)
        if cached_client is not None and self._clock() < cached_client.fresh_until:
            return cached_client.oauth_client
        _require_url_path(document_url)
        try:
            http_response = await self._fetch_document(document_url)
        except UpstreamUnavailable:
            if cached_client is None or self._clock() > cached_client.fresh_until + _STALE_CACHE_SECONDS:
                raise
            return cached_client.oauth_client
        oauth_client = self._to_client(document_url, http_response)
        self._cached_clients[document_url] = _CachedClient(
            oauth_client, self._clock() + _read_cache_seconds(http_response)
        )
        return oauth_client

    async def _fetch_document(self, document_url: str) -> OutgoingResponse:
        host_name = str(urlsplit(document_url).hostname)
        self._count_fetch(host_name)
        try:
            async with asyncio.timeout(_FETCH_TIMEOUT_SECONDS), self._fetch_slots:
                http_response = await self._outgoing.send_request(
                    "GET", document_url, headers={"Accept": "application/json"}, max_bytes=_MAX_DOCUMENT_BYTES
                )
        except TimeoutError:
            raise UpstreamUnavailable(f"{host_name} did not answer in time. Try again.") from None
        except RequestRejected as error:
            raise ClientRefused(str(error)) from error
        if http_response.status_code >= 500:
            raise UpstreamUnavailable(
                f"{host_name} answers {http_response.status_code} instead of describing its client. Try again later.",
                status_code=http_response.status_code,
            )
        content_type = http_response.headers.get("Content-Type", "").partition(";")[0].strip()
        if http_response.status_code != 200 or not _JSON_CONTENT_TYPE.fullmatch(content_type):
            answer_summary = f"{http_response.status_code} with {content_type or 'no type'}"
            raise ClientRefused(
                f"{document_url} has to answer 200 with JSON that describes the client, and answers {answer_summary}."
            )
        return http_response

    def _count_fetch(self, host_name: str) -> None:
        current_minute = int(self._clock() // 60)
        if current_minute != self._current_minute:
            self._current_minute = current_minute
            self._fetches_by_host.clear()
        self._fetches_by_host[host_name] += 1
        if self._fetches_by_host[host_name] > _MAX_FETCHES_PER_MINUTE:
            raise UpstreamUnavailable(
                f"{host_name} was asked for many clients within the minute. Try again in a minute."
            )

    def _to_client(self, document_url: str, http_response: OutgoingResponse) -> ClientInformation:
        try:
            client_document = _ClientDocument.model_validate(json.loads(http_response.body))
        except ValidationError as error:
            invalid_fields = ", ".join(
                sorted({".".join(map(str, field_error["loc"])) for field_error in error.errors()})
            )
            raise ClientRefused(
                f"The document at {document_url} does not describe a client: see {invalid_fields}."
            ) from None
        except (ValueError, RecursionError):
            raise ClientRefused(f"The document at {document_url} is not JSON.") from None
        document_problem = _find_document_problem(document_url, client_document)
        if document_problem is not None:
            raise ClientRefused(f"The client at {document_url} cannot be used: {document_problem}")
        return ClientInformation(
            client_id=document_url,
            client_name=client_document.client_name,
            redirect_uris=client_document.redirect_uris,
            token_endpoint_auth_method="none",
            grant_types=client_document.grant_types,
            response_types=client_document.response_types,
            application_type=client_document.application_type,
            scope=self._scope_text,
            known_by="document",
        )


def is_document_url(client_id: str) -> bool:
    """Whether a client id is a URL. No client can be registered under such an id."""
    return client_id.startswith(("https://", "http://"))


def _require_url_path(document_url: str) -> None:
    """Raise AddressRefused unless the URL has a path that fits a client id."""
    url_path = urlsplit(document_url).path
    if url_path in {"", "/"} or {".", ".."} & set(unquote(url_path).split("/")):
        raise AddressRefused("A client id that is an address has a path, without dots for its parts.")


def _find_document_problem(document_url: str, client_document: _ClientDocument) -> str | None:
    if client_document.client_id != document_url:
        return "its client_id has to be its own address, letter for letter."
    if client_document.client_secret is not None:
        return "it holds a client_secret, which everybody can read. Leave it out."
    if client_document.token_endpoint_auth_method != "none":
        return "the only token_endpoint_auth_method for such a client here is none."
    if not client_document.redirect_uris:
        return "it has no redirect_uris."
    for redirect_uri in client_document.redirect_uris:
        uri_problem = redirect_uris.find_uri_problem(redirect_uri, client_document.application_type)
        if uri_problem is not None:
            return f"{redirect_uri}: {uri_problem}."
    return None


def _read_cache_seconds(http_response: OutgoingResponse) -> float:
    """Return the seconds for which a document is cached, from Cache-Control (RFC 9111 section 5.2.2)."""
    cache_control = http_response.headers.get("Cache-Control", "").lower()
    if re.search(r"\bno-(?:store|cache)\b", cache_control):
        return _MIN_CACHE_SECONDS
    max_age = re.search(r"\bmax-age=(\d{1,9})\b", cache_control)
    cache_seconds = _DEFAULT_CACHE_SECONDS if max_age is None else float(max_age.group(1))
    return min(max(cache_seconds, _MIN_CACHE_SECONDS), _MAX_CACHE_SECONDS)
