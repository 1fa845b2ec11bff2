"""Guards every activity: verifies its identity, refuses actions that may not run, and turns errors into failures."""

from datetime import timedelta
from typing import Any, NoReturn

from pydantic import ValidationError
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from engine.actions.current_upstream import enter_action
from engine.actions.definition import find_action_definition
from engine.actions.upstream import ActionContext, Upstream
from engine.audit.trail import AuditEvent
from engine.errors import (
    DATA_ERRORS,
    BylineError,
    IdentityRefused,
    PersonRequired,
    RateLimited,
    ReadOnlyViolated,
)
from engine.identity.model import Identity
from engine.interceptors.headers import read_header, read_header_text
from engine.interceptors.root_run_cache import RootRunCache
from engine.questions.questions import AskingStep, enter_asking_step
from engine.runs.records import RootRun
from engine.services import Services
from engine.tools.registry import Registry
from engine.validation_errors import describe_validation_error
from engine.waiting.waiters import ParkedAction
from engine.wire import (
    ACTION_HEADER,
    ASK_ACTIVITY,
    CHAIN_HEADER,
    ENROLL_ACTIVITY,
    IDENTITY_HEADER,
    UPKEEP_ACTIVITY,
    WAITER_HEADER,
)

# ENROLL_ACTIVITY mints a firing's identity, so it has none yet. Upkeep calls no upstream API on anybody's behalf.
_ACTIVITIES_WITHOUT_IDENTITY = frozenset({ENROLL_ACTIVITY, UPKEEP_ACTIVITY})
_BENIGN_CATEGORY = ApplicationErrorCategory.BENIGN


