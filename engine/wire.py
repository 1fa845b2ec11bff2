"""All names that outlive a release. Parked runs and stored rows contain them, so none is derived from code."""

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
