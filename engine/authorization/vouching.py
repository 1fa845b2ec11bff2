"""Grants that nobody is asked for, since the person's own company vouches for them; it falls back to nobody else's."""

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
    """Tries the way without a question; whoever it does not work for is shown the ordinary link.

    A company vouches for one account of a person on a connection. That account is never used in the place of another.
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
        """Whether an action of this run has a grant to go by now, vouched for by its person's company.

        Only the account that the action uses is come by so or, where none was ever connected or chosen, the one that is
        vouched for; and none that was given up here. Raises UpstreamUnavailable where it cannot be said now.
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
        """Whether the company vouched for what this person is asked for, now that they say that they want it.

        Where it vouches for another account than the one that is asked for, for one that is connected already or for
        less, nothing is changed. `tool` is the one that the account shall be used by, where it is not chosen for all.
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
        """The person to vouch for; None where nobody could, or may."""
        if connection.sign_in not in VOUCHED:
            return None
        principal = await self._principals.get(principal_id)
        return principal if principal is not None and principal.active else None

    async def _tokens(
        self, connection: Connection, principal: Principal, scopes: Collection[str], run_id: str = ""
    ) -> Tokens | None:
        """What the company's word is worth at the upstream; None where there is none, which is in the trail."""
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
