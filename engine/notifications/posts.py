"""Sends notes over HTTP: to Slack-compatible incoming webhooks, and signed (Standard Webhooks) to other receivers."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from standardwebhooks.webhooks import Webhook

from engine.db.database import now
from engine.errors import RateLimited, RequestRejected, UpstreamUnavailable
from engine.notifications.channels import Destination
from engine.notifications.messages import Note
from engine.outgoing.client import Outgoing, retry_after

_TRY_AGAIN: Final = frozenset({408, 425, 429})
_LARGEST_ANSWER = 64_000
_SLACK_SIGNS = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Posts:
    """Posts notes to the addresses that people gave."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    def checked(self, address: str) -> tuple[str, str]:
        """Return an address that notes can be posted to, and its label without the path, which is often a secret."""
        url = self._outgoing.check(address)
        return address, f"{url.scheme}://{url.netloc.decode('ascii')}/…"

    async def to_slack(self, note: Note, destination: Destination) -> None:
        """Post the note as a message; raises the UpstreamFailed that says whether another try may succeed."""
        link = "" if note.link is None else f"\n<{_escaped(note.link)}|Open the link>"
        text = f"*{_escaped(note.title)}*\n{_escaped(note.text)}{link}"
        block = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
        await self._post(destination.address, {"text": _escaped(note.title), "blocks": [block]}, {})

    async def to_webhook(self, note: Note, destination: Destination) -> None:
        """Post the note as signed JSON; its id stays the same at every try."""
        event = f"run.{note.subject}" if note.subject != "test" else "test"
        body = {"type": event, "timestamp": note.at.isoformat(), "data": note.data}
        at = now()
        await self._post(destination.address, body, _signed(destination, note.id, at, _text(body)))

    async def _post(self, address: str, body: object, headers: Mapping[str, str]) -> None:
        answer = await self._outgoing.send(
            "POST",
            address,
            headers={"Content-Type": "application/json", "User-Agent": "Byline", **headers},
            content=_text(body).encode(),
            largest=_LARGEST_ANSWER,
        )
        if 200 <= answer.status < 300:
            return
        msg = f"The webhook's receiver answered {answer.status}."
        if answer.status not in _TRY_AGAIN and answer.status < 500:
            raise RequestRejected(msg, status=answer.status)
        patience = retry_after(answer.headers)
        if patience is not None:
            raise RateLimited(msg, retry_after=patience)
        raise UpstreamUnavailable(msg, status=answer.status)


def _signed(destination: Destination, note_id: str, at: datetime, text: str) -> dict[str, str]:
    return {
        "webhook-id": note_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(destination.secret or "").sign(note_id, at, text),
    }


def _text(body: object) -> str:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def _escaped(text: str) -> str:
    """Return text in which the three characters that Slack interprets are escaped."""
    return text.translate(_SLACK_SIGNS)
