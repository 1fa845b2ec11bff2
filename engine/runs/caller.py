"""The caller of a run: in whose name, through what, and within which limits of a token."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import NotAllowed
from engine.identity.model import Actor, Principal, TriggerKind


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal in whose name a call is made, the actor that makes it, its trigger, and the limits of the token."""

    principal: Principal
    actor: Actor
    trigger: TriggerKind
    tool_names: frozenset[str] | None = None
    """The tools that the caller's token is limited to, or None for all that the principal may call."""
    is_in_person: bool = False
    """Whether the principal signed in for this. False for API tokens, back ends, schedules and webhooks."""

    def covers_tool(self, tool_name: str) -> bool:
        """Return whether the caller's token covers a tool. The policy is checked separately."""
        return self.tool_names is None or tool_name in self.tool_names

    def select_covered(self, offer_names: Iterable[str]) -> list[str]:
        """Return those of the offers that the caller's token covers, sorted by name."""
        return sorted(offer_name for offer_name in offer_names if self.covers_tool(offer_name))

    def require_tool(self, tool_name: str) -> None:
        """Raise NotAllowed where the caller's token does not cover the tool."""
        if not self.covers_tool(tool_name):
            raise NotAllowed(f"This token does not reach {tool_name}. Make one that does, or sign in.")
