"""Obtains grants without asking the person, by assertions of the identity provider that they signed in at.

The ways are token exchange (RFC 8693) and identity assertions (ID-JAG). No other principal's grant is ever used.
"""

from collections.abc import Collection

from engine.audit.trail import AuditEvent, Trail
from engine.authorization.answering import Answering
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.connection import VOUCHED, Connection
from engine.connections.grants import Grants
from engine.connections.oauth import TokenRefused
from engine.connections.sign_in.methods import SignIns
from engine.connections.tokens import Tokens
from engine.db.database import Database
from engine.identity.model import Principal
from engine.identity.principals import Principals


class Vouching:
    """Requests tokens by assertion. If that does not work, the person is shown the ordinary link.

    The identity provider asserts one account of a person on a connection. That account is never used instead of
    another account of theirs.
    """

    def __init__(
        self,
        database: Database,
        principals: Principals,
        grants: Grants,
        requests: AuthorizationRequests,
        answering: Answering,
        trail: Trail,
        sign_ins: SignIns,
    ) -> None:
        self._database = database
        self._principals = principals
        self._grants = grants
        self._requests = requests
        self._answering = answering
        self._trail = trail
        self._sign_ins = sign_ins

    async def vouched(
        self,
        connection: Connection,
        principal_id: str,
        scopes: Collection[str],
        *,
        tool: str = "",
        run_id: str = "",
    ) -> bool:
        """Obtain a grant for an action of this run by assertion, and return whether one was stored.

        The asserted account must be the one that the action uses or, if none was ever connected or chosen, may be any.
        An account that its owner revoked here is not obtained again. Raises UpstreamUnavailable if the identity
        provider or the upstream cannot be reached now.
        """
        principal = await self._of_a_company(connection, principal_id)
        if principal is None:
            return False
        async with self._database.reading() as session:
            standing = await self._grants.standing(
                session, connection, principal_id, tool=tool, run_id=run_id
            )
        account, given_up = standing.account, await self._grants.given_up(connection, principal_id)
        if account in given_up or (account is None and (standing.grants or given_up)):
            return False
        held = () if standing.grant is None else standing.grant.scopes
        tokens = await self._tokens(connection, principal, (*held, *scopes), run_id)
        if tokens is None or account not in {None, tokens.account}:
            return False
        return await self._answering.grant(
            None, connection, principal, tokens, tokens.account, run_id=run_id or None
        )

    async def answer(self, request: AuthorizationRequest, connection: Connection, *, tool: str = "") -> bool:
        """Answer a request by assertion after its person agreed, and return whether that worked.

        Nothing changes if the identity provider asserts another account than the one that is asked for, one that is
        connected already, or fewer scopes. `tool_name` is the tool that shall use the account, and is empty if every
        tool shall.
        """
        principal = await self._of_a_company(connection, request.principal_id)
        if principal is None:
            return False
        tokens = await self._tokens(
            connection, principal, await self._requests.scopes_to_ask(request, connection)
        )
        if tokens is None or not set(request.scopes) <= set(tokens.scopes):
            return False
        if request.account is None:
            connected = await self._grants.usable(principal.id, connection.name)
            is_wanted = tokens.account not in {grant.account for grant in connected}
        else:
            is_wanted = tokens.account == request.account
        return is_wanted and await self._answering.grant(
            request, connection, principal, tokens, tokens.account, tool=tool
        )

    async def _of_a_company(self, connection: Connection, principal_id: str) -> Principal | None:
        """Return the principal if they are active and the connection signs in by assertion, else None."""
        if connection.sign_in not in VOUCHED:
            return None
        principal = await self._principals.get(principal_id)
        return principal if principal is not None and principal.active else None

    async def _tokens(
        self, connection: Connection, principal: Principal, scopes: Collection[str], run_id: str = ""
    ) -> Tokens | None:
        """Request tokens by assertion, and return None if there are none.

        A refusal is recorded in the audit trail.
        """
        try:
            return await self._sign_ins.of(connection).unasked(principal.id, tuple(dict.fromkeys(scopes)))
        except TokenRefused as error:
            refused = AuditEvent(
                kind="authorization.refused",
                principal=principal,
                run_id=run_id or None,
                connection=connection.name,
                error=error.code,
                message=f"The company does not vouch for {principal.name} on '{connection.name}' ({error.error}).",
            )
            await self._trail.append(refused)
            return None
