"""The HTTP client of actions. It signs in as the action's principal, audits each request and follows no redirect."""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import unquote

import httpx2

from engine.actions import ActionDefinition
from engine.audit.trail import SAFE_METHODS, AuditEvent, Trail, Verdict
from engine.authorization.requests import AuthorizationRequests
from engine.authorization.vouching import Vouching
from engine.connections.connection import Connection
from engine.connections.dpop import nonce_asked, sign
from engine.connections.grants import Credential, Grants
from engine.errors import (
    AddressRefused,
    BylineError,
    ConnectionMisconfigured,
    OutcomeUnknown,
    PermissionDenied,
    RateLimited,
    RecordNotFound,
    RequestRejected,
    UpstreamFailed,
    UpstreamUnavailable,
)
from engine.identity.model import Identity
from engine.outgoing.bodies import OF_THE_WIRE, read
from engine.outgoing.client import retry_after
from engine.waiting.waiters import ParkedAction

_IDEMPOTENT = frozenset({*SAFE_METHODS, "PUT", "DELETE"})
_CHALLENGE_SCOPE = re.compile(r'scope="([^"]*)"')
_NOT_FOUND = frozenset({404, 410})
_LARGEST_ANSWER: Final = 16_000_000
_TOLD_WITHIN: Final = httpx2.Timeout(5.0)
_SEPARATOR = re.compile(r"[/\\]")


@dataclass(frozen=True, slots=True)
class ActionContext:
    """One attempt of one action with its verified identity. After a wait (`waited`), attempts count from one again."""

    identity: Identity
    run_id: str
    chain: tuple[str, ...]
    definition: ActionDefinition
    connection: Connection
    attempt: int
    parked: ParkedAction
    waited: bool = False


