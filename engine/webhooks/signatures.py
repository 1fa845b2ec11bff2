"""Verifies how senders sign deliveries, in each scheme over the raw body. It parses no body and reads no clock."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from engine.errors import DeliveryRefused, DeliveryStale, WebhookInvalid

SignatureScheme = Literal["stripe", "github", "slack", "standard"]

_STANDARD_SECRET_PREFIX: Final = "whsec_"
_MIN_SECRET_CHARS, _MAX_SECRET_CHARS = 16, 512
# What https://www.standardwebhooks.com asks of a symmetric secret.
_MIN_KEY_BYTES, _MAX_KEY_BYTES = 24, 64
_MAX_TIMESTAMP_DIGITS = 12


@dataclass(frozen=True, slots=True)
class SignedDelivery:
    """What a valid signature proves.

    `event_id` is None where the sender puts it into the body. `sent_at` is in seconds since the epoch, and None where
    the scheme signs no time. `delivery_mark` distinguishes signed deliveries: nobody can make one without the secret.
    """

    event_id: str | None
    sent_at: int | None
    delivery_mark: str

    def require_fresh(self, now_seconds: float, tolerance_seconds: float) -> None:
        """Check that it was signed within `tolerance_seconds` of `now_seconds`, either side; raises DeliveryStale."""
        if self.sent_at is not None and abs(now_seconds - self.sent_at) > tolerance_seconds:
            raise DeliveryStale(
                f"The delivery was signed {abs(now_seconds - self.sent_at):.0f} seconds away "
                f"from now, and {tolerance_seconds:.0f} are "
                "the most. Somebody sent it again, or a clock is wrong."
            )


@dataclass(frozen=True, slots=True)
class _SignatureClaim:
    signed_content: bytes
    signatures: Sequence[str]
    event_id: str | None
    sent_at: int | None


@dataclass(frozen=True, slots=True)
class _SchemeRules:
    read_claim: Callable[[Mapping[str, str], bytes], _SignatureClaim]
    decode_secret: Callable[[str], bytes]
    encode_mac: Callable[[bytes], str]
    event_id_pointer: str | None
    is_secret_from_sender: bool


def verify_delivery(
    scheme: SignatureScheme, active_secrets: Sequence[str], headers: Mapping[str, str], raw_body: bytes
) -> SignedDelivery:
    """Verify a delivery with the secrets in force; raises DeliveryRefused. Header names are in lower case."""
    scheme_rules = _RULES_BY_SCHEME[scheme]
    signature_claim = scheme_rules.read_claim(headers, raw_body)
    expected_signatures = [
        scheme_rules.encode_mac(
            hmac.digest(scheme_rules.decode_secret(secret), signature_claim.signed_content, hashlib.sha256)
        )
        for secret in active_secrets
    ]
    # Every pair is compared, so that the time it takes says nothing about which one came close.
    matching_signatures = [
        expected_signature
        for expected_signature in expected_signatures
        for sent_signature in signature_claim.signatures
        if hmac.compare_digest(expected_signature.encode(), sent_signature.encode())
    ]
    if not matching_signatures:
        raise _make_refusal("The signature is not one that this webhook's secret makes of this body.")
    return SignedDelivery(signature_claim.event_id, signature_claim.sent_at, matching_signatures[0])


def get_event_id_pointer(scheme: SignatureScheme) -> str | None:
    """Return the pointer at which this scheme's senders name the event in the body; None where a header names it."""
    return _RULES_BY_SCHEME[scheme].event_id_pointer


def is_secret_from_sender(scheme: SignatureScheme) -> bool:
    """Whether the sender makes the secret, and accepts none from the receiver."""
    return _RULES_BY_SCHEME[scheme].is_secret_from_sender


def generate_secret(scheme: SignatureScheme) -> str:
    """Return a new secret in this scheme's format."""
    if scheme == "standard":
        return _STANDARD_SECRET_PREFIX + b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(32)


