"""Every name that outlives a release: parked runs and stored rows hold these strings, so none is derived from code."""

from typing import Final

IDENTITY_HEADER: Final = "byline-identity"
CHAIN_HEADER: Final = "byline-chain"
ACTION_HEADER: Final = "byline-action"
WAITER_HEADER: Final = "byline-waiter"

LOOK_AGAIN_SIGNAL: Final = "byline.look_again"
WITHDRAW_ACTIVITY: Final = "byline.withdraw"

PRINCIPAL_ATTRIBUTE: Final = "BylinePrincipal"
TOOL_ATTRIBUTE: Final = "BylineTool"
TRIGGER_ATTRIBUTE: Final = "BylineTrigger"
RUN_ATTRIBUTE: Final = "BylineRun"
AWAITING_ATTRIBUTE: Final = "BylineAwaiting"

IDENTITY_TYPE: Final = "byline-identity+jws"
ACCESS_TOKEN_TYPE: Final = "at+jwt"

ENTRY_POINT_GROUP: Final = "byline.modules"
