"""Writes refused attempts to the trail, each kind at most once an hour, so that repeating one cannot fill the trail."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from cachetools import FIFOCache

from engine.audit.trail import AuditEvent, AuditTrail
from engine.identity.model import Actor, Principal

AttemptErrorCode = Literal["token_misdirected", "session_replaced", "redirect_refused", "client_refused"]

_WRITE_INTERVAL_SECONDS: Final = 3600.0
_MAX_ATTEMPT_KINDS: Final = 10_000
_MAX_MESSAGE_CHARS: Final = 500


@dataclass(slots=True)
class _AttemptCount:
    """When an attempt of one kind was last written (clock seconds), and how often it came since then."""

    written_at_seconds: float
    repeat_count: int = 0


class RefusedAttempts:
    """Records the attempts that this process refused.

    An attacker can repeat attempts of one `attempt_kind` at will, so they are counted by it. The caller must make sure
    that nobody can choose kinds at will: a kind is fixed, or names something that Byline or an issuer signed.
    """

    def __init__(
        self, audit_trail: AuditTrail, *, monotonic_clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._audit_trail = audit_trail
        self._monotonic_clock = monotonic_clock
        self._attempt_counts = FIFOCache[str, _AttemptCount](_MAX_ATTEMPT_KINDS)

    async def record_refusal(
        self,
        attempt_kind: str,
        error_code: AttemptErrorCode,
        message: str,
        *,
        principal: Principal | None = None,
        actor: Actor | None = None,
    ) -> None:
        """Write a refused attempt to the trail, at most once an hour for each kind.

        Attempts between two lines are only counted, and the next line states their number.
        """
        attempt_count = self._attempt_counts.get(attempt_kind)
        if (
            attempt_count is not None
            and self._monotonic_clock() - attempt_count.written_at_seconds < _WRITE_INTERVAL_SECONDS
        ):
            attempt_count.repeat_count += 1
            return
        repeat_remark = (
            f" More of it since the last line: {attempt_count.repeat_count}."
            if attempt_count and attempt_count.repeat_count
            else ""
        )
        self._attempt_counts[attempt_kind] = _AttemptCount(self._monotonic_clock())
        audit_event = AuditEvent(
            kind="attempt.refused",
            principal=principal,
            actor=actor,
            error=error_code,
            message=f"{message[:_MAX_MESSAGE_CHARS]}{repeat_remark}",
        )
        await self._audit_trail.append_event(audit_event)
