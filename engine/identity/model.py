"""Defines principal, actor and identity as plain values that are safe to import from workflow code."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.identity.claims import read_unverified_claims

PrincipalKind = Literal["person", "service"]
TriggerKind = Literal["mcp", "rest", "schedule", "webhook"]
ActorKind = Literal["mcp_client", "api_client", "api_token", "schedule", "webhook"]


@dataclass(frozen=True, slots=True)
class Principal:
    """The person or service on whose behalf work happens, identified by OpenID Connect `iss` and `sub`.

    A service is a machine that an administrator registered and that nobody signs in as.
    """

    id: str
    issuer: str
    subject: str
    name: str
    is_active: bool = True
    kind: PrincipalKind = "person"


@dataclass(frozen=True, slots=True)
class Actor:
    """What acts for the principal (RFC 8693 section 4.1, `act`)."""

    kind: ActorKind
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Identity:
    """The statement that binds a principal, an actor and a trigger to one root run.

    `run_id` is the root workflow's id. `call_digest` is the digest of tool and arguments, by which a repeated call
    finds the run that it began.
    """

    principal_id: str
    issuer: str
    subject: str
    name: str
    actor: Actor
    trigger: TriggerKind
    run_id: str
    tool_name: str
    call_digest: str
    kind: PrincipalKind = "person"

    @classmethod
    def for_run(
        cls,
        principal: Principal,
        actor: Actor,
        trigger: TriggerKind,
        *,
        run_id: str,
        tool_name: str,
        call_digest: str,
    ) -> "Identity":
        """Return the identity of one run of a tool."""
        return cls(
            principal_id=principal.id,
            issuer=principal.issuer,
            subject=principal.subject,
            name=principal.name,
            kind=principal.kind,
            actor=actor,
            trigger=trigger,
            run_id=run_id,
            tool_name=tool_name,
            call_digest=call_digest,
        )

    def to_claims(self) -> dict[str, Any]:
        """Return the JWT claims to sign."""
        return {
            "sub": self.principal_id,
            "principal": {"iss": self.issuer, "sub": self.subject, "name": self.name, "kind": self.kind},
            "act": {"sub": self.actor.id, "kind": self.actor.kind, "name": self.actor.name},
            "trigger": self.trigger,
            "root": self.run_id,
            "tool": self.tool_name,
            "call": self.call_digest,
        }

    @classmethod
    def from_claims(cls, identity_claims: Mapping[str, Any]) -> "Identity":
        """Read an identity from its claims; raises KeyError or TypeError if they are not an identity's."""
        principal_claims, actor_claims = identity_claims["principal"], identity_claims["act"]
        return cls(
            principal_id=identity_claims["sub"],
            issuer=principal_claims["iss"],
            subject=principal_claims["sub"],
            name=principal_claims["name"],
            kind=principal_claims.get("kind", "person"),
            actor=Actor(kind=actor_claims["kind"], id=actor_claims["sub"], name=actor_claims["name"]),
            trigger=identity_claims["trigger"],
            run_id=identity_claims["root"],
            tool_name=identity_claims["tool"],
            call_digest=identity_claims["call"],
        )

    @classmethod
    def parse_unverified(cls, identity_token: str) -> "Identity | None":
        """Read a token without verifying it, or return None if it holds no identity.

        The result is for labels only. No decision may depend on it.
        """
        try:
            return cls.from_claims(read_unverified_claims(identity_token))
        except (KeyError, TypeError):
            return None


def digest_call(tool_name: str, arguments: Mapping[str, Any]) -> str:
    """Return the digest that identifies equal calls: SHA-256 of the tool name and arguments in canonical JSON."""
    canonical_json = json.dumps(
        [tool_name, arguments], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical_json.encode()).hexdigest()
