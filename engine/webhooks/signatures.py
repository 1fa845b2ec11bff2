"""Verifies how senders sign deliveries, in each scheme over the raw body. It parses no body and reads no clock."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from engine.errors import DeliveryRefused, DeliveryStale, WebhookInvalid

Scheme = Literal["stripe", "github", "slack", "standard"]

_PREFIX: Final = "whsec_"
_SHORTEST, _LONGEST = 16, 512
# What https://www.standardwebhooks.com asks of a symmetric secret.
_FEWEST_BYTES, _MOST_BYTES = 24, 64
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Signed:
    """What a valid signature proves.

    `event_id` is None where the sender puts it into the body. `sent_at` is in seconds since the epoch, and None where
    the scheme signs no time. `delivery_mark` distinguishes signed deliveries: nobody can make one without the secret.
    """

    event_id: str | None
    sent_at: int | None
    mark: str

    def require_fresh(self, at: float, tolerance: float) -> None:
        """Check that it was signed within `tolerance_seconds` of `now_seconds`, either side; raises DeliveryStale."""
        if self.sent_at is not None and abs(at - self.sent_at) > tolerance:
            raise DeliveryStale(
                f"The delivery was signed {abs(at - self.sent_at):.0f} seconds away from now, and {tolerance:.0f} are "
                "the most. Somebody sent it again, or a clock is wrong."
            )


@dataclass(frozen=True, slots=True)
class _Claim:
    content: bytes
    signatures: Sequence[str]
    event_id: str | None
    sent_at: int | None


@dataclass(frozen=True, slots=True)
class _Rules:
    claim: Callable[[Mapping[str, str], bytes], _Claim]
    key: Callable[[str], bytes]
    written: Callable[[bytes], str]
    event_id: str | None
    sender_makes_secret: bool


def verify(scheme: Scheme, in_force: Sequence[str], headers: Mapping[str, str], body: bytes) -> Signed:
    """Verify a delivery with the secrets in force; raises DeliveryRefused. Header names are in lower case."""
    rules = _SCHEMES[scheme]
    claim = rules.claim(headers, body)
    expected = [
        rules.written(hmac.digest(rules.key(secret), claim.content, hashlib.sha256)) for secret in in_force
    ]
    # Every pair is compared, so that the time it takes says nothing about which one came close.
    matching = [
        one
        for one in expected
        for given in claim.signatures
        if hmac.compare_digest(one.encode(), given.encode())
    ]
    if not matching:
        raise _refused("The signature is not one that this webhook's secret makes of this body.")
    return Signed(claim.event_id, claim.sent_at, matching[0])


def event_id_pointer(scheme: Scheme) -> str | None:
    """Return the pointer at which this scheme's senders name the event in the body; None where a header names it."""
    return _SCHEMES[scheme].event_id


def sender_makes_secret(scheme: Scheme) -> bool:
    """Whether the sender makes the secret, and accepts none from the receiver."""
    return _SCHEMES[scheme].sender_makes_secret


def new_secret(scheme: Scheme) -> str:
    """Return a new secret in this scheme's format."""
    if scheme == "standard":
        return _PREFIX + b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(32)


def require_secret(scheme: Scheme, secret: str) -> None:
    """Check that a secret can be one of this scheme; raises WebhookInvalid, which does not repeat it."""
    if not _SHORTEST <= len(secret) <= _LONGEST or not secret.isprintable() or secret != secret.strip():
        raise WebhookInvalid(
            f"Give a secret of {_SHORTEST} to {_LONGEST} printable characters, without spaces around it."
        )
    if scheme == "standard":
        try:
            length = len(_standard_key(secret))
        except ValueError:
            length = 0
        if not _FEWEST_BYTES <= length <= _MOST_BYTES:
            raise WebhookInvalid(
                f"Give '{_PREFIX}' and {_FEWEST_BYTES} to {_MOST_BYTES} bytes in base64 as the secret."
            )


def _stripe(headers: Mapping[str, str], body: bytes) -> _Claim:
    pairs = [pair.strip().partition("=") for pair in _header(headers, "stripe-signature").split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    if len(times) != 1:
        raise _refused("The header Stripe-Signature should say once when it was signed.")
    signatures = [value for name, _, value in pairs if name == "v1"]
    return _Claim(f"{times[0]}.".encode() + body, signatures, None, _seconds(times[0]))


def _github(headers: Mapping[str, str], body: bytes) -> _Claim:
    signature = _header(headers, "x-hub-signature-256")
    return _Claim(body, [signature], _header(headers, "x-github-delivery"), None)


def _slack(headers: Mapping[str, str], body: bytes) -> _Claim:
    time = _header(headers, "x-slack-request-timestamp")
    signature = _header(headers, "x-slack-signature")
    return _Claim(f"v0:{time}:".encode() + body, [signature], None, _seconds(time))


def _standard(headers: Mapping[str, str], body: bytes) -> _Claim:
    event_id, time = _header(headers, "webhook-id"), _header(headers, "webhook-timestamp")
    signatures = _header(headers, "webhook-signature").split()
    return _Claim(f"{event_id}.{time}.".encode() + body, signatures, event_id, _seconds(time))


def _standard_key(secret: str) -> bytes:
    text = secret.removeprefix(_PREFIX)
    return b64decode(text + "=" * (-len(text) % 4), validate=True)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise _refused(f"The header {name.title()} is missing.")
    return value


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise _refused("The time of the signature is not a number of seconds.")
    return int(text)


def _refused(reason: str) -> DeliveryRefused:
    return DeliveryRefused(reason)


_SCHEMES: Final[Mapping[Scheme, _Rules]] = {
    "stripe": _Rules(_stripe, str.encode, bytes.hex, event_id="/id", sender_makes_secret=True),
    "github": _Rules(
        _github, str.encode, lambda mac: f"sha256={mac.hex()}", event_id=None, sender_makes_secret=False
    ),
    "slack": _Rules(
        _slack, str.encode, lambda mac: f"v0={mac.hex()}", event_id="/event_id", sender_makes_secret=True
    ),
    "standard": _Rules(
        _standard,
        _standard_key,
        lambda mac: f"v1,{b64encode(mac).decode()}",
        event_id=None,
        sender_makes_secret=False,
    ),
}
