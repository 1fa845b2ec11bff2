"""Starts the run of a call, once: an equal call that is still owed an outcome attaches to the earlier run."""

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError
from temporalio.client import Client
from temporalio.common import (
    TypedSearchAttributes,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from engine.audit.trail import AuditEvent, AuditTrail
from engine.errors import KeyReused, TemporalUnreachable
from engine.identity.model import Identity, digest_call
from engine.identity.signing import SigningKeys
from engine.interceptors.client import carry_identity
from engine.interceptors.search_attributes import list_search_attributes
from engine.notifications.notifier import RunNotifier
from engine.runs.attaching import AttachableRuns
from engine.runs.caller import Caller
from engine.runs.permissions import CallPermissions
from engine.runs.records import RunRecords, build_run_row
from engine.tools.registry import OfferedWorkflow, Registry
from engine.wire import IDENTITY_TYPE


@dataclass(frozen=True, slots=True)
class StartedRun:
    """The run that serves a call. `is_attached` is true where an earlier call started it."""

    run_id: str
    is_attached: bool


@dataclass(frozen=True, slots=True)
class _OfferCall:
    offer: OfferedWorkflow
    workflow_arguments: list[Any]
    argument_digest: str
    caller: Caller
    idempotency_key: str | None
    retry_of: str | None

    def build_identity(self, run_id: str) -> Identity:
        caller = self.caller
        return Identity.for_run(
            caller.principal,
            caller.actor,
            caller.trigger,
            run_id=run_id,
            tool_name=self.offer.name,
            call_digest=self.argument_digest,
        )


class RunStarter:
    """Starts runs on Temporal in their callers' names."""

    def __init__(
        self,
        *,
        registry: Registry,
        permissions: CallPermissions,
        attachable_runs: AttachableRuns,
        run_records: RunRecords,
        trail: AuditTrail,
        signing_keys: SigningKeys,
        notifier: RunNotifier,
        temporal_client: Client,
        task_queue: str,
    ) -> None:
        self._registry = registry
        self._permissions = permissions
        self._attachable_runs = attachable_runs
        self._run_records = run_records
        self._trail = trail
        self._signing_keys = signing_keys
        self._notifier = notifier
        self._temporal_client = temporal_client
        self._task_queue = task_queue

    async def start_or_attach(
        self,
        offer_name: str,
        arguments: Mapping[str, Any],
        caller: Caller,
        *,
        idempotency_key: str | None = None,
        retry_of: str | None = None,
    ) -> StartedRun:
        """Return the run that serves this call: one of the same call whose outcome was not delivered yet, or a new one.

        With an idempotency key, the same call is the one with the same key. Raises ToolUnknown, NotAllowed,
        ArgumentsInvalid, KeyReused or TemporalUnreachable.
        """
        offer = self._registry.find_offer(offer_name)
        await self._permissions.require_allowed(offer_name, caller)
        offer_call = _OfferCall(
            offer,
            offer.validate_arguments(arguments),
            digest_call(offer_name, arguments),
            caller,
            idempotency_key,
            retry_of,
        )
        if idempotency_key is not None:
            return await self._serve_keyed_call(offer_call)
        earlier_run_id = None if retry_of else await self._find_attachable_run(offer_call)
        if earlier_run_id is not None:
            return StartedRun(earlier_run_id, is_attached=True)
        return StartedRun(await self._register_and_start(offer_call), is_attached=False)

    async def _find_attachable_run(self, offer_call: _OfferCall) -> str | None:
        caller = offer_call.caller
        return await self._attachable_runs.find_attachable_run(
            caller.principal.id, offer_call.argument_digest, caller.trigger
        )

    async def _serve_keyed_call(self, offer_call: _OfferCall) -> StartedRun:
        """Return the run of an idempotency key.

        A new key registers and starts a run. A run that an earlier call registered and could not start is started now.
        Raises KeyReused or TemporalUnreachable.
        """
        assert offer_call.idempotency_key is not None  # noqa: S101 -- only calls with a key come here
        keyed_run = await self._run_records.find_by_idempotency_key(
            offer_call.caller.principal.id, offer_call.idempotency_key
        )
        if keyed_run is None:
            try:
                return StartedRun(await self._register_and_start(offer_call), is_attached=False)
            except IntegrityError:
                # The same call arrived twice at once, and the other one was registered first.
                keyed_run = await self._run_records.find_by_idempotency_key(
                    offer_call.caller.principal.id, offer_call.idempotency_key
                )
                if keyed_run is None:
                    raise
        if keyed_run.call_digest != offer_call.argument_digest:
            raise KeyReused(
                "This idempotency key belongs to another call. Use a new key for a call with other arguments."
            )
        if not keyed_run.has_begun:
            await self._start_workflow(offer_call, offer_call.build_identity(keyed_run.id))
        return StartedRun(keyed_run.id, is_attached=True)

    async def _register_and_start(self, offer_call: _OfferCall) -> str:
        identity = offer_call.build_identity(f"{offer_call.offer.name}-{secrets.token_urlsafe(16)}")
        new_run_row = build_run_row(
            identity, idempotency_key=offer_call.idempotency_key, retry_of=offer_call.retry_of
        )
        await self._trail.append_event(
            AuditEvent(kind="tool.called", identity=identity, run_id=identity.run_id), new_run_row
        )
        await self._start_workflow(offer_call, identity)
        return identity.run_id

    async def _start_workflow(self, offer_call: _OfferCall, identity: Identity) -> None:
        identity_token = await self._signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        notify_channels = await self._notifier.find_end_listeners(identity.principal_id, identity.trigger)
        try:
            # When a keyed call arrives twice at once, either request may be first to start the run of the key.
            with (
                carry_identity(identity_token, notify_channels=notify_channels),
                contextlib.suppress(WorkflowAlreadyStartedError),
            ):
                await self._temporal_client.start_workflow(
                    offer_call.offer.name,
                    args=offer_call.workflow_arguments,
                    id=identity.run_id,
                    task_queue=self._task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    search_attributes=TypedSearchAttributes(list_search_attributes(identity)),
                    static_summary=f"{offer_call.offer.declaration.title}, for {identity.name}",
                )
        except RPCError as rpc_error:
            if rpc_error.status not in {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED}:
                raise
            raise TemporalUnreachable(
                "The workflow engine does not answer, so the tool was not started. Try again in a moment."
            ) from rpc_error
