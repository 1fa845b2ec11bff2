"""Writes down what attackers try in vain: each sort once an hour, so that nobody fills the trail by trying again."""

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
    """When a sort was written down last, and how often it came since."""

    at: float
    since: int = 0


class Attempts:
    """What was tried at this process.

    A `sort` is what one attacker can repeat at will. Who calls it sees to it that nobody chooses sorts at will: it is
    fixed, or names something that Byline or an issuer signed.
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
        """Write down what was refused; within the hour it is only counted, which the next line tells."""
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
