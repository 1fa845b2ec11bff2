"""Clients whose id is the URL of a document that describes them (OAuth Client ID Metadata Document).

The document is fetched as any URL of a stranger: never from a private network, and without following redirects. An
invalid document is not cached: nothing of it is used, and it is fetched again at the next request.
"""

import asyncio
import json
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import AnyUrl, BaseModel, ValidationError

from engine.errors import AddressRefused, ClientRefused, RequestRejected, UpstreamUnavailable
from engine.outgoing.client import Answer
from engine.services import Services
from gateway.authorization_server import redirects
from gateway.authorization_server.clients import Client
from gateway.protected_resource import all_scopes

_LARGEST: Final = 16 * 1024
_WITHIN_SECONDS: Final = 5.0
_FRESH_SECONDS: Final = 3600.0
_SHORTEST_SECONDS: Final = 60.0
_LONGEST_SECONDS: Final = 86_400.0
_REMEMBERED: Final = 1000
_STALE_SECONDS: Final = 86_400.0
_FETCHED_AT_ONCE: Final = 8
# Anybody who opens a page can make Byline fetch a document, so the fetches from one host are limited.
_FETCHED_A_MINUTE: Final = 100
_JSON: Final = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)


class _Document(BaseModel):
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
class _Kept:
    client: Client
    fresh_until: float


class MetadataDocuments:
    """Finds clients by their documents, each cached as its cache headers say, from a minute to a day."""

    def __init__(self, services: Services, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._outgoing = services.outgoing
        self._scopes = " ".join(all_scopes(services))
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._fetching = asyncio.Semaphore(_FETCHED_AT_ONCE)
        self._minute = 0
        self._fetched_of: Counter[str] = Counter()

    async def get(self, address: str) -> Client:
        """Return the client at a URL.

        Raises AddressRefused for a URL that may not be called, ClientRefused for an invalid document, and
        UpstreamUnavailable where its host does not answer. A client that was valid before is used for one more day
        while its host does not answer.
        """
        kept = self._kept.get(address)
        if kept is not None and self._clock() < kept.fresh_until:
            return kept.client
        _require_form(address)
        try:
            answer = await self._fetched(address)
        except UpstreamUnavailable:
            if kept is None or self._clock() > kept.fresh_until + _STALE_SECONDS:
                raise
            return kept.client
        client = self._client(address, answer)
        self._kept[address] = _Kept(client, self._clock() + _lifetime(answer))
        self._kept.move_to_end(address)
        while len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)
        return client

    async def _fetched(self, address: str) -> Answer:
        host = str(urlsplit(address).hostname)
        self._count(host)
        try:
            async with asyncio.timeout(_WITHIN_SECONDS), self._fetching:
                answer = await self._outgoing.send(
                    "GET", address, headers={"Accept": "application/json"}, largest=_LARGEST
                )
        except TimeoutError:
            raise UpstreamUnavailable(f"{host} did not answer in time. Try again.") from None
        except RequestRejected as error:
            raise ClientRefused(str(error)) from error
        if answer.status >= 500:
            raise UpstreamUnavailable(
                f"{host} answers {answer.status} instead of describing its client. Try again later.",
                status=answer.status,
            )
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if answer.status != 200 or not _JSON.fullmatch(kind):
            given = f"{answer.status} with {kind or 'no type'}"
            raise ClientRefused(
                f"{address} has to answer 200 with JSON that describes the client, and answers {given}."
            )
        return answer

    def _count(self, host: str) -> None:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._fetched_of.clear()
        self._fetched_of[host] += 1
        if self._fetched_of[host] > _FETCHED_A_MINUTE:
            raise UpstreamUnavailable(
                f"{host} was asked for many clients within the minute. Try again in a minute."
            )

    def _client(self, address: str, answer: Answer) -> Client:
        try:
            document = _Document.model_validate(json.loads(answer.body))
        except ValidationError as error:
            wrong = ", ".join(sorted({".".join(map(str, each["loc"])) for each in error.errors()}))
            raise ClientRefused(
                f"The document at {address} does not describe a client: see {wrong}."
            ) from None
        except (ValueError, RecursionError):
            raise ClientRefused(f"The document at {address} is not JSON.") from None
        problem = _problem(address, document)
        if problem is not None:
            raise ClientRefused(f"The client at {address} cannot be used: {problem}")
        return Client(
            client_id=address,
            client_name=document.client_name,
            redirect_uris=document.redirect_uris,
            token_endpoint_auth_method="none",
            grant_types=document.grant_types,
            response_types=document.response_types,
            application_type=document.application_type,
            scope=self._scopes,
            known_by="document",
        )


def is_document_address(client_id: str) -> bool:
    """Whether a client id is a URL. No client can be registered under such an id."""
    return client_id.startswith(("https://", "http://"))


def _require_form(address: str) -> None:
    """Raise AddressRefused unless the URL has a path that fits a client id."""
    path = urlsplit(address).path
    if path in {"", "/"} or {".", ".."} & set(unquote(path).split("/")):
        raise AddressRefused("A client id that is an address has a path, without dots for its parts.")


def _problem(address: str, document: _Document) -> str | None:
    if document.client_id != address:
        return "its client_id has to be its own address, letter for letter."
    if document.client_secret is not None:
        return "it holds a client_secret, which everybody can read. Leave it out."
    if document.token_endpoint_auth_method != "none":
        return "the only token_endpoint_auth_method for such a client here is none."
    if not document.redirect_uris:
        return "it has no redirect_uris."
    for uri in document.redirect_uris:
        problem = redirects.problem(uri, document.application_type)
        if problem is not None:
            return f"{uri}: {problem}."
    return None


def _lifetime(answer: Answer) -> float:
    """Return the seconds for which a document is cached, from Cache-Control (RFC 9111 section 5.2.2)."""
    said = answer.headers.get("Cache-Control", "").lower()
    if re.search(r"\bno-(?:store|cache)\b", said):
        return _SHORTEST_SECONDS
    age = re.search(r"\bmax-age=(\d{1,9})\b", said)
    seconds = _FRESH_SECONDS if age is None else float(age.group(1))
    return min(max(seconds, _SHORTEST_SECONDS), _LONGEST_SECONDS)
