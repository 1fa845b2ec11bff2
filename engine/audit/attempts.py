"""Writes refused attempts to the trail, each kind at most once an hour, so that repeating one cannot fill the trail."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from engine.audit.trail import AuditEvent, Trail
from engine.identity.model import Actor, Principal

AttemptError = Literal["token_misdirected", "session_replaced", "redirect_refused", "client_refused"]

_EVERY_SECONDS: Final = 3600.0
_REMEMBERED: Final = 10_000
_LONGEST: Final = 500


@dataclass(slots=True)
class _Told:
    """When an attempt of one kind was last written (clock seconds), and how often it came since then."""

    at: float
    since: int = 0


class Attempts:
    """Records the attempts that this process refused.

    An attacker can repeat attempts of one `attempt_kind` at will, so they are counted by it. The caller must make sure
    that nobody can choose kinds at will: a kind is fixed, or names something that Byline or an issuer signed.
    """

    def __init__(self, trail: Trail, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._trail = trail
        self._clock = clock
        self._told: OrderedDict[str, _Told] = OrderedDict()

    async def refused(
        self,
        sort: str,
        error: AttemptError,
        message: str,
        *,
        principal: Principal | None = None,
        actor: Actor | None = None,
    ) -> None:
        """Write a refused attempt to the trail, at most once an hour for each kind.

        Attempts between two lines are only counted, and the next line states their number.
        """
        told = self._told.get(sort)
        if told is not None and self._clock() - told.at < _EVERY_SECONDS:
            told.since += 1
            return
        more = f" More of it since the last line: {told.since}." if told and told.since else ""
        self._told[sort] = _Told(self._clock())
        self._told.move_to_end(sort)
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        event = AuditEvent(
            kind="attempt.refused",
            principal=principal,
            actor=actor,
            error=error,
            message=f"{message[:_LONGEST]}{more}",
        )
        await self._trail.append(event)
