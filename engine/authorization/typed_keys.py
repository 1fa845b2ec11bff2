"""Stores the API key or password that a person typed on a page of Byline to answer an authorization request."""

from engine.audit.trail import Trail
from engine.authorization.answering import Answering
from engine.authorization.refusals import mismatched, refusal
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.authorization.standing_in import StandingIn, stand_in
from engine.connections.catalogue import Catalogue
from engine.connections.sign_in.methods import SignIns
from engine.errors import AuthorizationExpired, AuthorizationRefused
from engine.identity.model import Principal


class TypedKeys:
    """Checks typed keys at the upstream and records them as grants."""

    def __init__(
        self,
        catalogue: Catalogue,
        requests: AuthorizationRequests,
        answering: Answering,
        standing_in: StandingIn,
        trail: Trail,
        sign_ins: SignIns,
    ) -> None:
        self._catalogue = catalogue
        self._requests = requests
        self._answering = answering
        self._standing_in = standing_in
        self._trail = trail
        self._sign_ins = sign_ins

    async def take(
        self,
        request: AuthorizationRequest,
        person: Principal,
        *,
        secret: str,
        username: str = "",
        tool: str = "",
    ) -> None:
        """Check the key, store it as a grant and enqueue the waiters' wake-ups.

        `person` is whoever was asked, or an administrator who answers for a service. `tool_name` is the tool that
        shall use the account, and is empty if every tool shall. Raises KeyRefused if the key does not work,
        AccountMismatched if it belongs to another account than is asked for, AuthorizationRefused if this person may
        not answer, and AuthorizationExpired if nobody waits any more. Refusals are recorded in the audit trail.
        """
        try:
            await self._take(request, person, secret, username, tool)
        except AuthorizationRefused as error:
            await self._trail.append(refusal(person, error, request))
            raise

    async def _take(
        self, request: AuthorizationRequest, person: Principal, secret: str, username: str, tool: str
    ) -> None:
        asked = await self._standing_in.asked(request.principal_id, person)
        if asked is None:
            raise AuthorizationRefused("This key was typed by somebody who was not asked for it.")
        if not request.is_open:
            raise AuthorizationExpired(
                "Nobody waits for this key any more. Call the tool again to get a new link."
            )
        connection = await self._catalogue.get(request.connection)
        scopes = await self._requests.scopes_to_ask(request, connection)
        tokens = await self._sign_ins.typed(connection).typed(secret, username, scopes)
        is_answered = await self._answering.grant(
            request, connection, asked, tokens, tokens.account, tool=tool, by=stand_in(asked, person)
        )
        if not is_answered:
            raise mismatched(request, connection, tokens.account)
