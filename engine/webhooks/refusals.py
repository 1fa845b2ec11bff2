"""Records refused deliveries: a signed one by a line in the trail, and any other only by a count in the log."""

import time
from typing import Final

import structlog
from cachetools import FIFOCache

from engine.audit.trail import AuditEvent, AuditTrail
from engine.errors import BylineError
from engine.identity.model import Principal
from engine.webhooks.webhooks import Webhook

log = structlog.get_logger()

_MAX_REMEMBERED_DELIVERIES: Final = 10_000
_LOG_INTERVAL_SECONDS: Final = 60.0


class DeliveryRefusals:
    """Keeps senders without the secret from filling the trail: they can only send garbage or repeat a delivery."""

    def __init__(self, audit_trail: AuditTrail) -> None:
        self._audit_trail = audit_trail
        self._recorded_deliveries = FIFOCache[tuple[str, str], None](_MAX_REMEMBERED_DELIVERIES)
        self._unsigned_count = 0
        self._logged_at_seconds = float("-inf")

    async def record_signed_refusal(
        self, webhook: Webhook, principal: Principal, delivery_mark: str, error: BylineError
    ) -> None:
        """Write the refusal of a signed delivery to the trail, unless the same delivery was refused before."""
        if (webhook.id, delivery_mark) in self._recorded_deliveries:
            return
        self._recorded_deliveries[webhook.id, delivery_mark] = None
        audit_event = AuditEvent(
            kind="webhook.refused",
            principal=principal,
            object_id=webhook.id,
            error=error.code,
            message=str(error),
        )
        await self._audit_trail.append_event(audit_event)

    def count_unsigned_delivery(self) -> None:
        """Count a delivery without a valid signature or a known webhook; the log states the count once a minute."""
        self._unsigned_count += 1
        if time.monotonic() - self._logged_at_seconds >= _LOG_INTERVAL_SECONDS:
            log.warning("webhook_deliveries_without_signature", count=self._unsigned_count)
            self._unsigned_count, self._logged_at_seconds = 0, time.monotonic()
