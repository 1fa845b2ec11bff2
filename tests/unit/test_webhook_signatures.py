"""Holds the schemes to what others sign, and to nothing else."""

import json
from collections.abc import Mapping
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DeliveryRefused, DeliveryStale, WebhookInvalid
from engine.webhooks.signatures import (
    SignatureScheme,
    generate_secret,
    is_secret_from_sender,
    require_secret,
    verify_delivery,
)
from tests.support.webhook_senders import (
    GITHUB,
    HELLO,
    HELLO_SIGNED,
    SENDERS,
    STANDARD,
    STRIPE,
    SignedDelivery,
    sign_as_standard,
    sign_as_stripe,
)

AT = 1_760_000_000
BODY_FIELDS = {"name": "Zoë", "amount": 12}
SCHEMES: tuple[SignatureScheme, ...] = get_args(SignatureScheme)
SIGNED_DELIVERIES: Mapping[SignatureScheme, SignedDelivery] = {
    scheme: sign(secret, "evt_1", BODY_FIELDS, AT) for scheme, (secret, sign) in SENDERS.items()
}
TIMED_SCHEMES = [scheme for scheme in SCHEMES if scheme != "github"]

schemes = pytest.mark.parametrize("scheme", SCHEMES)


@schemes
def test_what_others_sign_is_taken_with_its_event_and_its_time(scheme: SignatureScheme) -> None:
    delivery = SIGNED_DELIVERIES[scheme]
    verified_delivery = verify_delivery(scheme, [SENDERS[scheme][0]], delivery.headers, delivery.body)

    assert verified_delivery.event_id == ("evt_1" if scheme in {"github", "standard"} else None)
    assert verified_delivery.sent_at == (AT if scheme in TIMED_SCHEMES else None)


def test_githubs_documented_example_is_taken() -> None:
    headers = {"x-hub-signature-256": HELLO_SIGNED, "x-github-delivery": "72d3162e"}

    assert verify_delivery("github", [GITHUB], headers, HELLO).event_id == "72d3162e"


@schemes
@given(data=st.data())
def test_a_body_that_differs_in_anything_is_refused(scheme: SignatureScheme, data: st.DataObject) -> None:
    body = SIGNED_DELIVERIES[scheme].body
    place = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(place, len(body)))
    altered_body = body[:place] + data.draw(st.binary(max_size=8)) + body[end:]
    if altered_body == body:
        return

    with pytest.raises(DeliveryRefused):
        verify_delivery(scheme, [SENDERS[scheme][0]], SIGNED_DELIVERIES[scheme].headers, altered_body)


@schemes
@given(data=st.data())
def test_headers_that_nobody_signed_are_refused_whatever_they_hold(
    scheme: SignatureScheme, data: st.DataObject
) -> None:
    # What a server reads from the wire is Latin-1.
    text = st.text(st.characters(max_codepoint=255), max_size=80)
    unsigned_headers = {"x-github-delivery", "x-github-event"}
    good = {
        name: value
        for name, value in SIGNED_DELIVERIES[scheme].headers.items()
        if name not in unsigned_headers
    }
    name = data.draw(st.sampled_from(sorted(good)))
    forged_value = data.draw(text | st.just(good[name].upper()) | st.just(good[name][:-1]))
    if forged_value == good[name]:
        return

    with pytest.raises(DeliveryRefused):
        verify_delivery(
            scheme,
            [SENDERS[scheme][0]],
            {**SIGNED_DELIVERIES[scheme].headers, name: forged_value},
            SIGNED_DELIVERIES[scheme].body,
        )


@schemes
def test_a_missing_header_is_refused(scheme: SignatureScheme) -> None:
    for name in SIGNED_DELIVERIES[scheme].headers.keys() - {"x-github-event"}:
        rest = {other: value for other, value in SIGNED_DELIVERIES[scheme].headers.items() if other != name}
        with pytest.raises(DeliveryRefused):
            verify_delivery(scheme, [SENDERS[scheme][0]], rest, SIGNED_DELIVERIES[scheme].body)


