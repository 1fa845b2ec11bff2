"""A request that admission let in: whose it is and what it says. It goes along in the ASGI scope's state."""

from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from gateway.bearer.principal_token import PrincipalToken
from gateway.mcp.transport.messages import JsonRpcMessage

_STATE_KEY: Final = "byline_admitted_request"


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """The verified token of a request, and its parsed message, or None where its method is not POST."""

    token: PrincipalToken
    message: JsonRpcMessage | None

    @property
    def principal_id(self) -> str:
        """The id of the principal whose request it is."""
        return self.token.principal.id


def attach_admitted_request(scope: Scope, admitted_request: AdmittedRequest) -> Scope:
    """Return a copy of the scope that carries the admitted request."""
    return {**scope, "state": {**scope.get("state", {}), _STATE_KEY: admitted_request}}


def find_admitted_request(scope: Scope) -> AdmittedRequest | None:
    """Return the admitted request of a scope, or None where its token was not accepted."""
    admitted_request: AdmittedRequest | None = scope.get("state", {}).get(_STATE_KEY)
    return admitted_request
