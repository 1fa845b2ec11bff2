"""Sends notes over HTTP: to Slack-compatible incoming webhooks, and signed (Standard Webhooks) to other receivers."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from standardwebhooks.webhooks import Webhook

from engine.db.database import utc_now
from engine.errors import RateLimited, RequestRejected, UpstreamUnavailable
from engine.notifications.channels import ChannelDestination
from engine.notifications.messages import ChannelNote
from engine.outgoing.client import OutgoingClient, parse_retry_after

_RETRYABLE_STATUS_CODES: Final = frozenset({408, 425, 429})
_MAX_RESPONSE_BYTES = 64_000
_SLACK_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class NotePoster:
    """Posts notes to the addresses that people gave."""

    def __init__(self, outgoing_client: OutgoingClient) -> None:
        self._outgoing_client = outgoing_client

    def check_address(self, address: str) -> tuple[str, str]:
        """Return an address that notes can be posted to, and its label without the path, which is often a secret."""
        checked_url = self._outgoing_client.check_url(address)
        return address, f"{checked_url.scheme}://{checked_url.netloc.decode('ascii')}/…"

    async def post_to_slack(self, note: ChannelNote, destination: ChannelDestination) -> None:
        """Post the note as a message; raises the UpstreamFailed that says whether another try may succeed."""
        link_text = "" if note.link_url is None else f"\n<{_escape_for_slack(note.link_url)}|Open the link>"
        message_text = f"*{_escape_for_slack(note.title)}*\n{_escape_for_slack(note.body_text)}{link_text}"
        message_block = {"type": "section", "text": {"type": "mrkdwn", "text": message_text}}
        await self._post_json(
            destination.address, {"text": _escape_for_slack(note.title), "blocks": [message_block]}, {}
        )

    async def post_to_webhook(self, note: ChannelNote, destination: ChannelDestination) -> None:
        """Post the note as signed JSON; its id stays the same at every try."""
        event_type = f"run.{note.subject}" if note.subject != "test" else "test"
        json_body = {"type": event_type, "timestamp": note.occurred_at.isoformat(), "data": note.event_data}
        signed_at = utc_now()
        await self._post_json(
            destination.address,
            json_body,
            _make_signature_headers(destination, note.id, signed_at, _to_json_text(json_body)),
        )

    async def _post_json(self, address: str, json_body: object, headers: Mapping[str, str]) -> None:
        response = await self._outgoing_client.send_request(
            "POST",
            address,
            headers={"Content-Type": "application/json", "User-Agent": "Byline", **headers},
            content=_to_json_text(json_body).encode(),
            max_bytes=_MAX_RESPONSE_BYTES,
        )
        if 200 <= response.status_code < 300:
            return
        msg = f"The webhook's receiver answered {response.status_code}."
        if response.status_code not in _RETRYABLE_STATUS_CODES and response.status_code < 500:
            raise RequestRejected(msg, status_code=response.status_code)
        retry_after_seconds = parse_retry_after(response.headers)
        if retry_after_seconds is not None:
            raise RateLimited(msg, retry_after=retry_after_seconds)
        raise UpstreamUnavailable(msg, status_code=response.status_code)


def _make_signature_headers(
    destination: ChannelDestination, note_id: str, signed_at: datetime, body_text: str
) -> dict[str, str]:
    return {
        "webhook-id": note_id,
        "webhook-timestamp": str(int(signed_at.timestamp())),
        "webhook-signature": Webhook(destination.secret or "").sign(note_id, signed_at, body_text),
    }


def _to_json_text(json_body: object) -> str:
    return json.dumps(json_body, separators=(",", ":"), ensure_ascii=False)


def _escape_for_slack(plain_text: str) -> str:
    """Return text in which the three characters that Slack interprets are escaped."""
    return plain_text.translate(_SLACK_ESCAPES)
