"""Decides whether an action may run: checks its identity's signature, its binding to the run, and the principal."""

from engine.errors import IdentityForged, IdentityMisplaced, IdentityMissing, PrincipalInactive
from engine.identity.model import Identity
from engine.identity.runs import RootRun, RunRecords
from engine.identity.signing import SigningKeys
from engine.wire import IDENTITY_TYPE


class IdentityVerifier:
    """Verifies the identity header of one action against the root run that the Temporal server names."""

    def __init__(self, keys: SigningKeys, runs: RunRecords) -> None:
        self._keys = keys
        self._runs = runs

    async def verify(self, token: str | None, root: RootRun) -> Identity:
        """Return the verified identity that may act in this root run.

        Raises IdentityMissing, IdentityForged, IdentityMisplaced or PrincipalInactive.
        """
        if token is None:
            raise IdentityMissing(
                f"Run '{root.workflow_id}' carries no identity. Start tools through the gateway, which signs one; "
                "a workflow started directly in Temporal has no name to act under."
            )
        identity = _identity(await self._keys.verify(token, IDENTITY_TYPE))
        if identity.root != root.workflow_id:
            raise IdentityMisplaced(
                f"The identity was made for run '{identity.root}', not for '{root.workflow_id}'."
            )
        standing = await self._runs.standing(root.workflow_id, identity.principal_id)
        if not standing.principal_active:
            raise PrincipalInactive(identity.name)
        bound_to = standing.first_run_id
        if standing.registered and bound_to is None:
            bound_to = await self._runs.bind(root)
        if bound_to != root.first_run_id:
            raise IdentityMisplaced(
                f"The identity of run '{root.workflow_id}' belongs to an earlier or unregistered execution of it."
            )
        return identity


def _identity(claims: dict[str, object]) -> Identity:
    try:
        return Identity.from_claims(claims)
    except (KeyError, TypeError) as error:
        raise IdentityForged("The identity's claims are not complete.") from error