def require_secret(scheme: SignatureScheme, secret: str) -> None:
    """Check that a secret can be one of this scheme; raises WebhookInvalid, which does not repeat it."""
    if (
        not _MIN_SECRET_CHARS <= len(secret) <= _MAX_SECRET_CHARS
        or not secret.isprintable()
        or secret != secret.strip()
    ):
        raise WebhookInvalid(
            f"Give a secret of {_MIN_SECRET_CHARS} to {_MAX_SECRET_CHARS} printable "
            "characters, without spaces around it."
        )
    if scheme == "standard":
        try:
            key_length_bytes = len(_decode_standard_secret(secret))
        except ValueError:
            key_length_bytes = 0
        if not _MIN_KEY_BYTES <= key_length_bytes <= _MAX_KEY_BYTES:
            raise WebhookInvalid(
                f"Give '{_STANDARD_SECRET_PREFIX}' and {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} "
                "bytes in base64 as the secret."
            )


def _read_stripe_claim(headers: Mapping[str, str], raw_body: bytes) -> _SignatureClaim:
    header_pairs = [
        header_pair.strip().partition("=")
        for header_pair in _require_header(headers, "stripe-signature").split(",")
    ]
    signature_times = [
        element_value for element_name, _, element_value in header_pairs if element_name == "t"
    ]
    if len(signature_times) != 1:
        raise _make_refusal("The header Stripe-Signature should say once when it was signed.")
    signatures = [element_value for element_name, _, element_value in header_pairs if element_name == "v1"]
    return _SignatureClaim(
        f"{signature_times[0]}.".encode() + raw_body, signatures, None, _parse_seconds(signature_times[0])
    )


def _read_github_claim(headers: Mapping[str, str], raw_body: bytes) -> _SignatureClaim:
    signature = _require_header(headers, "x-hub-signature-256")
    return _SignatureClaim(raw_body, [signature], _require_header(headers, "x-github-delivery"), None)


def _read_slack_claim(headers: Mapping[str, str], raw_body: bytes) -> _SignatureClaim:
    signature_time = _require_header(headers, "x-slack-request-timestamp")
    signature = _require_header(headers, "x-slack-signature")
    return _SignatureClaim(
        f"v0:{signature_time}:".encode() + raw_body, [signature], None, _parse_seconds(signature_time)
    )


def _read_standard_claim(headers: Mapping[str, str], raw_body: bytes) -> _SignatureClaim:
    event_id, signature_time = (
        _require_header(headers, "webhook-id"),
        _require_header(headers, "webhook-timestamp"),
    )
    signatures = _require_header(headers, "webhook-signature").split()
    return _SignatureClaim(
        f"{event_id}.{signature_time}.".encode() + raw_body,
        signatures,
        event_id,
        _parse_seconds(signature_time),
    )


def _decode_standard_secret(secret: str) -> bytes:
    base64_text = secret.removeprefix(_STANDARD_SECRET_PREFIX)
    return b64decode(base64_text + "=" * (-len(base64_text) % 4), validate=True)


def _require_header(headers: Mapping[str, str], header_name: str) -> str:
    header_value = headers.get(header_name)
    if not header_value:
        raise _make_refusal(f"The header {header_name.title()} is missing.")
    return header_value


def _parse_seconds(seconds_text: str) -> int:
    if not (
        seconds_text.isascii() and seconds_text.isdecimal() and len(seconds_text) <= _MAX_TIMESTAMP_DIGITS
    ):
        raise _make_refusal("The time of the signature is not a number of seconds.")
    return int(seconds_text)


def _make_refusal(reason: str) -> DeliveryRefused:
    return DeliveryRefused(reason)


_RULES_BY_SCHEME: Final[Mapping[SignatureScheme, _SchemeRules]] = {
    "stripe": _SchemeRules(
        _read_stripe_claim, str.encode, bytes.hex, event_id_pointer="/id", is_secret_from_sender=True
    ),
    "github": _SchemeRules(
        _read_github_claim,
        str.encode,
        lambda mac_bytes: f"sha256={mac_bytes.hex()}",
        event_id_pointer=None,
        is_secret_from_sender=False,
    ),
    "slack": _SchemeRules(
        _read_slack_claim,
        str.encode,
        lambda mac_bytes: f"v0={mac_bytes.hex()}",
        event_id_pointer="/event_id",
        is_secret_from_sender=True,
    ),
    "standard": _SchemeRules(
        _read_standard_claim,
        _decode_standard_secret,
        lambda mac_bytes: f"v1,{b64encode(mac_bytes).decode()}",
        event_id_pointer=None,
        is_secret_from_sender=False,
    ),
}
