"""Connects to the Temporal server and registers the search attributes that Byline needs."""

from collections.abc import Sequence
from typing import Final

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client, Interceptor
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError

from engine.errors import SettingsInvalid, TemporalUnreachable
from engine.settings import TemporalSettings
from engine.wire import (
    AWAITING_ATTRIBUTE,
    PRINCIPAL_ATTRIBUTE,
    RUN_ATTRIBUTE,
    TOOL_ATTRIBUTE,
    TRIGGER_ATTRIBUTE,
)

_KEYWORD_TYPE = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
_SEARCH_ATTRIBUTES: Final = {
    PRINCIPAL_ATTRIBUTE: _KEYWORD_TYPE,
    TOOL_ATTRIBUTE: _KEYWORD_TYPE,
    TRIGGER_ATTRIBUTE: _KEYWORD_TYPE,
    RUN_ATTRIBUTE: _KEYWORD_TYPE,
    AWAITING_ATTRIBUTE: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
}


async def connect_temporal(settings: TemporalSettings, interceptors: Sequence[Interceptor] = ()) -> Client:
    """Return a client of the cluster; raises TemporalUnreachable, which names the address that did not respond."""
    try:
        return await Client.connect(
            settings.address,
            namespace=settings.namespace,
            data_converter=pydantic_data_converter,
            interceptors=list(interceptors),
            tls=settings.tls,
            api_key=None if settings.api_key is None else settings.api_key.get_secret_value(),
        )
    except (RuntimeError, RPCError) as error:
        raise TemporalUnreachable(
            f"The Temporal server at {settings.address} does not answer: start it, or set BYLINE_TEMPORAL__ADDRESS "
            "(and BYLINE_TEMPORAL__TLS, BYLINE_TEMPORAL__API_KEY for Temporal Cloud)."
        ) from error


async def ensure_search_attributes(temporal_client: Client) -> None:
    """Register the missing search attributes; raises SettingsInvalid, which names them, if that is not permitted."""
    try:
        registered_attributes = await temporal_client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=temporal_client.namespace)
        )
        missing_attributes = {
            attribute_name: value_type
            for attribute_name, value_type in _SEARCH_ATTRIBUTES.items()
            if attribute_name not in registered_attributes.custom_attributes
        }
        if missing_attributes:
            add_request = AddSearchAttributesRequest(
                namespace=temporal_client.namespace, search_attributes=missing_attributes
            )
            await temporal_client.operator_service.add_search_attributes(add_request)
    except RPCError as error:
        raise SettingsInvalid(
            f"Cannot register Byline's search attributes in namespace '{temporal_client.namespace}' ({error.message}): "
            "create the "
            f"namespace, and add {', '.join(_SEARCH_ATTRIBUTES)} as `Keyword` ({AWAITING_ATTRIBUTE} as `KeywordList`)."
        ) from error
