"""The search attributes of a run: those that it starts with, as typed keys, and what its workflows wait for."""

from typing import Final

from temporalio.common import SearchAttributeKey, SearchAttributePair

from engine.identity.model import Identity
from engine.wire import (
    AWAITING_ATTRIBUTE,
    PRINCIPAL_ATTRIBUTE,
    RUN_ATTRIBUTE,
    TOOL_ATTRIBUTE,
    TRIGGER_ATTRIBUTE,
)

PRINCIPAL_KEY: Final = SearchAttributeKey.for_keyword(PRINCIPAL_ATTRIBUTE)
TOOL_KEY: Final = SearchAttributeKey.for_keyword(TOOL_ATTRIBUTE)
TRIGGER_KEY: Final = SearchAttributeKey.for_keyword(TRIGGER_ATTRIBUTE)
RUN_KEY: Final = SearchAttributeKey.for_keyword(RUN_ATTRIBUTE)
AWAITING_KEY: Final = SearchAttributeKey.for_keyword_list(AWAITING_ATTRIBUTE)


def list_search_attributes(identity: Identity) -> list[SearchAttributePair[str]]:
    """Return the search attributes that a run with this identity starts with."""
    return [
        SearchAttributePair(PRINCIPAL_KEY, identity.name),
        SearchAttributePair(TOOL_KEY, identity.tool_name),
        SearchAttributePair(TRIGGER_KEY, identity.trigger),
        SearchAttributePair(RUN_KEY, identity.run_id),
    ]
