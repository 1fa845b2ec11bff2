"""The HTTP client of actions. It signs in as the action's principal, audits each request and follows no redirect."""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import unquote

import httpx2

from engine.actions.definition import ActionDefinition
from engine.audit.trail import SAFE_HTTP_METHODS, AuditEvent, AuditEventKind, AuditTrail, UpstreamVerdict
from engine.authorization.requests import AuthorizationRequests
from engine.connections.connection import Connection
from engine.errors import (
    AddressRefused,
    BylineError,
    ConnectionMisconfigured,
    OutcomeUnknown,
    PermissionDenied,
    RateLimited,
    ReadOnlyViolated,
    RecordNotFound,
    RequestRejected,
    UpstreamFailed,
    UpstreamUnavailable,
)
from engine.grants.grants import Credential, Grants
from engine.identity.model import Identity
from engine.oauth.dpop import attach_token, find_required_nonce
from engine.outgoing.bodies import TRANSFER_HEADERS, read_response_body
from engine.outgoing.client import parse_retry_after
from engine.sign_in.idp_assertions import IdpAssertions
from engine.sign_in.methods import find_token_place
from engine.waiting.waiters import ParkedAction

_IDEMPOTENT_METHODS = frozenset({*SAFE_HTTP_METHODS, "PUT", "DELETE"})
_CHALLENGE_SCOPE_PATTERN = re.compile(r'scope="([^"]*)"')
_NOT_FOUND_STATUSES = frozenset({404, 410})
_MAX_RESPONSE_BYTES: Final = 16_000_000
_TELL_TIMEOUT: Final = httpx2.Timeout(5.0)
_PATH_SEPARATOR = re.compile(r"[/\\]")


