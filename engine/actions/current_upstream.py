"""Gives a running action its upstream client. Workflow code may import this module."""

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.actions.upstream import Upstream

_current_upstream: ContextVar["Upstream"] = ContextVar("byline_upstream")


def enter_action(action_upstream: "Upstream") -> None:
    """Make `upstream()` return this client in the current task."""
    _current_upstream.set(action_upstream)


def upstream() -> "Upstream":
    """Return the client of the running action, signed in as its principal; raises RuntimeError outside an action."""
    try:
        return _current_upstream.get()
    except LookupError:
        raise RuntimeError(
            "upstream() only works inside an activity declared with @action(…, connection=…)"
        ) from None
