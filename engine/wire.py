"""All names that outlive a release. Parked runs and stored rows contain them, so none is derived from code."""

import uuid
from typing import Final

IDENTITY_HEADER: Final = "byline-identity"
CHAIN_HEADER: Final = "byline-chain"
ACTION_HEADER: Final = "byline-action"
WAITER_HEADER: Final = "byline-waiter"
NOTIFY_HEADER: Final = "byline-notify"

LOOK_AGAIN_SIGNAL: Final = "byline.look_again"
WITHDRAW_ACTIVITY: Final = "byline.withdraw"
ASK_ACTIVITY: Final = "byline.ask"
CHANGED_ACTIVITY: Final = "byline.resource_changed"
ENROLL_ACTIVITY: Final = "byline.enroll"
NOTIFY_WORKFLOW: Final = "byline.notify"
NOTIFY_ACTIVITY: Final = "byline.deliver_notification"
UPKEEP_WORKFLOW: Final = "byline.upkeep"
UPKEEP_ACTIVITY: Final = "byline.keep_up"

PROGRESS_MEMO: Final = "byline_progress"
OUTCOME_META: Final = "byline/outcome"

PRINCIPAL_ATTRIBUTE: Final = "BylinePrincipal"
TOOL_ATTRIBUTE: Final = "BylineTool"
TRIGGER_ATTRIBUTE: Final = "BylineTrigger"
RUN_ATTRIBUTE: Final = "BylineRun"
AWAITING_ATTRIBUTE: Final = "BylineAwaiting"
SCHEDULED_BY_ATTRIBUTE: Final = "TemporalScheduledById"

IDENTITY_TYPE: Final = "byline-identity+jws"
ACCESS_TOKEN_TYPE: Final = "at+jwt"

ENTRY_POINT_GROUP: Final = "byline.modules"

SCHEDULE_NAMESPACE: Final = uuid.UUID("5b1c7c7e-4d0a-4f0e-9d8e-0a3c1f6f2d57")
WAITER_NAMESPACE: Final = uuid.UUID("0d6f4c1e-3a52-4a8e-9c55-0f3f6f2f6b11")
NOTE_NAMESPACE: Final = uuid.UUID("f0a4c1f6-2f0b-4a57-8d9c-6a7f3f1f7e02")
QUESTION_NAMESPACE: Final = uuid.UUID("5b1f9a52-7e0c-4c35-9b0e-6a2f1d0c8e44")

# The vault binds each sealed value to such a text, and opens it by no other.
GRANT_SEAL: Final = "grant:{grant_id}:{holder}:{connection}"
CLIENT_SECRET_SEAL: Final = "client_secret:{connection}"
UPSTREAM_CLIENT_SEAL: Final = "upstream_client:{issuer}"
ATTEMPT_SEAL: Final = "attempt:{state_hash}"
DEVICE_SEAL: Final = "device:{request_id}"
IDP_SESSION_SEAL: Final = "company_sign_in:{principal_id}"
CHANNEL_SEAL: Final = "notification_channel:{channel_id}:{principal_id}:{kind}"
WEBHOOK_SEAL: Final = "webhook:{webhook_id}:{principal_id}:{tool}:{scheme}"
SIGNING_KEY_SEAL: Final = "signing_key:{key_id}:{public_key}"
DATA_KEY_SEAL: Final = "data_key:{key_number}"
VISIT_SEAL: Final = "browser visit"