class ActivityGuard(ActivityInboundInterceptor):
    """The inbound interceptor of every activity of a worker."""

    def __init__(
        self,
        next_interceptor: ActivityInboundInterceptor,
        services: Services,
        registry: Registry,
        root_runs: RootRunCache,
        temporal_client: Client,
    ) -> None:
        super().__init__(next_interceptor)
        self._services = services
        self._registry = registry
        self._root_runs = root_runs
        self._temporal_client = temporal_client

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 -- Temporal's names
        """Verify the identity, obtain the credential and run the activity.

        A BylineError is raised as the Temporal failure of its code, and an error over invalid data as a failure that is
        not retried.
        """
        try:
            if activity.info().activity_type in _ACTIVITIES_WITHOUT_IDENTITY:
                return await super().execute_activity(input)
            identity, root_run = await self._verify_identity(input)
            try:
                await self._authorize_and_enter_action(input, identity, root_run)
                return _require_encodable(await super().execute_activity(input))
            except PersonRequired as person_required:
                person_required.notify_channels = await self._services.notifier.claim_wait_listeners(
                    awaited_id=person_required.awaited_id,
                    waiter_id=person_required.waiter_id,
                    asked_principal_ids=person_required.asked_principal_ids,
                    identity=identity,
                )
                raise
        except BylineError as error:
            raise to_temporal_failure(error) from None
        except DATA_ERRORS as error:
            raise ApplicationError(
                _describe_error(error), type=type(error).__name__, non_retryable=True
            ) from None

    async def _verify_identity(self, input: ExecuteActivityInput) -> tuple[Identity, RootRun]:  # noqa: A002
        activity_info = activity.info()
        identity_token = read_header_text(input.headers, IDENTITY_HEADER)
        root_run = None
        try:
            root_run = await self._root_runs.find_root(activity_info, self._temporal_client)
            return await self._services.identity_verifier.verify_identity(identity_token, root_run), root_run
        except IdentityRefused as error:
            await self._services.trail.append_event(
                AuditEvent(
                    kind="action.refused",
                    run_id=activity_info.workflow_id if root_run is None else root_run.workflow_id,
                    chain=_read_call_chain(input),
                    action=activity_info.activity_type,
                    attempt=activity_info.attempt,
                    error=error.code,
                    message=str(error),
                )
            )
            raise

    async def _authorize_and_enter_action(
        self,
        input: ExecuteActivityInput,  # noqa: A002 -- Temporal's name
        identity: Identity,
        root_run: RootRun,
    ) -> None:
        services, activity_info = self._services, activity.info()
        action_definition = find_action_definition(input.fn)
        workflow_run_id = activity_info.workflow_run_id or ""
        action_key = (
            read_header_text(input.headers, ACTION_HEADER) or f"{workflow_run_id}:{activity_info.activity_id}"
        )
        parked_action = ParkedAction(activity_info.workflow_id or "", workflow_run_id, action_key)
        waiter_header = read_header(input.headers, WAITER_HEADER)
        if activity_info.activity_type == ASK_ACTIVITY:
            waiter_values = waiter_header if isinstance(waiter_header, dict) else {}
            enter_asking_step(
                AskingStep(
                    identity,
                    root_run.workflow_id,
                    parked_action,
                    waiter_values.get("id"),
                    bool(waiter_values.get("timed_out")),
                )
            )
        if action_definition is None:
            return
        if self._registry.is_read_only(identity.tool_name) and not action_definition.reads_only:
            await self._refuse_writing_action(input, identity, root_run)
        if isinstance(waiter_header, dict):
            await services.authorization_requests.check_wait_outcome(
                str(waiter_header.get("id")),
                has_timed_out=bool(waiter_header.get("timed_out")),
                identity=identity,
            )
        action_context = ActionContext(
            identity=identity,
            run_id=root_run.workflow_id,
            chain=_read_call_chain(input),
            definition=action_definition,
            connection=await services.catalogue.get_connection(action_definition.connection_name),
            attempt=activity_info.attempt,
            parked_action=parked_action,
            has_waited=waiter_header is not None,
        )
        action_upstream = Upstream(
            action_context,
            services.http_client,
            services.grants,
            services.authorization_requests,
            services.idp_assertions,
            services.trail,
        )
        await action_upstream.credential()
        enter_action(action_upstream)

    async def _refuse_writing_action(
        self,
        input: ExecuteActivityInput,  # noqa: A002
        identity: Identity,
        root_run: RootRun,
    ) -> NoReturn:
        activity_info = activity.info()
        error = ReadOnlyViolated(
            f"'{identity.tool_name}' only reads, and its action '{activity_info.activity_type}' may write, so it did "
            "not run: say reads_only=True of an action that only reads, or offer a tool without read_only."
        )
        await self._services.trail.append_event(
            AuditEvent(
                kind="action.refused",
                identity=identity,
                run_id=root_run.workflow_id,
                chain=_read_call_chain(input),
                action=activity_info.activity_type,
                attempt=activity_info.attempt,
                error=error.code,
                message=str(error),
            )
        )
        raise error


def to_temporal_failure(error: BylineError) -> ApplicationError:
    """Convert a domain error to a Temporal failure: its code as type, its message, its details, whether to retry."""
    retry_delay_seconds = error.retry_after if isinstance(error, RateLimited) else None
    return ApplicationError(
        str(error),
        dict(error.details),
        type=error.code,
        non_retryable=not error.is_retryable,
        next_retry_delay=None if retry_delay_seconds is None else timedelta(seconds=retry_delay_seconds),
        category=_BENIGN_CATEGORY
        if isinstance(error, PersonRequired)
        else ApplicationErrorCategory.UNSPECIFIED,
    )


def _require_encodable(activity_result: Any) -> Any:
    """Return the result if Temporal's payload converter accepts it; raises ValueError otherwise.

    Temporal itself would repeat the action when its result cannot be converted.
    """
    activity.payload_converter().to_payload(activity_result)
    return activity_result


def _describe_error(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return f"{error.title} does not fit: {describe_validation_error(error)}."


def _read_call_chain(input: ExecuteActivityInput) -> tuple[str, ...]:  # noqa: A002
    call_chain = read_header(input.headers, CHAIN_HEADER)
    return tuple(str(chain_step) for chain_step in call_chain) if isinstance(call_chain, list) else ()