class Upstream:
    """The upstream system of the running action's connection; paths are relative to the connection's base URL.

    The empty path is the base URL itself. A path that could lead to another resource than it shows (`..`, `?`, `#`, a
    backslash) raises ValueError, since it may come from an argument. Quote a segment that may contain a slash with
    `urllib.parse.quote(…, safe="")`.

    Every method raises the matching UpstreamFailed for a response outside 2xx. It raises AuthorizationRequired if the
    person has to sign in, or to consent to more scopes, before the request can be sent.
    """

    def __init__(
        self,
        context: ActionContext,
        http: httpx2.AsyncClient,
        grants: Grants,
        requests: AuthorizationRequests,
        vouching: Vouching,
        trail: Trail,
    ) -> None:
        self._context = context
        self._http = http
        self._grants = grants
        self._requests = requests
        self._vouching = vouching
        self._may_vouch = True
        self._trail = trail
        self._credential: Credential | None = None
        self._served = False
        self._writes = 0

    @property
    def address(self) -> str:
        """The base URL of the connection."""
        return str(self._context.connection.base_url)

    async def get(
        self, path: str, *, record: str | None = None, params: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send a GET request. `record` names what is read, as `kind/id`, in the audit trail."""
        return await self.request("GET", path, record=record, params=params)

    async def request(
        self,
        method: str,
        path: str,
        *,
        record: str | None = None,
        created: Callable[[httpx2.Response], str] | None = None,
        idempotent: bool | None = None,
        changes: bool | None = None,
        expected: Collection[int] = (),
        params: Mapping[str, str] | None = None,
        json: object = None,
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send one request.

        `record` names the touched record as `kind/id`. `created` reads that name from the response if the upstream
        chooses it. `idempotent` says whether sending the request twice is harmless. By default it follows from the
        method (RFC 9110 section 9.2.2) and from whether the connection supports idempotency keys. `changes` says
        whether the request may change anything, by default from the method as well (section 9.2.1). A request that
        changes nothing is idempotent and has no idempotency key. A response with an `expected` status is returned and
        raises nothing.
        """
        connection = self._context.connection
        if changes is None:
            changes = method not in SAFE_METHODS
        if idempotent is None:
            idempotent = not changes or method in _IDEMPOTENT or connection.idempotency_keys
        if record is not None and not record.isprintable():
            raise ValueError(
                "The name of the record that this action touches holds characters that cannot be shown."
            )
        address = _joined(self.address, path)
        key = self._next_key() if changes else None
        if not idempotent:
            await self._refuse_to_repeat(key)
        request = self._http.build_request(
            method,
            address,
            params=params,
            json=json,
            data=data,
            headers={**(headers or {}), **({"Idempotency-Key": key} if key else {})},
        )
        if self._served:
            # The credential was checked before the action began. Later requests have to notice a revocation since then.
            self._credential = None
        self._served = True
        credential = await self.credential()
        send = partial(self._send, request, record=record, created=created, key=key, idempotent=idempotent)
        response = await send(credential)
        nonce = None if credential.proof_key is None else nonce_asked(response)
        if nonce is not None:
            response = await send(credential, nonce=nonce)
        if response.status_code == httpx2.codes.UNAUTHORIZED:
            credential = await self._replaced(credential)
            response = await send(credential, nonce=nonce)
        return response if response.status_code in expected else await self._judged(response, credential)

    async def tell(
        self, method: str, path: str, *, json: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a request on which nothing depends: one attempt, limited to seconds, that raises nothing.

        It asks nobody to sign in. The audit trail records the result.
        """
        with suppress(BylineError):
            credential = await self._held()
            if credential is None:
                return
            request = self._http.build_request(
                method, _joined(self.address, path), json=json, headers=headers, timeout=_TOLD_WITHIN
            )
            await self._send(request, credential, idempotent=True)

    async def credential(self) -> Credential:
        """Return the credential of this action; raises AuthorizationRequired if the person has to grant it first."""
        while self._credential is None:
            context = self._context
            connection, identity, needed = context.connection, context.identity, context.definition.scopes
            found = await self._held()
            missing = set(needed) - set(() if found is None else found.scopes)
            if found is not None and not missing:
                if await self._grants.settle(connection, identity.principal_id, context.run_id, found):
                    self._credential = found
            elif await self._vouched((*connection.scopes, *needed)):
                continue
            elif found is None:
                await self._require((*connection.scopes, *needed), needed=needed, refused=None)
            else:
                await self._require(missing, needed=missing, refused=found.grant_id)
        return self._credential

    async def _held(self) -> Credential | None:
        """Return the stored credential, whether or not its scopes suffice; None if there is none."""
        context = self._context
        return await self._grants.credential(
            context.connection,
            context.identity.principal_id,
            tool=context.identity.tool,
            run_id=context.run_id,
        )

    async def _vouched(self, scopes: tuple[str, ...]) -> bool:
        """Return whether the person's identity provider just granted the scopes; it is asked once per attempt."""
        if not self._may_vouch:
            return False
        self._may_vouch = False
        context = self._context
        return await self._vouching.vouched(
            context.connection,
            context.identity.principal_id,
            scopes,
            tool=context.identity.tool,
            run_id=context.run_id,
        )

    async def _replaced(self, refused: Credential) -> Credential:
        connection, principal_id = self._context.connection, self._context.identity.principal_id
        self._credential = await self._grants.renewed(connection, principal_id, refused)
        return await self.credential()

    async def _require(
        self, scopes: Collection[str], *, needed: Collection[str], refused: str | None
    ) -> None:
        context = self._context
        if context.connection.mode == "shared":
            lacking = " ".join(sorted(scopes))
            raise PermissionDenied(
                f"The shared account of '{context.connection.name}' lacks what this action needs: {lacking}."
            )
        required = await self._requests.require(
            context.identity,
            context.connection,
            set(scopes),
            context.parked,
            run_id=context.run_id,
            needed=needed,
            refused_grant=refused,
        )
        if required is not None:
            raise required

    async def _send(
        self,
        request: httpx2.Request,
        credential: Credential,
        *,
        idempotent: bool,
        record: str | None = None,
        created: Callable[[httpx2.Response], str] | None = None,
        key: str | None = None,
        nonce: str | None = None,
    ) -> httpx2.Response:
        place = self._context.connection.token_place
        sign(request, credential.access_token, credential.proof_key, nonce=nonce, place=place)
        intended = self._intent(request, credential, record, key)
        seq = await self._trail.append(intended)
        ended = replace(intended, kind="action.ended", intent=seq)
        try:
            response, is_whole = await _received(await self._http.send(request, stream=True))
        except AddressRefused as error:
            await self._trail.append(replace(ended, verdict="unreachable", error=error.code))
            raise ConnectionMisconfigured(
                f"Connection '{self._context.connection.name}' is not called: {error}"
            ) from None
        except (UpstreamUnavailable, httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            await self._trail.append(replace(ended, verdict="unreachable", error=type(error).__name__))
            raise UpstreamUnavailable(f"{self._context.connection.title} cannot be reached.") from None
        except httpx2.HTTPError as error:
            await self._trail.append(replace(ended, verdict="no_answer", error=type(error).__name__))
            raise self._no_answer(idempotent=idempotent) from None
        ended = replace(ended, status=response.status_code, verdict=_verdict(response))
        try:
            if created is not None and response.is_success and is_whole:
                ended = replace(ended, record_id=str(created(response)))
        finally:
            await self._trail.append(ended if is_whole else replace(ended, error="answer_too_large"))
        if not is_whole:
            raise RequestRejected(
                f"{self._context.connection.title} answers with more than {_LARGEST_ANSWER:,} bytes: ask it for less.",
                status=response.status_code,
            )
        return response

    async def _judged(self, response: httpx2.Response, credential: Credential) -> httpx2.Response:
        connection, status = self._context.connection, response.status_code
        if response.is_success:
            return response
        who = credential.account or "this account"
        if status == httpx2.codes.UNAUTHORIZED:
            await self._grants.invalidate(credential)
            self._credential = None
            await self.credential()
            raise UpstreamUnavailable(
                f"{connection.title} refused a sign-in that it had just accepted.", status=status
            )
        if status == httpx2.codes.FORBIDDEN:
            missing = _missing_scopes(response, credential)
            if missing:
                await self._require(missing, needed=missing, refused=credential.grant_id)
                self._credential = None
                raise UpstreamUnavailable(
                    f"{connection.title} was given wider consent meanwhile.", status=status
                )
            raise PermissionDenied(
                f"{connection.title} does not permit this to {who} ({self._context.identity.name}).",
                status=status,
            )
        if status in _NOT_FOUND:
            raise RecordNotFound(
                f"{connection.title} has no such record, or hides it from {who}.", status=status
            )
        if status == httpx2.codes.TOO_MANY_REQUESTS:
            raise RateLimited(
                f"{connection.title} asks to slow down.", retry_after=retry_after(response.headers)
            )
        if response.is_server_error:
            raise UpstreamUnavailable(f"{connection.title} failed ({status}).", status=status)
        raise RequestRejected(f"{connection.title} rejected the request ({status}).", status=status)

    def _intent(
        self, request: httpx2.Request, credential: Credential, record: str | None, key: str | None
    ) -> AuditEvent:
        context = self._context
        return AuditEvent(
            kind="action.intended",
            identity=context.identity,
            run_id=context.run_id,
            chain=context.chain,
            action=context.definition.name,
            attempt=context.attempt,
            connection=context.connection.name,
            mode=context.connection.mode,
            system=context.connection.system,
            method=request.method,
            resource=request.url.raw_path.partition(b"?")[0].decode(),
            record_id=record,
            idempotency_key=key,
            grant_id=credential.grant_id,
            fingerprint=credential.fingerprint,
            account=credential.account,
            scopes=credential.scopes,
        )

    def _next_key(self) -> str:
        self._writes += 1
        return self._context.parked.key if self._writes == 1 else f"{self._context.parked.key}.{self._writes}"

    async def _refuse_to_repeat(self, key: str | None) -> None:
        """Raise OutcomeUnknown if an earlier attempt may have sent this request, as a repetition could act twice."""
        if (
            (self._context.attempt > 1 or self._context.waited)
            and key is not None
            and await self._trail.may_have_acted(self._context.run_id, key)
        ):
            title = self._context.connection.title
            raise OutcomeUnknown(
                f"{title} may have made this change already, in an attempt cut short: look before you repeat it."
            )

    def _no_answer(self, *, idempotent: bool) -> UpstreamFailed:
        title = self._context.connection.title
        if idempotent:
            return UpstreamUnavailable(f"{title} did not answer in time.")
        return OutcomeUnknown(
            f"{title} did not answer, so the change may or may not have been made: look before you repeat it."
        )


async def _received(response: httpx2.Response) -> tuple[httpx2.Response, bool]:
    """Return the response with its body, and whether the body is complete; reading stops at the size limit."""
    body, is_whole = await read(response, _LARGEST_ANSWER)
    # As raw bytes, since a header of a foreign server is not always ASCII.
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in OF_THE_WIRE]
    whole = httpx2.Response(response.status_code, headers=headers, content=body, request=response.request)
    return whole, is_whole


def _joined(base_url: str, path: str) -> str:
    steps = _SEPARATOR.split(unquote(path))
    address = f"{base_url.rstrip('/')}/{path.lstrip('/')}" if path else base_url
    if not {".", ".."}.isdisjoint(steps) or not {"?", "#", "\\"}.isdisjoint(path):
        raise ValueError(
            "The path of this request would lead elsewhere than it reads: check what the action was given."
        )
    try:
        httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise ValueError(
            "The path of this request is too long, or holds characters that no address may hold."
        ) from error
    return address


def _verdict(response: httpx2.Response) -> Verdict:
    if response.is_success:
        return "allowed"
    if response.is_server_error:
        return "failed"
    if response.status_code == httpx2.codes.FORBIDDEN:
        return "insufficient_scope" if _is_scope_challenge(response) else "denied"
    named: dict[int, Verdict] = {
        401: "unauthenticated",
        404: "not_found",
        410: "not_found",
        429: "rate_limited",
    }
    return named.get(response.status_code, "rejected")


def _is_scope_challenge(response: httpx2.Response) -> bool:
    """Return whether a 403 asks for more scope (RFC 6750 section 3.1) and is no refusal by permissions."""
    return 'error="insufficient_scope"' in response.headers.get("WWW-Authenticate", "")


def _missing_scopes(response: httpx2.Response, credential: Credential) -> set[str]:
    if not _is_scope_challenge(response):
        return set()
    named = _CHALLENGE_SCOPE.search(response.headers["WWW-Authenticate"])
    return set(named.group(1).split()) - set(credential.scopes) if named else set()
