import subprocess
import sys
from datetime import UTC, datetime
from uuid import UUID

import byline
from engine import errors, sdk, wire
from engine.actions.upstream import Upstream
from engine.audit.trail import AuditEvent, compute_chained_hash
from engine.errors import BylineError
from engine.identity.model import Actor, Identity, Principal, digest_call
from tests.unit.test_errors import list_subclasses

ALICE = Principal("p-1", "https://people.example", "alice", "Alice Adams")
IDENTITY = Identity(
    principal_id="p-1",
    issuer="https://people.example",
    subject="alice",
    name="Alice Adams",
    actor=Actor("mcp_client", "chat", "Chat"),
    trigger="mcp",
    run_id="run-1",
    tool_name="resolve_billing_dispute",
    call_digest="call-1",
)


def test_every_name_that_outlives_a_release_is_what_it_was() -> None:
    assert {name: value for name, value in vars(wire).items() if name.isupper()} == {
        "IDENTITY_HEADER": "byline-identity",
        "CHAIN_HEADER": "byline-chain",
        "ACTION_HEADER": "byline-action",
        "WAITER_HEADER": "byline-waiter",
        "NOTIFY_HEADER": "byline-notify",
        "LOOK_AGAIN_SIGNAL": "byline.look_again",
        "WITHDRAW_ACTIVITY": "byline.withdraw",
        "ASK_ACTIVITY": "byline.ask",
        "CHANGED_ACTIVITY": "byline.resource_changed",
        "ENROLL_ACTIVITY": "byline.enroll",
        "NOTIFY_WORKFLOW": "byline.notify",
        "NOTIFY_ACTIVITY": "byline.deliver_notification",
        "UPKEEP_WORKFLOW": "byline.upkeep",
        "UPKEEP_ACTIVITY": "byline.keep_up",
        "PROGRESS_MEMO": "byline_progress",
        "OUTCOME_META": "byline/outcome",
        "PRINCIPAL_ATTRIBUTE": "BylinePrincipal",
        "TOOL_ATTRIBUTE": "BylineTool",
        "TRIGGER_ATTRIBUTE": "BylineTrigger",
        "RUN_ATTRIBUTE": "BylineRun",
        "AWAITING_ATTRIBUTE": "BylineAwaiting",
        "SCHEDULED_BY_ATTRIBUTE": "TemporalScheduledById",
        "IDENTITY_TYPE": "byline-identity+jws",
        "ACCESS_TOKEN_TYPE": "at+jwt",
        "ENTRY_POINT_GROUP": "byline.modules",
        "SCHEDULE_NAMESPACE": UUID("5b1c7c7e-4d0a-4f0e-9d8e-0a3c1f6f2d57"),
        "WAITER_NAMESPACE": UUID("0d6f4c1e-3a52-4a8e-9c55-0f3f6f2f6b11"),
        "NOTE_NAMESPACE": UUID("f0a4c1f6-2f0b-4a57-8d9c-6a7f3f1f7e02"),
        "QUESTION_NAMESPACE": UUID("5b1f9a52-7e0c-4c35-9b0e-6a2f1d0c8e44"),
        "GRANT_SEAL": "grant:{grant_id}:{holder}:{connection}",
        "CLIENT_SECRET_SEAL": "client_secret:{connection}",
        "UPSTREAM_CLIENT_SEAL": "upstream_client:{issuer}",
        "ATTEMPT_SEAL": "attempt:{state_hash}",
        "DEVICE_SEAL": "device:{request_id}",
        "IDP_SESSION_SEAL": "company_sign_in:{principal_id}",
        "CHANNEL_SEAL": "notification_channel:{channel_id}:{principal_id}:{kind}",
        "WEBHOOK_SEAL": "webhook:{webhook_id}:{principal_id}:{tool}:{scheme}",
        "SIGNING_KEY_SEAL": "signing_key:{key_id}:{public_key}",
        "DATA_KEY_SEAL": "data_key:{key_number}",
        "VISIT_SEAL": "browser visit",
    }


def test_what_builders_import_is_what_it_was() -> None:
    assert sdk.__all__ == [
        *(
            "Audio",
            "Content",
            "Document",
            "Embedded",
            "Icon",
            "Image",
            "Link",
            "Message",
            "Messages",
            "Person",
        ),
        *(
            "Root",
            "Text",
            "action",
            "approval",
            "ask",
            "changed",
            "progress",
            "prompt",
            "resource",
            "roots",
            "sample",
            "tool",
        ),
        "upstream",
    ]
    assert sorted(byline.__all__) == sorted(
        [
            *sdk.__all__,
            *("HttpAnswer", "HttpRequest", "ToolAnswer", "ToolCall", "Upstream", "http_action", "mcp_action"),
        ]
    )
    for module in (byline, sdk):
        assert all(hasattr(module, name) for name in module.__all__)
    assert byline.Upstream is Upstream


