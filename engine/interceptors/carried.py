"""The headers that a workflow passes on: those that it started with or, in a schedule's firing, those minted for it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError

from engine.identity.model import Identity
from engine.interceptors.headers import payload_of, read_text
from engine.wire import (
    ENROLL_ACTIVITY,
    IDENTITY_HEADER,
    PRINCIPAL_ATTRIBUTE,
    RUN_ATTRIBUTE,
    SCHEDULED_BY_ATTRIBUTE,
    TOOL_ATTRIBUTE,
    TRIGGER_ATTRIBUTE,
    UPKEEP_WORKFLOW,
)

_ATTEMPT = timedelta(seconds=30)
_PRINCIPAL = SearchAttributeKey.for_keyword(PRINCIPAL_ATTRIBUTE)
_TOOL = SearchAttributeKey.for_keyword(TOOL_ATTRIBUTE)
_TRIGGER = SearchAttributeKey.for_keyword(TRIGGER_ATTRIBUTE)
_RUN = SearchAttributeKey.for_keyword(RUN_ATTRIBUTE)


class Carried:
    """The headers of one workflow. None of them comes from a signal or from the tool's own code."""

    def __init__(self) -> None:
        self._given: dict[str, Payload] = {}
        self._enrolled = False

    @property
    def headers(self) -> Mapping[str, Payload]:
        """The run's headers, unverified. Whoever uses one must verify it first."""
        return {**workflow.info().headers, **self._given}

    @property
    def identity(self) -> Identity | None:
        """The run's identity, unverified and for labels only."""
        return Identity.unverified(read_text(self.headers, IDENTITY_HEADER) or "")

    @property
    def is_nameless(self) -> bool:
        """Whether a schedule began this run and its identity is not minted yet. Upkeep never has one."""
        info = workflow.info()
        return (
            not self._enrolled
            and info.parent is None
            and info.workflow_type != UPKEEP_WORKFLOW
            and IDENTITY_HEADER not in info.headers
            and SCHEDULED_BY_ATTRIBUTE in info.search_attributes
        )

    async def enroll(self) -> None:
        """Mint the headers of a schedule's firing, and do nothing in any other run.

        Raises the ApplicationError that says why if the firing gets none, which fails the run.
        """
        if not self.is_nameless:
            return
        try:
            given: dict[str, Any] = await workflow.execute_activity(
                ENROLL_ACTIVITY, start_to_close_timeout=_ATTEMPT, result_type=dict
            )
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError):
                raise error.cause from None
            raise
        self._given = {name: payload_of(value) for name, value in given.items()}
        self._enrolled = True
        self._label()

    async def named(self) -> None:
        """Wait until the run has its headers, so that signal and update handlers start no action before."""
        if self.is_nameless:
            await workflow.wait_condition(lambda: self._enrolled)

    def _label(self) -> None:
        """Set the search attributes that the gateway sets on the runs that it starts."""
        identity = self.identity
        if identity is not None:
            workflow.upsert_search_attributes(
                [
                    _PRINCIPAL.value_set(identity.name),
                    _TOOL.value_set(identity.tool),
                    _TRIGGER.value_set(identity.trigger),
                    _RUN.value_set(identity.root),
                ]
            )