@dataclass(frozen=True, slots=True)
class ActionContext:
    """One attempt of one action with its verified identity. After a wait (`waited`), attempts count from one again."""

    identity: Identity
    run_id: str
    chain: tuple[str, ...]
    definition: ActionDefinition
    connection: Connection
    attempt: int
    parked_action: ParkedAction
    has_waited: bool = False


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
        http_client: httpx2.AsyncClient,
        grants: Grants,
        authorization_requests: AuthorizationRequests,
        idp_assertions: IdpAssertions,
        trail: AuditTrail,
    ) -> None:
        self._context = context
        self._http_client = http_client
        self._grants = grants
        self._authorization_requests = authorization_requests
        self._idp_assertions = idp_assertions
        self._may_ask_idp = True
        self._trail = trail
        self._credential: Credential | None = None
        self._has_sent_request = False
        self._write_count = 0

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
        raises nothing. An action that `reads_only` sends no request that may change something: ReadOnlyViolated.
        """
        connection = self._context.connection
        if changes is None:
            changes = method not in SAFE_HTTP_METHODS
        if idempotent is None:
            idempotent = not changes or method in _IDEMPOTENT_METHODS or connection.idempotency_keys
        if record is not None and not record.isprintable():
            raise ValueError(
                "The name of the record that this action touches holds characters that cannot be shown."
            )
        request_url = _join_url(self.address, path)
        if changes:
            await self._require_may_change(method, request_url, record)
        idempotency_key = self._make_idempotency_key() if changes else None
        if not idempotent:
            await self._require_not_sent_before(idempotency_key)
        http_request = self._http_client.build_request(
            method,
            request_url,
            params=params,
            json=json,
            data=data,
            headers={**(headers or {}), **({"Idempotency-Key": idempotency_key} if idempotency_key else {})},
        )
        if self._has_sent_request:
            # The credential was checked before the action began. Later requests have to notice a revocation since then.
            self._credential = None
        self._has_sent_request = True
        credential = await self.credential()
        send_request = partial(
            self._send_audited,
            http_request,
            record_name=record,
            read_record_name=created,
            idempotency_key=idempotency_key,
            is_idempotent=idempotent,
        )
        response = await send_request(credential)
        dpop_nonce = None if credential.proof_key is None else find_required_nonce(response)
        if dpop_nonce is not None:
            response = await send_request(credential, dpop_nonce=dpop_nonce)
        if response.status_code == httpx2.codes.UNAUTHORIZED:
            credential = await self._replace_credential(credential)
            response = await send_request(credential, dpop_nonce=dpop_nonce)
        return (
            response if response.status_code in expected else await self._check_response(response, credential)
        )

    async def tell(
        self,
        method: str,
        path: str,
        *,
        changes: bool | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a best-effort request: one attempt within seconds, whose errors are ignored.

        It asks nobody to sign in. The audit trail records the result. `changes` is as for `request`.
        """
        with suppress(BylineError):
            credential = await self._find_credential()
            if credential is None:
                return
            request_url = _join_url(self.address, path)
            if changes is None:
                changes = method not in SAFE_HTTP_METHODS
            if changes:
                await self._require_may_change(method, request_url)
            http_request = self._http_client.build_request(
                method, request_url, json=json, headers=headers, timeout=_TELL_TIMEOUT
            )
            await self._send_audited(http_request, credential, is_idempotent=True)

    async def credential(self) -> Credential:
        """Return the credential of this action; raises AuthorizationRequired if the person has to grant it first."""
        while self._credential is None:
            context = self._context
            connection, identity, required_scopes = (
                context.connection,
                context.identity,
                context.definition.scopes,
            )
            stored_credential = await self._find_credential()
            missing_scopes = set(required_scopes) - set(
                () if stored_credential is None else stored_credential.scopes
            )
            if stored_credential is not None and not missing_scopes:
                if await self._grants.pin_account(
                    connection, identity.principal_id, context.run_id, stored_credential
                ):
                    self._credential = stored_credential
            elif await self._obtain_idp_grant((*connection.scopes, *required_scopes)):
                continue
            elif stored_credential is None:
                await self._require_authorization(
                    (*connection.scopes, *required_scopes),
                    required_scopes=required_scopes,
                    refused_grant_id=None,
                )
            else:
                await self._require_authorization(
                    missing_scopes,
                    required_scopes=missing_scopes,
                    refused_grant_id=stored_credential.grant_id,
                )
        return self._credential

    async def _require_may_change(
        self, method: str, request_url: str, record_name: str | None = None
    ) -> None:
        """Raise ReadOnlyViolated, with a line in the trail, if the action is declared to read only."""
        action_definition = self._context.definition
        if not action_definition.reads_only:
            return
        error = ReadOnlyViolated(
            f"Action '{action_definition.name}' says reads_only=True, and its {method} may change something, so it was "
            "not sent: say changes=False of a request that changes nothing, or leave reads_only out."
        )
        await self._trail.append_event(
            replace(
                self._build_action_event("action.refused", method, httpx2.URL(request_url), record_name),
                error=error.code,
                message=str(error),
            )
        )
        raise error

    async def _find_credential(self) -> Credential | None:
        """Return the stored credential, whether or not its scopes suffice; None if there is none."""
        context = self._context
        return await self._grants.find_credential(
            context.connection,
            context.identity.principal_id,
            tool_name=context.identity.tool_name,
            run_id=context.run_id,
        )

    async def _obtain_idp_grant(self, scopes: tuple[str, ...]) -> bool:
        """Return whether the person's identity provider just granted the scopes; it is asked once per attempt."""
        if not self._may_ask_idp:
            return False
        self._may_ask_idp = False
        context = self._context
        return await self._idp_assertions.obtain_asserted_grant(
            context.connection,
            context.identity.principal_id,
            scopes,
            tool_name=context.identity.tool_name,
            run_id=context.run_id,
        )

    async def _replace_credential(self, refused_credential: Credential) -> Credential:
        connection, principal_id = self._context.connection, self._context.identity.principal_id
        self._credential = await self._grants.renew_credential(connection, principal_id, refused_credential)
        return await self.credential()

    async def _require_authorization(
        self,
        requested_scopes: Collection[str],
        *,
        required_scopes: Collection[str],
        refused_grant_id: str | None,
    ) -> None:
        context = self._context
        if context.connection.mode == "shared":
            missing_scopes = " ".join(sorted(requested_scopes))
            raise PermissionDenied(
                f"The shared account of '{context.connection.name}' lacks what this action needs: {missing_scopes}."
            )
        authorization_required = await self._authorization_requests.require_authorization(
            context.identity,
            context.connection,
            set(requested_scopes),
            context.parked_action,
            run_id=context.run_id,
            needed_scopes=required_scopes,
            refused_grant_id=refused_grant_id,
        )
        if authorization_required is not None:
            raise authorization_required

    async def _send_audited(
        self,
        http_request: httpx2.Request,
        credential: Credential,
        *,
        is_idempotent: bool,
        record_name: str | None = None,
        read_record_name: Callable[[httpx2.Response], str] | None = None,
        idempotency_key: str | None = None,
        dpop_nonce: str | None = None,
    ) -> httpx2.Response:
        token_place = find_token_place(self._context.connection)
        attach_token(
            http_request,
            credential.access_token,
            credential.proof_key,
            nonce=dpop_nonce,
            token_place=token_place,
        )
        intent_event = self._build_intent_event(http_request, credential, record_name, idempotency_key)
        intent_seq = await self._trail.append_event(intent_event)
        ended_event = replace(intent_event, kind="action.ended", intent=intent_seq)
        try:
            response, is_complete = await _read_response(
                await self._http_client.send(http_request, stream=True)
            )
        except AddressRefused as error:
            await self._trail.append_event(replace(ended_event, verdict="unreachable", error=error.code))
            raise ConnectionMisconfigured(
                f"Connection '{self._context.connection.name}' is not called: {error}"
            ) from None
        except (UpstreamUnavailable, httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            await self._trail.append_event(
                replace(ended_event, verdict="unreachable", error=type(error).__name__)
            )
            raise UpstreamUnavailable(f"{self._context.connection.title} cannot be reached.") from None
        except httpx2.HTTPError as error:
            await self._trail.append_event(
                replace(ended_event, verdict="no_answer", error=type(error).__name__)
            )
            raise self._build_no_answer_error(is_idempotent=is_idempotent) from None
        ended_event = replace(ended_event, status=response.status_code, verdict=_classify_response(response))
        try:
            if read_record_name is not None and response.is_success and is_complete:
                ended_event = replace(ended_event, record_id=str(read_record_name(response)))
        finally:
            await self._trail.append_event(
                ended_event if is_complete else replace(ended_event, error="answer_too_large")
            )
        if not is_complete:
            raise RequestRejected(
                f"{self._context.connection.title} answers with more than "
                f"{_MAX_RESPONSE_BYTES:,} bytes: ask it for less.",
                status_code=response.status_code,
            )
        return response

    async def _check_response(self, response: httpx2.Response, credential: Credential) -> httpx2.Response:
        connection, status_code = self._context.connection, response.status_code
        if response.is_success:
            return response
        account_name = credential.account or "this account"
        if status_code == httpx2.codes.UNAUTHORIZED:
            await self._grants.lapse_grant(credential)
            self._credential = None
            await self.credential()
            raise UpstreamUnavailable(
                f"{connection.title} refused a sign-in that it had just accepted.", status_code=status_code
            )
        if status_code == httpx2.codes.FORBIDDEN:
            missing_scopes = _find_missing_scopes(response, credential)
            if missing_scopes:
                await self._require_authorization(
                    missing_scopes, required_scopes=missing_scopes, refused_grant_id=credential.grant_id
                )
                self._credential = None
                raise UpstreamUnavailable(
                    f"{connection.title} was given wider consent meanwhile.", status_code=status_code
                )
            raise PermissionDenied(
                f"{connection.title} does not permit this to {account_name} ({self._context.identity.name}).",
                status_code=status_code,
            )
        if status_code in _NOT_FOUND_STATUSES:
            raise RecordNotFound(
                f"{connection.title} has no such record, or hides it from {account_name}.",
                status_code=status_code,
            )
        if status_code == httpx2.codes.TOO_MANY_REQUESTS:
            raise RateLimited(
                f"{connection.title} asks to slow down.", retry_after=parse_retry_after(response.headers)
            )
        if response.is_server_error:
            raise UpstreamUnavailable(f"{connection.title} failed ({status_code}).", status_code=status_code)
        raise RequestRejected(
            f"{connection.title} rejected the request ({status_code}).", status_code=status_code
        )

    def _build_intent_event(
        self,
        http_request: httpx2.Request,
        credential: Credential,
        record_name: str | None,
        idempotency_key: str | None,
    ) -> AuditEvent:
        return replace(
            self._build_action_event("action.intended", http_request.method, http_request.url, record_name),
            idempotency_key=idempotency_key,
            grant_id=credential.grant_id,
            fingerprint=credential.fingerprint,
            account=credential.account,
            scopes=credential.scopes,
        )

    def _build_action_event(
        self, event_kind: AuditEventKind, method: str, request_url: httpx2.URL, record_name: str | None
    ) -> AuditEvent:
        context = self._context
        return AuditEvent(
            kind=event_kind,
            identity=context.identity,
            run_id=context.run_id,
            chain=context.chain,
            action=context.definition.name,
            attempt=context.attempt,
            connection=context.connection.name,
            mode=context.connection.mode,
            system=context.connection.system,
            method=method,
            resource=request_url.raw_path.partition(b"?")[0].decode(),
            record_id=record_name,
        )

    def _make_idempotency_key(self) -> str:
        self._write_count += 1
        return (
            self._context.parked_action.action_key
            if self._write_count == 1
            else f"{self._context.parked_action.action_key}.{self._write_count}"
        )

    async def _require_not_sent_before(self, idempotency_key: str | None) -> None:
        """Raise OutcomeUnknown if an earlier attempt may have sent this request, as a repetition could act twice."""
        if (
            (self._context.attempt > 1 or self._context.has_waited)
            and idempotency_key is not None
            and await self._trail.may_have_acted(self._context.run_id, idempotency_key)
        ):
            connection_title = self._context.connection.title
            raise OutcomeUnknown(
                f"{connection_title} may have made this change already, in an attempt cut "
                "short: look before you repeat it."
            )

    def _build_no_answer_error(self, *, is_idempotent: bool) -> UpstreamFailed:
        connection_title = self._context.connection.title
        if is_idempotent:
            return UpstreamUnavailable(f"{connection_title} did not answer in time.")
        return OutcomeUnknown(
            f"{connection_title} did not answer, so the change may or may not have been made: "
            "look before you repeat it."
        )


async def _read_response(response: httpx2.Response) -> tuple[httpx2.Response, bool]:
    """Return the response with its body, and whether the body is complete; reading stops at the size limit."""
    response_body, is_complete = await read_response_body(response, _MAX_RESPONSE_BYTES)
    # As raw bytes, since a header of a foreign server is not always ASCII.
    response_headers = [
        (header_name, header_value)
        for header_name, header_value in response.headers.raw
        if header_name.lower() not in TRANSFER_HEADERS
    ]
    complete_response = httpx2.Response(
        response.status_code, headers=response_headers, content=response_body, request=response.request
    )
    return complete_response, is_complete


def _join_url(base_url: str, url_path: str) -> str:
    path_segments = _PATH_SEPARATOR.split(unquote(url_path))
    joined_url = f"{base_url.rstrip('/')}/{url_path.lstrip('/')}" if url_path else base_url
    if not {".", ".."}.isdisjoint(path_segments) or not {"?", "#", "\\"}.isdisjoint(url_path):
        raise ValueError(
            "The path of this request would lead elsewhere than it reads: check what the action was given."
        )
    try:
        httpx2.URL(joined_url)
    except httpx2.InvalidURL as error:
        raise ValueError(
            "The path of this request is too long, or holds characters that no address may hold."
        ) from error
    return joined_url


def _classify_response(response: httpx2.Response) -> UpstreamVerdict:
    if response.is_success:
        return "allowed"
    if response.is_server_error:
        return "failed"
    if response.status_code == httpx2.codes.FORBIDDEN:
        return "insufficient_scope" if _is_scope_challenge(response) else "denied"
    verdict_by_status: dict[int, UpstreamVerdict] = {
        401: "unauthenticated",
        404: "not_found",
        410: "not_found",
        429: "rate_limited",
    }
    return verdict_by_status.get(response.status_code, "rejected")


def _is_scope_challenge(response: httpx2.Response) -> bool:
    """Return whether a 403 asks for more scope (RFC 6750 section 3.1) and is no refusal by permissions."""
    return 'error="insufficient_scope"' in response.headers.get("WWW-Authenticate", "")


def _find_missing_scopes(response: httpx2.Response, credential: Credential) -> set[str]:
    if not _is_scope_challenge(response):
        return set()
    scope_match = _CHALLENGE_SCOPE_PATTERN.search(response.headers["WWW-Authenticate"])
    return set(scope_match.group(1).split()) - set(credential.scopes) if scope_match else set()
