"""Signs people in to connections: begins a step, takes what it brings back, and records the grant that comes of it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from engine.audit.trail import AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.delegation import Delegation, acting_administrator
from engine.authorization.refusals import build_mismatch_error, build_refusal_event
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import Connection
from engine.errors import AuthorizationExpired, AuthorizationRefused, BylineError, ConnectionMisconfigured
from engine.grants.grants import Grants
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.sign_in.idp_assertions import IdpAssertions
from engine.sign_in.method import (
    SignInAnswer,
    SignInDeclined,
    SignInRecords,
    SignInResult,
    SignInStart,
)
from engine.sign_in.methods import (
    SIGN_IN_METHODS,
    SignInMethods,
    find_method_class,
    list_personal_methods,
)
from engine.sign_in.steps import CodeStep, RedirectStep, SignInStep, StepKind


class SignIns:
    """The sign-ins of people, whatever the way. Each answers an authorization request."""

    def __init__(
        self,
        catalogue: ConnectionCatalogue,
        principals: Principals,
        delegation: Delegation,
        grants: Grants,
        authorization_requests: AuthorizationRequests,
        answer_recorder: AnswerRecorder,
        trail: AuditTrail,
        sign_in_methods: SignInMethods,
        idp_assertions: IdpAssertions,
        records: SignInRecords,
    ) -> None:
        self._catalogue = catalogue
        self._principals = principals
        self._delegation = delegation
        self._grants = grants
        self._authorization_requests = authorization_requests
        self._answer_recorder = answer_recorder
        self._trail = trail
        self._sign_in_methods = sign_in_methods
        self._idp_assertions = idp_assertions
        self._records = records

    async def list_offered_steps(self, connection: Connection) -> frozenset[StepKind]:
        """Return the kinds of steps by which a person can sign in to this connection.

        Of a provider that cannot be asked, the step of the declared way is offered alone: the person sees what is wrong
        when they take it.
        """
        offered_kinds: set[StepKind] = set()
        for method_name in list_personal_methods(connection):
            step_kind = SIGN_IN_METHODS[method_name].step_kind
            if step_kind is None:
                continue
            try:
                personal_method = self._sign_in_methods.create_personal_method(connection, step_kind)
                is_offered = await personal_method.is_offered()
            except BylineError:
                is_offered = method_name == connection.sign_in
            if is_offered:
                offered_kinds.add(step_kind)
        return frozenset(offered_kinds)

    async def begin_sign_in(
        self,
        authorization_request: AuthorizationRequest,
        step_kind: StepKind,
        *,
        browser_session: str = "",
        tool_name: str = "",
    ) -> SignInStep | None:
        """Return the step that the person takes, or None if the identity provider answered the request instead.

        A step-up asks for the scopes that are already granted and for the missing ones. `tool_name` is the tool that
        shall use the account, and is empty if every tool shall. Raises AuthorizationRefused if there is no such step
        on this connection. Raises ConnectionMisconfigured if its declaration does not work, and records that in the
        audit trail.
        """
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        if step_kind == "redirect" and await self._idp_assertions.answer_request(
            authorization_request, connection, tool_name=tool_name
        ):
            return None
        try:
            personal_method = self._sign_in_methods.create_personal_method(connection, step_kind)
            sign_in_start = await self._build_start(
                authorization_request, connection, browser_session, tool_name
            )
            return await personal_method.begin(sign_in_start, self._records)
        except ConnectionMisconfigured as error:
            asked_principal = await self._principals.find_principal(authorization_request.principal_id)
            if asked_principal is not None:
                await self._trail.append_event(
                    build_refusal_event(asked_principal, error, authorization_request)
                )
            raise

    async def begin_redirect(
        self, authorization_request: AuthorizationRequest, browser_session: str, *, tool_name: str = ""
    ) -> RedirectStep | None:
        """Return the redirect that signs the person in, or None if they have to see the authorization request first.

        They have to where they type something, and where the identity provider would answer the request as soon as
        they agree. Raises AuthorizationRefused if the provider has no page, and ConnectionMisconfigured.
        """
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        method_class = find_method_class(connection)
        if method_class.step_kind != "redirect" or method_class.is_asserted_by_idp:
            return None
        sign_in_step = await self.begin_sign_in(
            authorization_request, "redirect", browser_session=browser_session, tool_name=tool_name
        )
        return sign_in_step if isinstance(sign_in_step, RedirectStep) else None

    async def finish_redirect(
        self, callback_parameters: Mapping[str, str], person: Principal, browser_session: str
    ) -> AuthorizationRequest:
        """Handle the provider's callback: store the grant or record the denial, and enqueue the waiters' wake-ups.

        `person` is signed in to this browser: whoever was asked, or an administrator who answers for a service. Raises
        AuthorizationRefused for a callback that is malformed, replayed, late, from another issuer (RFC 9207), or from
        another browser or person than began the sign-in. Raises AccountMismatched if the sign-in was to another account
        than is asked for, and AuthorizationExpired if nobody waits any more. Refusals are recorded in the audit trail.
        """
        async with self._record_refusals(person, None):
            attempt = await self._records.authorization_attempts.claim_attempt(
                callback_parameters.get("state", ""), person, browser_session
            )
            authorization_request = await self._authorization_requests.find_request(attempt.request_id)
            if authorization_request is None:
                raise AuthorizationRefused(
                    "This sign-in belongs to a question that is gone. Call the tool again to get a new link."
                )
        async with self._record_refusals(person, authorization_request):
            await self._finish_sign_in(
                authorization_request,
                "redirect",
                attempt.asked_principal,
                person,
                callback_parameters,
                attempt_secret=attempt.attempt_secret,
                tool_name=attempt.tool_name,
            )
        return authorization_request

    async def finish_form(
        self,
        authorization_request: AuthorizationRequest,
        person: Principal,
        form_fields: Mapping[str, str],
        *,
        tool_name: str = "",
    ) -> None:
        """Take what a person typed, store it as a grant and enqueue the waiters' wake-ups.

        `person` is whoever was asked, or an administrator who answers for a service. `tool_name` is the tool that
        shall use the account, and is empty if every tool shall. Raises KeyRefused if a key does not work,
        AccountMismatched if it belongs to another account than is asked for, AuthorizationRefused if this person may
        not answer, and AuthorizationExpired if nobody waits any more. Refusals are recorded in the audit trail.
        """
        async with self._record_refusals(person, authorization_request):
            asked_principal = await self._delegation.find_asked_principal(
                authorization_request.principal_id, person
            )
            if asked_principal is None:
                raise AuthorizationRefused("This key was typed by somebody who was not asked for it.")
            if not authorization_request.is_open:
                raise AuthorizationExpired(
                    "Nobody waits for this key any more. Call the tool again to get a new link."
                )
            await self._finish_sign_in(
                authorization_request, "form", asked_principal, person, form_fields, tool_name=tool_name
            )

    async def poll_code(
        self, authorization_request: AuthorizationRequest, person: Principal
    ) -> CodeStep | None:
        """Return the code of a request if nobody has confirmed it yet, and store the grant if somebody has.

        Returns None if there is no code, if this person may not answer the request, or if the code was answered just
        now. Raises AuthorizationExpired if the code expired, AuthorizationRefused if the provider withdrew it, and
        AccountMismatched if it was confirmed with another account than is asked for. Refusals are recorded in the
        audit trail.
        """
        asked_principal = await self._delegation.find_asked_principal(
            authorization_request.principal_id, person
        )
        if asked_principal is None or not authorization_request.is_open:
            return None
        if await self._records.pending_device_codes.find_code(authorization_request.id) is None:
            return None
        async with self._record_refusals(person, authorization_request):
            sign_in_step = await self._finish_sign_in(
                authorization_request, "code", asked_principal, person, {}
            )
        return sign_in_step if isinstance(sign_in_step, CodeStep) else None

    async def _build_start(
        self,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        browser_session: str,
        tool_name: str,
    ) -> SignInStart:
        is_additional_account = authorization_request.account is None and bool(
            await self._grants.list_active_grants(authorization_request.principal_id, connection.name)
        )
        return SignInStart(
            request_id=authorization_request.id,
            principal_id=authorization_request.principal_id,
            scopes=await self._authorization_requests.collect_requested_scopes(
                authorization_request, connection
            ),
            account=authorization_request.account or "",
            is_additional_account=is_additional_account,
            browser_session=browser_session,
            tool_name=tool_name,
        )

    async def _finish_sign_in(
        self,
        authorization_request: AuthorizationRequest,
        step_kind: StepKind,
        asked_principal: Principal,
        person: Principal,
        answer_fields: Mapping[str, str],
        *,
        attempt_secret: str = "",
        tool_name: str = "",
    ) -> SignInStep | None:
        """Let the way finish the sign-in, and return the step that the person has still to take, if there is one."""
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        sign_in_answer = SignInAnswer(
            request_id=authorization_request.id,
            scopes=await self._authorization_requests.collect_requested_scopes(
                authorization_request, connection
            ),
            fields=answer_fields,
            attempt_secret=attempt_secret,
            tool_name=tool_name,
            is_awaited=authorization_request.is_open or authorization_request.state == "granted",
        )
        personal_method = self._sign_in_methods.create_personal_method(connection, step_kind)
        sign_in_outcome = await personal_method.finish(sign_in_answer, self._records)
        administrator = acting_administrator(asked_principal, person)
        match sign_in_outcome:
            case SignInResult():
                await self._complete_sign_in(
                    authorization_request, connection, asked_principal, administrator, sign_in_outcome
                )
                return None
            case SignInDeclined():
                await self._authorization_requests.deny_request(
                    authorization_request.id, asked_principal, administrator=administrator
                )
                return None
        return sign_in_outcome

    async def _complete_sign_in(
        self,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        asked_principal: Principal,
        administrator: Principal | None,
        sign_in_result: SignInResult,
    ) -> None:
        """Record the grant, which is the ending of every way. Raises AccountMismatched if the account is another."""
        is_answered = await self._answer_recorder.record_grant(
            authorization_request,
            connection,
            asked_principal,
            sign_in_result.tokens,
            sign_in_result.account,
            tool_name=sign_in_result.tool_name,
            administrator=administrator,
        )
        if not is_answered:
            raise build_mismatch_error(authorization_request, connection, sign_in_result.account)

    @asynccontextmanager
    async def _record_refusals(
        self, person: Principal, authorization_request: AuthorizationRequest | None
    ) -> AsyncIterator[None]:
        """Record in the audit trail that the attempt of this person was refused, if the block raises that."""
        try:
            yield
        except (AuthorizationRefused, ConnectionMisconfigured) as error:
            await self._trail.append_event(build_refusal_event(person, error, authorization_request))
            raise
