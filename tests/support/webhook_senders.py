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
class SignedDelivery:
    """What a sender puts on the wire."""

    headers: Mapping[str, str]
    body: bytes


def sign_as_stripe(secret: str, event: str, body_fields: Mapping[str, Any], signed_at: int) -> SignedDelivery:
    body = json.dumps({"id": event, "object": "event", **body_fields})
    header = WebhookSignature.generate_signature_header(body, secret, signed_at)
    return SignedDelivery({"stripe-signature": header}, body.encode())


def sign_as_slack(secret: str, event: str, body_fields: Mapping[str, Any], signed_at: int) -> SignedDelivery:
    body = json.dumps({"type": "event_callback", "event_id": event, **body_fields}).encode()
    signature = SignatureVerifier(secret).generate_signature(timestamp=str(signed_at), body=body)
    assert signature is not None
    return SignedDelivery({"x-slack-request-timestamp": str(signed_at), "x-slack-signature": signature}, body)


def sign_as_standard(
    secret: str, event: str, body_fields: Mapping[str, Any], signed_at: int
) -> SignedDelivery:
    body = json.dumps(body_fields)
    signature = StandardWebhook(secret).sign(event, datetime.fromtimestamp(signed_at, UTC), body)
    headers = {"webhook-id": event, "webhook-timestamp": str(signed_at), "webhook-signature": signature}
    return SignedDelivery(headers, body.encode())


def sign_as_github(secret: str, event: str, body_fields: Mapping[str, Any], _at: int) -> SignedDelivery:
    """GitHub has no library that signs; what it signs is the body, as in the example that it documents."""
    body = json.dumps(body_fields).encode()
    mac = hmac.new(secret.encode(), body, "sha256").hexdigest()
    headers = {
        "x-hub-signature-256": f"sha256={mac}",
        "x-github-delivery": event,
        "x-github-event": "issues",
    }
    return SignedDelivery(headers, body)


Sign = Callable[[str, str, Mapping[str, Any], int], SignedDelivery]
SENDERS: Mapping[SignatureScheme, tuple[str, Sign]] = {
    "stripe": (STRIPE, sign_as_stripe),
    "github": (GITHUB, sign_as_github),
    "slack": (SLACK, sign_as_slack),
    "standard": (STANDARD, sign_as_standard),
}


def now_seconds() -> int:
    return int(time.time())


def new_event_id() -> str:
    return f"evt_{secrets.token_hex(8)}"