@schemes
def test_another_secret_is_refused_and_one_of_two_in_force_is_enough(scheme: SignatureScheme) -> None:
    secret, delivery = SENDERS[scheme][0], SIGNED_DELIVERIES[scheme]
    other = generate_secret(scheme)

    with pytest.raises(DeliveryRefused):
        verify_delivery(scheme, [other], delivery.headers, delivery.body)
    with pytest.raises(DeliveryRefused):
        verify_delivery(scheme, [], delivery.headers, delivery.body)
    assert verify_delivery(scheme, [other, secret], delivery.headers, delivery.body).delivery_mark


@pytest.mark.parametrize("scheme", TIMED_SCHEMES)
@pytest.mark.parametrize(("away", "is_fresh"), [(0, True), (300, True), (301, False)])
def test_a_time_may_be_off_by_the_tolerance_in_either_direction(
    scheme: SignatureScheme, away: int, *, is_fresh: bool
) -> None:
    delivery = SIGNED_DELIVERIES[scheme]
    verified_delivery = verify_delivery(scheme, [SENDERS[scheme][0]], delivery.headers, delivery.body)

    for clock in (AT + away, AT - away):
        if is_fresh:
            verified_delivery.require_fresh(clock, 300)
        else:
            with pytest.raises(DeliveryStale, match=f"signed {away} seconds away"):
                verified_delivery.require_fresh(clock, 300)


def test_a_sender_that_changes_its_secret_may_sign_with_both() -> None:
    old, new = (
        sign_as_stripe(STRIPE, "evt_1", BODY_FIELDS, AT),
        sign_as_stripe("whsec_the-next-one", "evt_1", BODY_FIELDS, AT),
    )
    both = f"{new.headers['stripe-signature']},v1={old.headers['stripe-signature'].split('v1=')[1]},v0=ab"
    olds, news = (
        sign_as_standard(STANDARD, "e", BODY_FIELDS, AT),
        sign_as_standard(generate_secret("standard"), "e", BODY_FIELDS, AT),
    )
    list_of_both = f"v1a,ab {news.headers['webhook-signature']} {olds.headers['webhook-signature']}"

    assert verify_delivery("stripe", [STRIPE], {"stripe-signature": both}, old.body).delivery_mark
    assert verify_delivery(
        "standard", [STANDARD], {**olds.headers, "webhook-signature": list_of_both}, olds.body
    ).delivery_mark


def test_two_times_in_one_header_are_refused() -> None:
    good = sign_as_stripe(STRIPE, "evt_1", BODY_FIELDS, AT)
    header = f"t={AT + 1000},{good.headers['stripe-signature']}"

    with pytest.raises(DeliveryRefused):
        verify_delivery("stripe", [STRIPE], {"stripe-signature": header}, good.body)


@schemes
def test_a_mark_is_of_what_was_signed_and_not_of_what_was_not(scheme: SignatureScheme) -> None:
    secret, sign = SENDERS[scheme]
    good = SIGNED_DELIVERIES[scheme]
    renamed_headers = {**good.headers, "x-github-delivery": "another", "x-more": "more"}
    other = sign(secret, "evt_2", {**BODY_FIELDS, "amount": 13}, AT)

    mark = verify_delivery(scheme, [secret], good.headers, good.body).delivery_mark
    assert verify_delivery(scheme, [secret], renamed_headers, good.body).delivery_mark == mark
    assert verify_delivery(scheme, [secret], other.headers, other.body).delivery_mark != mark


@schemes
def test_a_secret_that_is_made_fits_its_scheme(scheme: SignatureScheme) -> None:
    require_secret(scheme, generate_secret(scheme))
    assert generate_secret(scheme) != generate_secret(scheme)
    assert is_secret_from_sender(scheme) == (scheme in {"stripe", "slack"})


@pytest.mark.parametrize(
    ("scheme", "secret"),
    [
        ("stripe", ""),
        ("github", "fifteen letters"),
        ("github", " sixteen letters and a space"),
        ("slack", "sixteen letters\nand a line"),
        ("standard", "whsec_dG9vIHNob3J0IQ=="),
        ("standard", "whsec_this is no base64 of anything"),
    ],
)
def test_a_secret_that_cannot_be_one_is_refused_unrepeated(scheme: SignatureScheme, secret: str) -> None:
    with pytest.raises(WebhookInvalid) as error_info:
        require_secret(scheme, secret)

    assert not secret or secret not in json.dumps(str(error_info.value))
