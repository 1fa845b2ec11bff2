"""Turns verified claims into the token of an active principal, and records tokens that were tried elsewhere."""

from mcp.server.auth.provider import AccessToken

from engine.audit.attempts import RefusedAttempts
from engine.identity.claims import VerifiedClaims
from engine.identity.model import Actor, ActorKind, Principal
from gateway.authorization_server.claims import CLIENT_NAME_CLAIM


class PrincipalToken(AccessToken):
    """An access token with its principal, the actor that uses it, and the tools it is good for (None for all).

    `in_person` is true where its bearer signed in for it. It is false for API tokens and back ends.
    """

    principal: Principal
    actor: Actor
    tools: frozenset[str] | None = None
    in_person: bool


def to_client_actor(claims: VerifiedClaims, actor_kind: ActorKind) -> Actor:
    """Return the client that an access token was issued to, by its claims."""
    client_id = _read_client_id(claims)
    return Actor(kind=actor_kind, id=client_id, name=str(claims.get(CLIENT_NAME_CLAIM) or client_id))


def accept_token(
    token_text: str,
    claims: VerifiedClaims,
    resource: str,
    principal: Principal | None,
    actor: Actor,
    *,
    is_in_person: bool,
) -> PrincipalToken | None:
    """Return the token of a principal who is an active person; None for anybody else."""
    # Nobody signs in as a service, whatever a token says.
    if principal is None or not principal.is_active or principal.kind != "person":
        return None
    scope_claim = claims.get("scope") or claims.get("scp") or ""
    return PrincipalToken(
        token=token_text,
        client_id=_read_client_id(claims),
        scopes=scope_claim.split()
        if isinstance(scope_claim, str)
        else [str(scope_value) for scope_value in scope_claim],
        expires_at=int(claims["exp"]),
        resource=resource,
        subject=principal.subject,
        claims={"iss": principal.issuer},
        principal=principal,
        actor=actor,
        in_person=is_in_person,
    )


async def record_misdirected_token(
    attempts: RefusedAttempts, resource: str, principal: Principal, actor: Actor
) -> None:
    """Record in the trail that a token for another resource was tried at this one."""
    message = f"A token that was issued for something else was tried at {resource}."
    attempt_kind = f"token of {principal.id} at {resource}"
    await attempts.record_refusal(
        attempt_kind, "token_misdirected", message, principal=principal, actor=actor
    )


def _read_client_id(claims: VerifiedClaims) -> str:
    return str(claims.get("client_id") or claims.get("azp") or "unknown")
