"""Receives signed deliveries at `POST /hooks/{id}` and starts one run of the webhook's tool for each event.

Error responses repeat nothing of a delivery.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from mcp.server.transport_security import RequestBodyLimitMiddleware
from starlette.routing import Route, request_response

from engine.audit.trail import AuditTrail
from engine.errors import (
    ArgumentsInvalid,
    BylineError,
    DeliveryRefused,
    DeliveryUnfit,
    KeyReused,
    NotAllowed,
    PrincipalInactive,
    TemporalUnreachable,
    ToolUnknown,
    VaultSealBroken,
    WebhookUnknown,
)
from engine.identity.model import Actor, Principal
from engine.identity.principals import Principals
from engine.runs.records import RunRecords
from engine.runs.runs import Caller, Runs
from engine.webhooks.mapping import parse_delivery_body, read_event_id, require_event_id
from engine.webhooks.refusals import DeliveryRefusals
from engine.webhooks.signatures import SignatureScheme, SignedDelivery, get_event_id_pointer, verify_delivery
from engine.webhooks.webhooks import Webhook, Webhooks

log = structlog.get_logger()

HOOKS_PATH: Final = "/hooks"
_MAX_BODY_BYTES: Final = 1024 * 1024


def build_webhook_router(
    webhooks: Webhooks, principals: Principals, run_records: RunRecords, audit_trail: AuditTrail, runs: Runs
) -> APIRouter:
    """Build the router of the addresses that senders deliver to."""
    delivery_endpoint = _DeliveryEndpoint(
        webhooks, principals, run_records, runs, DeliveryRefusals(audit_trail)
    )
    limited_endpoint = RequestBodyLimitMiddleware(
        request_response(delivery_endpoint.receive_delivery), _MAX_BODY_BYTES
    )
    webhook_router = APIRouter()
    webhook_router.routes.append(
        Route(f"{HOOKS_PATH}/{{webhook}}", limited_endpoint, methods=["POST"], include_in_schema=False)
    )
    return webhook_router


@dataclass(frozen=True, slots=True)
class _DeliveryEndpoint:
    webhooks: Webhooks
    principals: Principals
    run_records: RunRecords
    runs: Runs
    delivery_refusals: DeliveryRefusals

    async def receive_delivery(self, request: Request) -> Response:
        """Check the signature before anything of the delivery is parsed, then start the run that it asks for."""
        delivery_body = await request.body()
        try:
            webhook, secrets_in_force = await self.webhooks.get_webhook_with_secrets(
                request.path_params["webhook"]
            )
            signed_delivery = verify_delivery(
                webhook.scheme, secrets_in_force, request.headers, delivery_body
            )
        except (WebhookUnknown, DeliveryRefused):
            self.delivery_refusals.count_unsigned_delivery()
            raise
        except VaultSealBroken as error:
            log.exception("webhook_secret_does_not_open")
            raise VaultSealBroken(
                "This webhook's secret does not open. An administrator finds why in the gateway's log."
            ) from error
        principal = await self.principals.find_principal(webhook.principal_id)
        assert principal is not None  # noqa: S101 -- the webhook's row refers to them
        try:
            signed_delivery.require_fresh(time.time(), webhook.tolerance_seconds)
            return await self._serve_delivery(
                webhook, principal, signed_delivery, request.headers, delivery_body
            )
        except TemporalUnreachable:
            # The delivery is valid. When the sender repeats it, the same idempotency key starts the run.
            raise
        except BylineError as error:
            await self.delivery_refusals.record_signed_refusal(
                webhook, principal, signed_delivery.delivery_mark, error
            )
            raise _hide_refusal_reason(error) from error

    async def _serve_delivery(
        self,
        webhook: Webhook,
        principal: Principal,
        signed_delivery: SignedDelivery,
        headers: Mapping[str, str],
        delivery_body: bytes,
    ) -> Response:
        delivery_document = parse_delivery_body(delivery_body)
        greeting_response = _answer_greeting(webhook.scheme, headers, delivery_document)
        if greeting_response is not None:
            return greeting_response
        if not webhook.is_active:
            raise NotAllowed(f"The webhook '{webhook.name}' is switched off.")
        if not principal.is_active:
            raise PrincipalInactive(principal.name)
        if not webhook.mapping.is_matched_by(delivery_document):
            return Response(status_code=HTTPStatus.NO_CONTENT)
        idempotency_key = (
            f"webhook:{webhook.id}:{_read_event_id(webhook, signed_delivery, delivery_document)}"
        )
        run_id = await self._find_started_run(principal, idempotency_key) or await self._start_run(
            webhook, principal, idempotency_key, delivery_document
        )
        return JSONResponse({"run_id": run_id}, HTTPStatus.ACCEPTED)

    async def _find_started_run(self, principal: Principal, idempotency_key: str) -> str | None:
        """Return the id of the run that an earlier delivery of the event started, or None.

        It is found even if the mapping has changed since and would make another call of the event.
        """
        keyed_run = await self.run_records.find_by_idempotency_key(principal.id, idempotency_key)
        return keyed_run.id if keyed_run is not None and keyed_run.has_begun else None

    async def _start_run(
        self, webhook: Webhook, principal: Principal, idempotency_key: str, delivery_document: object
    ) -> str:
        caller = Caller(principal, Actor("webhook", webhook.id, webhook.name), "webhook")
        started_run = await self.runs.start_or_attach(
            webhook.tool_name,
            webhook.mapping.build_arguments(delivery_document),
            caller,
            idempotency_key=idempotency_key,
        )
        return started_run.run_id


def _read_event_id(webhook: Webhook, signed_delivery: SignedDelivery, delivery_document: object) -> str:
    json_pointer = webhook.mapping.event_id or get_event_id_pointer(webhook.scheme)
    if json_pointer is not None:
        return read_event_id(delivery_document, json_pointer)
    return require_event_id(signed_delivery.event_id or "")


def _answer_greeting(
    signature_scheme: SignatureScheme, headers: Mapping[str, str], delivery_document: object
) -> Response | None:
    """Answer a delivery that only tests the address, as GitHub and Slack send it. None for any other delivery."""
    if signature_scheme == "github" and headers.get("x-github-event") == "ping":
        return Response(status_code=HTTPStatus.NO_CONTENT)
    if (
        signature_scheme == "slack"
        and isinstance(delivery_document, dict)
        and delivery_document.get("type") == "url_verification"
    ):
        return JSONResponse({"challenge": delivery_document.get("challenge")})
    return None


def _hide_refusal_reason(error: BylineError) -> BylineError:
    """Translate an error into what the sender may know: nothing about the principal, the policy or the tool."""
    match error:
        case ArgumentsInvalid():
            return DeliveryUnfit(
                "What the webhook takes from the body does not fit. The audit trail says what."
            )
        case KeyReused():
            return DeliveryUnfit("This event came before, and asked for something else.")
        case NotAllowed() | PrincipalInactive() | ToolUnknown():
            return NotAllowed("This webhook may not begin a run now. The audit trail says why.")
        case _:
            return error
