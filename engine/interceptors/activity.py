"""Guards every activity: verifies its identity before it runs, and turns its errors into Temporal failures."""

from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from engine.actions import definition_of, enter_action
from engine.audit.trail import AuditEvent
from engine.errors import UNFIT, BylineError, IdentityRefused, PersonRequired, RateLimited
from engine.identity.model import Identity
from engine.identity.runs import RootRun
from engine.interceptors.headers import read, read_text
from engine.interceptors.roots import Roots
from engine.questions.questions import Place, enter_place
from engine.services import Services
from engine.upstream import ActionContext, Upstream
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

# The first mints a firing's identity and so cannot have one. Upkeep calls no upstream API on anybody's behalf.
_NAMELESS = frozenset({ENROLL_ACTIVITY, UPKEEP_ACTIVITY})
_BENIGN = ApplicationErrorCategory.BENIGN


class ActivityGuard(ActivityInboundInterceptor):
    """The inbound interceptor of every activity of a worker."""

    def __init__(
        self, inner: ActivityInboundInterceptor, services: Services, roots: Roots, temporal: Client
    ) -> None:
        super().__init__(inner)
        self._services = services
        self._roots = roots
        self._temporal = temporal

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 -- Temporal's names
        """Verify the identity, obtain the credential and run the activity.

        A BylineError is raised as the Temporal failure of its code, and an error over invalid data as a failure that is
        not retried.
        """
        try:
            if activity.info().activity_type in _NAMELESS:
                return await super().execute_activity(input)
            identity, root = await self._verified(input)
            try:
                await self._enter(input, identity, root)
                return _carried(await super().execute_activity(input))
            except PersonRequired as required:
                required.notify = await self._services.notifier.wait_begun(
                    awaits=required.awaits,
                    waiter=required.waiter,
                    asked=required.asked,
                    identity=identity,
                )
                raise
        except BylineError as error:
            raise as_failure(error) from None
        except UNFIT as error:
            raise ApplicationError(_told(error), type=type(error).__name__, non_retryable=True) from None

    async def _verified(self, input: ExecuteActivityInput) -> tuple[Identity, RootRun]:  # noqa: A002
        info = activity.info()
        token = read_text(input.headers, IDENTITY_HEADER)
        root = None
        try:
            root = await self._roots.of(info, self._temporal)
            return await self._services.identities.verify(token, root), root
        except IdentityRefused as error:
            await self._services.trail.append(
                AuditEvent(
                    kind="action.refused",
                    run_id=info.workflow_id if root is None else root.workflow_id,
                    chain=_chain(input),
                    action=info.activity_type,
                    attempt=info.attempt,
                    error=error.code,
                    message=str(error),
                )
            )
            raise

    async def _enter(self, input: ExecuteActivityInput, identity: Identity, root: RootRun) -> None:  # noqa: A002
        services, info = self._services, activity.info()
        definition = definition_of(input.fn)
        run_id = info.workflow_run_id or ""
        key = read_text(input.headers, ACTION_HEADER) or f"{run_id}:{info.activity_id}"
        parked = ParkedAction(info.workflow_id or "", run_id, key)
        waited = read(input.headers, WAITER_HEADER)
        if info.activity_type == ASK_ACTIVITY:
            waits = waited if isinstance(waited, dict) else {}
            enter_place(
                Place(identity, root.workflow_id, parked, waits.get("id"), bool(waits.get("timed_out")))
            )
        if definition is None:
            return
        if isinstance(waited, dict):
            await services.authorization.check_answer(
                str(waited.get("id")), timed_out=bool(waited.get("timed_out")), identity=identity
            )
        context = ActionContext(
            identity=identity,
            run_id=root.workflow_id,
            chain=_chain(input),
            definition=definition,
            connection=await services.catalogue.get(definition.connection),
            attempt=info.attempt,
            parked=parked,
            waited=waited is not None,
        )
        running = Upstream(
            context,
            services.http,
            services.grants,
            services.authorization,
            services.vouching,
            services.trail,
        )
        await running.credential()
        enter_action(running)


def as_failure(error: BylineError) -> ApplicationError:
    """Convert a domain error to a Temporal failure: its code as type, its message, its details, whether to retry."""
    delay = error.retry_after if isinstance(error, RateLimited) else None
    return ApplicationError(
        str(error),
        dict(error.details),
        type=error.code,
        non_retryable=not error.retryable,
        next_retry_delay=None if delay is None else timedelta(seconds=delay),
        category=_BENIGN if isinstance(error, PersonRequired) else ApplicationErrorCategory.UNSPECIFIED,
    )


def _carried(result: Any) -> Any:
    """Return the result if Temporal's payload converter accepts it; raises ValueError otherwise.

    Temporal itself would repeat the action when its result cannot be converted.
    """
    activity.payload_converter().to_payload(result)
    return result


def _told(error: Exception) -> str:
    """Return the message of an error over invalid data.

    Input values are left out of pydantic's messages, since they may come from an upstream's body.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    problems = (
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)
    )
    return f"{error.title} does not fit: {'; '.join(problems)}."


def _chain(input: ExecuteActivityInput) -> tuple[str, ...]:  # noqa: A002
    chain = read(input.headers, CHAIN_HEADER)
    return tuple(str(step) for step in chain) if isinstance(chain, list) else ()
