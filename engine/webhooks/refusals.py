"""Records refused deliveries: a signed one by a line in the trail, and any other only by a count in the log."""

import time
from collections import OrderedDict
from typing import Final

import structlog

from engine.audit.trail import AuditEvent, Trail
from engine.errors import BylineError
from engine.identity.model import Principal
from engine.webhooks.webhooks import Webhook

log = structlog.get_logger()

_REMEMBERED: Final = 10_000
_LOG_EVERY_SECONDS: Final = 60.0


class Refusals:
    """Keeps senders without the secret from filling the trail: they can only send garbage or repeat a delivery."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._known = OrderedDict[tuple[str, str], None]()
        self._unsigned = 0
        self._logged_at = float("-inf")

    async def signed(self, webhook: Webhook, principal: Principal, mark: str, error: BylineError) -> None:
        """Write the refusal of a signed delivery to the trail, unless the same delivery was refused before."""
        if (webhook.id, mark) in self._known:
            return
        self._known[webhook.id, mark] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        event = AuditEvent(
            kind="webhook.refused",
            principal=principal,
            object_id=webhook.id,
            error=error.code,
            message=str(error),
        )
        await self._trail.append(event)

    def unsigned(self) -> None:
        """Count a delivery without a valid signature or a known webhook; the log states the count once a minute."""
        self._unsigned += 1
        if time.monotonic() - self._logged_at >= _LOG_EVERY_SECONDS:
            log.warning("webhook_deliveries_without_signature", count=self._unsigned)
            self._unsigned, self._logged_at = 0, time.monotonic()
