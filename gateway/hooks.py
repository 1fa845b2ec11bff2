"""Receives signed deliveries at `POST /hooks/{id}` and starts one run of the webhook's tool for each event.

Error responses repeat nothing of a delivery.
"""

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from mcp.server.transport_security import RequestBodyLimitMiddleware
from starlette.routing import Route, request_response

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
from engine.services import Services
from engine.webhooks.mapping import event_id, event_id_at, read_body
from engine.webhooks.refusals import Refusals
from engine.webhooks.signatures import Scheme, Signed, event_id_pointer, verify
from engine.webhooks.webhooks import Webhook
from gateway.runs.runs import Caller, Runs

log = structlog.get_logger()

HOOKS_PATH: Final = "/hooks"
_LARGEST_BODY: Final = 1024 * 1024


def hooks(services: Services, runs: Runs) -> APIRouter:
    """Build the router of the addresses that senders deliver to."""
    endpoint = RequestBodyLimitMiddleware(request_response(_Hooks(services, runs).receive), _LARGEST_BODY)
    router = APIRouter()
    router.routes.append(
        Route(f"{HOOKS_PATH}/{{webhook}}", endpoint, methods=["POST"], include_in_schema=False)
    )
    return router


class _Hooks:
    def __init__(self, services: Services, runs: Runs) -> None:
        self._services = services
        self._runs = runs
        self._refusals = Refusals(services.trail)

    async def receive(self, request: Request) -> Response:
        """Check the signature before anything of the delivery is parsed, then start the run that it asks for."""
        body = await request.body()
        try:
            webhook, in_force = await self._services.webhooks.receiving(request.path_params["webhook"])
            signed = verify(webhook.scheme, in_force, request.headers, body)
        except (WebhookUnknown, DeliveryRefused):
            self._refusals.unsigned()
            raise
        except VaultSealBroken as error:
            log.exception("webhook_secret_does_not_open")
            raise VaultSealBroken(
                "This webhook's secret does not open. An administrator finds why in the gateway's log."
            ) from error
        principal = await self._services.principals.get(webhook.principal_id)
        assert principal is not None  # noqa: S101 -- the webhook's row refers to them
        try:
            signed.require_fresh(time.time(), webhook.tolerance_seconds)
            return await self._serve(webhook, principal, signed, request.headers, body)
        except TemporalUnreachable:
            # The delivery is valid. When the sender repeats it, the same idempotency key starts the run.
            raise
        except BylineError as error:
            await self._refusals.signed(webhook, principal, signed.mark, error)
            raise _told(error) from error

    async def _serve(
        self, webhook: Webhook, principal: Principal, signed: Signed, headers: Mapping[str, str], body: bytes
    ) -> Response:
        document = read_body(body)
        greeting = _greeting(webhook.scheme, headers, document)
        if greeting is not None:
            return greeting
        if not webhook.active:
            raise NotAllowed(f"The webhook '{webhook.name}' is switched off.")
        if not principal.active:
            raise PrincipalInactive(principal.name)
        if not webhook.mapping.is_meant(document):
            return Response(status_code=HTTPStatus.NO_CONTENT)
        key = f"webhook:{webhook.id}:{_event(webhook, signed, document)}"
        run_id = await self._begun(principal, key) or await self._begin(webhook, principal, key, document)
        return JSONResponse({"run_id": run_id}, HTTPStatus.ACCEPTED)

    async def _begun(self, principal: Principal, key: str) -> str | None:
        """Return the id of the run that an earlier delivery of the event started, or None.

        It is found even if the mapping has changed since and would make another call of the event.
        """
        known = await self._services.runs.by_key(principal.id, key)
        return known.id if known is not None and known.begun else None

    async def _begin(self, webhook: Webhook, principal: Principal, key: str, document: object) -> str:
        caller = Caller(principal, Actor("webhook", webhook.id, webhook.name), "webhook")
        serving = await self._runs.call(webhook.tool, webhook.mapping.call(document), caller, key=key)
        return serving.run_id


def _event(webhook: Webhook, signed: Signed, document: object) -> str:
    pointer = webhook.mapping.event_id or event_id_pointer(webhook.scheme)
    if pointer is not None:
        return event_id_at(document, pointer)
    return event_id(signed.event_id or "")


def _greeting(scheme: Scheme, headers: Mapping[str, str], document: object) -> Response | None:
    """Answer a delivery that only tests the address, as GitHub and Slack send it. None for any other delivery."""
    if scheme == "github" and headers.get("x-github-event") == "ping":
        return Response(status_code=HTTPStatus.NO_CONTENT)
    if scheme == "slack" and isinstance(document, dict) and document.get("type") == "url_verification":
        return JSONResponse({"challenge": document.get("challenge")})
    return None


def _told(error: BylineError) -> BylineError:
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