def test_what_builders_import_loads_nothing_that_a_workflow_may_not() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import byline, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()

    assert "byline.mcp" in loaded
    assert not {"httpx2", "sqlalchemy", "cryptography", "engine.actions.upstream"} & set(loaded)
    assert not hasattr(byline, "downstream")


def test_every_error_code_is_what_it_was() -> None:
    assert {kind.code for kind in list_subclasses(BylineError) if kind.__module__ == errors.__name__} == {
        "account_mismatched",
        "account_unclear",
        "account_unknown",
        "address_refused",
        "answer_invalid",
        "answer_required",
        "api_token_invalid",
        "api_token_unknown",
        "approval_denied",
        "approval_expired",
        "arguments_invalid",
        "authorization_cancelled",
        "authorization_denied",
        "authorization_ended",
        "authorization_expired",
        "authorization_refused",
        "authorization_required",
        "channel_unknown",
        "client_refused",
        "connection_misconfigured",
        "connection_unknown",
        "delivery_refused",
        "delivery_stale",
        "delivery_unfit",
        "firing_refused",
        "identity_forged",
        "identity_misplaced",
        "identity_missing",
        "identity_refused",
        "key_refused",
        "key_reused",
        "key_service_unavailable",
        "name_taken",
        "not_allowed",
        "outcome_unknown",
        "permission_denied",
        "person_required",
        "principal_inactive",
        "prompt_unknown",
        "question_cancelled",
        "question_closed",
        "question_declined",
        "question_ended",
        "question_expired",
        "question_unknown",
        "rate_limited",
        "read_only_violated",
        "record_not_found",
        "request_rejected",
        "resource_unknown",
        "run_ended",
        "run_forgotten",
        "run_unfinished",
        "run_unknown",
        "schedule_paused",
        "schedule_unknown",
        "service_unknown",
        "settings_invalid",
        "temporal_unreachable",
        "timing_invalid",
        "too_soon",
        "tool_unknown",
        "upstream_failed",
        "upstream_unavailable",
        "vault_seal_broken",
        "webhook_invalid",
        "webhook_unknown",
    }


def test_the_claims_of_an_identity_are_what_they_were() -> None:
    claims = {
        "sub": "p-1",
        "principal": {
            "iss": "https://people.example",
            "sub": "alice",
            "name": "Alice Adams",
            "kind": "person",
        },
        "act": {"sub": "chat", "kind": "mcp_client", "name": "Chat"},
        "trigger": "mcp",
        "root": "run-1",
        "tool": "resolve_billing_dispute",
        "call": "call-1",
    }

    assert IDENTITY.to_claims() == claims
    assert Identity.from_claims(claims) == IDENTITY


def test_an_identity_that_was_signed_before_services_were_known_is_a_persons() -> None:
    claims = IDENTITY.to_claims()
    del claims["principal"]["kind"]

    assert Identity.from_claims(claims) == IDENTITY


def test_a_line_of_the_trail_is_written_as_it_was() -> None:
    event = AuditEvent(kind="action.ended", identity=IDENTITY, run_id="run-1", chain=("a", "b"), status=200)

    assert event.to_document() == {
        "principal": {
            "id": "p-1",
            "iss": "https://people.example",
            "sub": "alice",
            "name": "Alice Adams",
            "kind": "person",
        },
        "actor": {"kind": "mcp_client", "id": "chat", "name": "Chat"},
        "trigger": "mcp",
        "tool": "resolve_billing_dispute",
        "run_id": "run-1",
        "chain": ["a", "b"],
        "status": 200,
    }
    assert AuditEvent(kind="authorization.denied", principal=ALICE).to_document() == {
        "principal": {
            "id": "p-1",
            "iss": "https://people.example",
            "sub": "alice",
            "name": "Alice Adams",
            "kind": "person",
        }
    }


def test_a_line_of_the_trail_is_hashed_as_it_was() -> None:
    time = datetime(2026, 11, 24, 12, 30, 15, 250, tzinfo=UTC)

    assert compute_chained_hash(7, time, "action.ended", {"b": ["é", None], "a": 1}, "0" * 64) == (
        "0f9c17c6523540c277fe9bb6849cfd1a30407f98fc3558bfa6bfbaee3620d31e"
    )


def test_a_call_is_known_again_as_it_was() -> None:
    assert digest_call("greet", {"name": "Zoë", "age": 5}) == digest_call("greet", {"age": 5, "name": "Zoë"})
    assert digest_call("greet", {"name": "Zoë"}) == (
        "7fd85be7ff4e225f402dca48af829a47183355f112109be25ff575e8fb2aecd1"
    )
