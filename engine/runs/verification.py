"""Decides whether an action may run: checks its identity's signature, its binding to the run, and the principal."""

from engine.errors import IdentityForged, IdentityMisplaced, IdentityMissing, PrincipalInactive
from engine.identity.claims import VerifiedClaims
from engine.identity.model import Identity
from engine.identity.signing import SigningKeys
from engine.runs.records import RootRun, RunRecords
from engine.wire import IDENTITY_TYPE


class IdentityVerifier:
    """Verifies the identity header of one action against the root run that the Temporal server names."""

    def __init__(self, signing_keys: SigningKeys, run_records: RunRecords) -> None:
        self._signing_keys = signing_keys
        self._run_records = run_records

    async def verify_identity(self, identity_token: str | None, root_run: RootRun) -> Identity:
        """Return the verified identity that may act in this root run.

        Raises IdentityMissing, IdentityForged, IdentityMisplaced or PrincipalInactive.
        """
        if identity_token is None:
            raise IdentityMissing(
                f"Run '{root_run.workflow_id}' carries no identity. Start tools through the gateway, which signs one; "
                "a workflow started directly in Temporal has no name to act under."
            )
        identity = _parse_identity(await self._signing_keys.verify_token(identity_token, IDENTITY_TYPE))
        if identity.run_id != root_run.workflow_id:
            raise IdentityMisplaced(
                f"The identity was made for run '{identity.run_id}', not for '{root_run.workflow_id}'."
            )
        run_binding = await self._run_records.find_binding(root_run.workflow_id, identity.principal_id)
        if not run_binding.is_principal_active:
            raise PrincipalInactive(identity.name)
        bound_run_id = run_binding.first_run_id
        if run_binding.is_registered and bound_run_id is None:
            bound_run_id = await self._run_records.bind_run(root_run)
        if bound_run_id != root_run.first_run_id:
            raise IdentityMisplaced(
                f"The identity of run '{root_run.workflow_id}' belongs to an earlier or unregistered execution of it."
            )
        return identity


def _parse_identity(token_claims: VerifiedClaims) -> Identity:
    try:
        return Identity.from_claims(token_claims)
    except (KeyError, TypeError) as error:
        raise IdentityForged("The identity's claims are not complete.") from error
