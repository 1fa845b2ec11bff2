"""Grants that nobody is asked for, since the person's own company vouches for them; it falls back to nobody else's."""

from engine.audit.trail import AuditEvent, Trail
from engine.authorization.requests import AuthorizationRequests
from engine.connections.catalogue import VOUCHED, Connection
from engine.connections.grants import Grants
from engine.connections.oauth import TokenRefused
from engine.connections.sign_in.methods import SignIns
from engine.identity.principals import Principals


class Vouching:
    """Tries the way without a question; whoever it does not work for is shown the ordinary link."""

    def __init__(
        self,
        principals: Principals,
        grants: Grants,
        requests: AuthorizationRequests,
        trail: Trail,
        sign_ins: SignIns,
    ) -> None:
        self._principals = principals
        self._grants = grants
        self._requests = requests
        self._trail = trail
        self._sign_ins = sign_ins

    async def vouched(
        self,
        connection: Connection,
        principal_id: str,
        scopes: tuple[str, ...],
        *,
        run_id: str | None = None,
        asked_for: bool = False,
    ) -> bool:
        """Whether the person has a grant with these scopes now, vouched for by their company.

        One that was given up here is not come by again unless the person asks for it. Raises UpstreamUnavailable where
        it cannot be said now.
        """
        if connection.sign_in not in VOUCHED:
            return False
        principal = await self._principals.get(principal_id)
        if principal is None or not principal.active:
            return False
        if not asked_for and await self._grants.was_given_up(connection, principal_id):
            return False
        try:
            tokens = await self._sign_ins.of(connection).unasked(principal_id, scopes)
        except TokenRefused as error:
            refused = AuditEvent(
                kind="authorization.refused",
                principal=principal,
                run_id=run_id,
                connection=connection.name,
                error=error.code,
                message=f"The company does not vouch for {principal.name} on '{connection.name}' ({error.error}).",
            )
            await self._trail.append(refused)
            return False
        if tokens is None:
            return False
        await self._requests.grant(None, connection, principal, tokens, tokens.account, run_id=run_id)
        return True
