"""Stores the API key or password that a person typed on a page of Byline to answer an authorization request."""

from engine.audit.trail import AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.delegation import Delegation, acting_administrator
from engine.authorization.refusals import build_mismatch_error, build_refusal_event
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.errors import AuthorizationExpired, AuthorizationRefused
from engine.identity.model import Principal
from engine.sign_in.methods import SignInMethods


class TypedKeys:
    """Checks typed keys at the upstream and records them as grants."""

    def __init__(
        self,
        catalogue: ConnectionCatalogue,
        authorization_requests: AuthorizationRequests,
        answer_recorder: AnswerRecorder,
        delegation: Delegation,
        trail: AuditTrail,
        sign_in_methods: SignInMethods,
    ) -> None:
        self._catalogue = catalogue
        self._authorization_requests = authorization_requests
        self._answer_recorder = answer_recorder
        self._delegation = delegation
        self._trail = trail
        self._sign_in_methods = sign_in_methods

    async def submit_key(
        self,
        authorization_request: AuthorizationRequest,
        person: Principal,
        *,
        typed_secret: str,
        username: str = "",
        tool_name: str = "",
    ) -> None:
        """Check the key, store it as a grant and enqueue the waiters' wake-ups.

        `person` is whoever was asked, or an administrator who answers for a service. `tool_name` is the tool that
        shall use the account, and is empty if every tool shall. Raises KeyRefused if the key does not work,
        AccountMismatched if it belongs to another account than is asked for, AuthorizationRefused if this person may
        not answer, and AuthorizationExpired if nobody waits any more. Refusals are recorded in the audit trail.
        """
        try:
            await self._submit_key(authorization_request, person, typed_secret, username, tool_name)
        except AuthorizationRefused as error:
            await self._trail.append_event(build_refusal_event(person, error, authorization_request))
            raise

    async def _submit_key(
        self,
        authorization_request: AuthorizationRequest,
        person: Principal,
        typed_secret: str,
        username: str,
        tool_name: str,
    ) -> None:
        asked_principal = await self._delegation.find_asked_principal(
            authorization_request.principal_id, person
        )
        if asked_principal is None:
            raise AuthorizationRefused("This key was typed by somebody who was not asked for it.")
        if not authorization_request.is_open:
            raise AuthorizationExpired(
                "Nobody waits for this key any more. Call the tool again to get a new link."
            )
        connection = await self._catalogue.get_connection(authorization_request.connection_name)
        scopes = await self._authorization_requests.collect_requested_scopes(
            authorization_request, connection
        )
        oauth_tokens = await self._sign_in_methods.create_typed_key_method(connection).accept_typed_key(
            typed_secret, username, scopes
        )
        is_answered = await self._answer_recorder.record_grant(
            authorization_request,
            connection,
            asked_principal,
            oauth_tokens,
            oauth_tokens.account,
            tool_name=tool_name,
            administrator=acting_administrator(asked_principal, person),
        )
        if not is_answered:
            raise build_mismatch_error(authorization_request, connection, oauth_tokens.account)
