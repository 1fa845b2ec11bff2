"""Obtains grants without asking the person, by assertions of the identity provider that they signed in at.

The ways are token exchange (RFC 8693) and identity assertions (ID-JAG). No other principal's grant is ever used.
"""

from collections.abc import Collection

from engine.audit.trail import AuditEvent, AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.connection import Connection
from engine.db.database import Database
from engine.grants.grants import Grants
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.oauth.client import TokenRefused
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.methods import SignInMethods, find_method_class


class IdpAssertions:
    """Requests tokens by assertion. If that does not work, the person is shown the ordinary link.

    The identity provider asserts one account of a person on a connection. That account is never used instead of
    another account of theirs.
    """

    def __init__(
        self,
        database: Database,
        principals: Principals,
        grants: Grants,
        authorization_requests: AuthorizationRequests,
        answer_recorder: AnswerRecorder,
        trail: AuditTrail,
        sign_in_methods: SignInMethods,
    ) -> None:
        self._database = database
        self._principals = principals
        self._grants = grants
        self._authorization_requests = authorization_requests
        self._answer_recorder = answer_recorder
        self._trail = trail
        self._sign_in_methods = sign_in_methods

    async def obtain_asserted_grant(
        self,
        connection: Connection,
        principal_id: str,
        scopes: Collection[str],
        *,
        tool_name: str = "",
        run_id: str = "",
    ) -> bool:
        """Obtain a grant for an action of this run by assertion, and return whether one was stored.

        The asserted account must be the one that the action uses or, if none was ever connected or chosen, may be any.
        An account that its owner revoked here is not obtained again. Raises UpstreamUnavailable if the identity
        provider or the upstream cannot be reached now.
        """
        principal = await self._find_assertable_principal(connection, principal_id)
        if principal is None:
            return False
        async with self._database.open_read_session() as db_session:
            grant_situation = await self._grants.find_situation(
                db_session, connection, principal_id, tool_name=tool_name, run_id=run_id
            )
        account, revoked_accounts = (
            grant_situation.selected_account,
            await self._grants.list_accounts_revoked_by_owner(connection, principal_id),
        )
        if account in revoked_accounts or (account is None and (grant_situation.grants or revoked_accounts)):
            return False
        granted_scopes = (
            () if grant_situation.selected_grant is None else grant_situation.selected_grant.scopes
        )
        oauth_tokens = await self._request_tokens(connection, principal, (*granted_scopes, *scopes), run_id)
        if oauth_tokens is None or account not in {None, oauth_tokens.account}:
            return False
        return await self._answer_recorder.record_grant(
            None, connection, principal, oauth_tokens, oauth_tokens.account, run_id=run_id or None
        )

    async def answer_request(
        self, authorization_request: AuthorizationRequest, connection: Connection, *, tool_name: str = ""
    ) -> bool:
        """Answer a request by assertion after its person agreed, and return whether that worked.

        Nothing changes if the identity provider asserts another account than the one that is asked for, one that is
        connected already, or fewer scopes. `tool_name` is the tool that shall use the account, and is empty if every
        tool shall.
        """
        principal = await self._find_assertable_principal(connection, authorization_request.principal_id)
        if principal is None:
            return False
        oauth_tokens = await self._request_tokens(
            connection,
            principal,
            await self._authorization_requests.collect_requested_scopes(authorization_request, connection),
        )
        if oauth_tokens is None or not set(authorization_request.scopes) <= set(oauth_tokens.scopes):
            return False
        if authorization_request.account is None:
            active_grants = await self._grants.list_active_grants(principal.id, connection.name)
            is_wanted = oauth_tokens.account not in {active_grant.account for active_grant in active_grants}
        else:
            is_wanted = oauth_tokens.account == authorization_request.account
        return is_wanted and await self._answer_recorder.record_grant(
            authorization_request,
            connection,
            principal,
            oauth_tokens,
            oauth_tokens.account,
            tool_name=tool_name,
        )

    async def _find_assertable_principal(self, connection: Connection, principal_id: str) -> Principal | None:
        """Return the principal if they are active and the connection signs in by assertion, else None."""
        if not find_method_class(connection).is_asserted_by_idp:
            return None
        principal = await self._principals.find_principal(principal_id)
        return principal if principal is not None and principal.is_active else None

    async def _request_tokens(
        self, connection: Connection, principal: Principal, scopes: Collection[str], run_id: str = ""
    ) -> UpstreamTokens | None:
        """Request tokens by assertion, and return None if there are none.

        A refusal is recorded in the audit trail.
        """
        try:
            return await self._sign_in_methods.create_method(connection).request_tokens_without_person(
                principal.id, tuple(dict.fromkeys(scopes))
            )
        except TokenRefused as error:
            refusal_event = AuditEvent(
                kind="authorization.refused",
                principal=principal,
                run_id=run_id or None,
                connection=connection.name,
                error=error.code,
                message=f"The company does not vouch for {principal.name} on '{connection.name}' ({error.error_code}).",
            )
            await self._trail.append_event(refusal_event)
            return None
