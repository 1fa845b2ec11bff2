"""Signs deliveries as senders do, by the libraries that others wrote, and by GitHub's own documented example."""

import hmac
import json
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from slack_sdk.signature import SignatureVerifier
from standardwebhooks.webhooks import Webhook as StandardWebhook
from stripe import WebhookSignature

from engine.webhooks.signatures import SignatureScheme

STRIPE = "whsec_0123456789abcdefghijklmnop"
SLACK = "8f742231b10e8888abcd99yyyzzz85a5"
GITHUB = "It's a Secret to Everybody"
STANDARD = "whsec_" + b64encode(b"thirty-two bytes, or so they say").decode()

HELLO = b"Hello, World!"
HELLO_SIGNED = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


@dataclass(frozen=True)
class Delivery:
    """What a sender puts on the wire."""

    headers: Mapping[str, str]
    body: bytes


def stripe(secret: str, event: str, said: Mapping[str, Any], at: int) -> Delivery:
    body = json.dumps({"id": event, "object": "event", **said})
    header = WebhookSignature.generate_signature_header(body, secret, at)
    return Delivery({"stripe-signature": header}, body.encode())


def slack(secret: str, event: str, said: Mapping[str, Any], at: int) -> Delivery:
    body = json.dumps({"type": "event_callback", "event_id": event, **said}).encode()
    signature = SignatureVerifier(secret).generate_signature(timestamp=str(at), body=body)
    assert signature is not None
    return Delivery({"x-slack-request-timestamp": str(at), "x-slack-signature": signature}, body)


def standard(secret: str, event: str, said: Mapping[str, Any], at: int) -> Delivery:
    body = json.dumps(said)
    signature = StandardWebhook(secret).sign(event, datetime.fromtimestamp(at, UTC), body)
    headers = {"webhook-id": event, "webhook-timestamp": str(at), "webhook-signature": signature}
    return Delivery(headers, body.encode())


def github(secret: str, event: str, said: Mapping[str, Any], _at: int) -> Delivery:
    """GitHub has no library that signs; what it signs is the body, as in the example that it documents."""
    body = json.dumps(said).encode()
    mac = hmac.new(secret.encode(), body, "sha256").hexdigest()
    headers = {
        "x-hub-signature-256": f"sha256={mac}",
        "x-github-delivery": event,
        "x-github-event": "issues",
    }
    return Delivery(headers, body)


Sign = Callable[[str, str, Mapping[str, Any], int], Delivery]
SENDERS: Mapping[SignatureScheme, tuple[str, Sign]] = {
    "stripe": (STRIPE, stripe),
    "github": (GITHUB, github),
    "slack": (SLACK, slack),
    "standard": (STANDARD, standard),
}


def now() -> int:
    return int(time.time())


def an_event() -> str:
    return f"evt_{secrets.token_hex(8)}"
