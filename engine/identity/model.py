"""Defines principal, actor and identity as plain values that are safe to import from workflow code."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.claims import unverified_claims

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
    active: bool = True
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
    root: str
    tool: str
    call: str
    kind: PrincipalKind = "person"

    @classmethod
    def of(
        cls, principal: Principal, actor: Actor, trigger: TriggerKind, *, root: str, tool: str, call: str
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
            root=root,
            tool=tool,
            call=call,
        )

    def claims(self) -> dict[str, Any]:
        """Return the JWT claims to sign."""
        return {
            "sub": self.principal_id,
            "principal": {"iss": self.issuer, "sub": self.subject, "name": self.name, "kind": self.kind},
            "act": {"sub": self.actor.id, "kind": self.actor.kind, "name": self.actor.name},
            "trigger": self.trigger,
            "root": self.root,
            "tool": self.tool,
            "call": self.call,
        }

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any]) -> "Identity":
        """Read an identity from its claims; raises KeyError or TypeError if they are not an identity's."""
        principal, act = claims["principal"], claims["act"]
        return cls(
            principal_id=claims["sub"],
            issuer=principal["iss"],
            subject=principal["sub"],
            name=principal["name"],
            kind=principal.get("kind", "person"),
            actor=Actor(kind=act["kind"], id=act["sub"], name=act["name"]),
            trigger=claims["trigger"],
            root=claims["root"],
            tool=claims["tool"],
            call=claims["call"],
        )

    @classmethod
    def unverified(cls, token: str) -> "Identity | None":
        """Read a token without verifying it, or return None if it holds no identity.

        The result is for labels only. No decision may depend on it.
        """
        try:
            return cls.from_claims(unverified_claims(token))
        except (KeyError, TypeError):
            return None


def call_digest(tool: str, arguments: Mapping[str, Any]) -> str:
    """Return the digest that identifies equal calls: SHA-256 of the tool name and arguments in canonical JSON."""
    text = json.dumps([tool, arguments], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
