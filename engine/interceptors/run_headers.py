"""The headers that a workflow passes on: those that it started with or, in a schedule's firing, those minted for it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.exceptions import ActivityError, ApplicationError

from engine.identity.model import Identity
from engine.interceptors.headers import encode_header, read_header_text
from engine.interceptors.search_attributes import list_search_attributes
from engine.wire import (
    ENROLL_ACTIVITY,
    IDENTITY_HEADER,
    SCHEDULED_BY_ATTRIBUTE,
    UPKEEP_WORKFLOW,
)

_ATTEMPT_TIMEOUT = timedelta(seconds=30)


class RunHeaders:
    """The headers of one workflow. None of them comes from a signal or from the tool's own code."""

    def __init__(self) -> None:
        self._minted_headers: dict[str, Payload] = {}
        self._has_minted = False

    @property
    def headers(self) -> Mapping[str, Payload]:
        """The run's headers, unverified. Whoever uses one must verify it first."""
        return {**workflow.info().headers, **self._minted_headers}

    @property
    def identity(self) -> Identity | None:
        """The run's identity, unverified and for labels only."""
        return Identity.parse_unverified(read_header_text(self.headers, IDENTITY_HEADER) or "")

    @property
    def is_awaiting_identity(self) -> bool:
        """Whether a schedule began this run and its identity is not minted yet. Upkeep never has one."""
        workflow_info = workflow.info()
        return (
            not self._has_minted
            and workflow_info.parent is None
            and workflow_info.workflow_type != UPKEEP_WORKFLOW
            and IDENTITY_HEADER not in workflow_info.headers
            and SCHEDULED_BY_ATTRIBUTE in workflow_info.search_attributes
        )

    async def mint_headers(self) -> None:
        """Mint the headers of a schedule's firing, and do nothing in any other run.

        Raises the ApplicationError that says why if the firing gets none, which fails the run.
        """
        if not self.is_awaiting_identity:
            return
        try:
            minted_values: dict[str, Any] = await workflow.execute_activity(
                ENROLL_ACTIVITY, start_to_close_timeout=_ATTEMPT_TIMEOUT, result_type=dict
            )
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError):
                raise error.cause from None
            raise
        self._minted_headers = {
            header_name: encode_header(header_value) for header_name, header_value in minted_values.items()
        }
        self._has_minted = True
        self._set_search_attributes()

    async def wait_for_identity(self) -> None:
        """Wait until the run has its headers, so that signal and update handlers start no action before."""
        if self.is_awaiting_identity:
            await workflow.wait_condition(lambda: self._has_minted)

    def _set_search_attributes(self) -> None:
        """Set the search attributes that the gateway sets on the runs that it starts."""
        identity = self.identity
        if identity is not None:
            workflow.upsert_search_attributes(
                [attribute.key.value_set(attribute.value) for attribute in list_search_attributes(identity)]
            )
