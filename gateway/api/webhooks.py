"""REST routes for webhooks: make, read, change, give a new secret, delete. A secret is shown once, when it is made."""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field, SecretStr

from engine.policy.policy import Policy
from engine.tools.registry import Registry
from engine.vault.vault import Vault
from engine.webhooks.mapping import DeliveryMapping
from engine.webhooks.signatures import SignatureScheme
from engine.webhooks.webhooks import (
    DEFAULT_TOLERANCE_SECONDS,
    Webhook,
    Webhooks,
    WebhookUpdate,
    WebhookWithSecret,
)
from gateway.api.authentication import InPersonCaller
from gateway.api.cursors import (
    DEFAULT_PAGE_ITEMS,
    ListCursors,
    Page,
    PageCursor,
    PageLimit,
    to_cursor_position,
)
from gateway.api.etags import IfMatch, build_stale_error, set_etag
from gateway.api.problems import describe_problems
from gateway.api.request_bodies import RequestBody
from gateway.protected_resource import API_PATH
from gateway.webhook_deliveries import HOOKS_PATH

_MAX_OVERLAP_SECONDS: Final = 7 * 24 * 3600

WebhookName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="The name of the actor of its runs.",
    ),
]
ToleranceSeconds = Annotated[
    int,
    Field(ge=10, le=3600, description="How far the signed time of a delivery may be from now, in seconds."),
]
SenderSecret = Annotated[
    SecretStr | None, Field(description="The secret to verify signatures with, if the sender sets it.")
]
WebhookId = Annotated[str, Path(max_length=100)]


class NewWebhook(RequestBody):
    """The webhook to create."""

    name: WebhookName
    tool: str = Field(max_length=64)
    scheme: SignatureScheme = Field(description="The scheme by which the sender signs.")
    mapping: DeliveryMapping
    tolerance_seconds: ToleranceSeconds = DEFAULT_TOLERANCE_SECONDS
    principal_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]{1,100}$",
        description="The principal that it acts as. If omitted, you. An administrator may name a service.",
    )
    secret: SenderSecret = None


class WebhookChanges(RequestBody):
    """The changes to a webhook. A field that is omitted stays as it is."""

    name: WebhookName | None = None
    mapping: DeliveryMapping | None = None
    tolerance_seconds: ToleranceSeconds | None = None
    active: bool | None = Field(default=None, description="If false, every delivery is refused.")


class NewSecret(RequestBody):
    """The next secret, and how long the previous one stays valid."""

    secret: SenderSecret = None
    overlap_seconds: int = Field(
        default=24 * 3600,
        ge=0,
        le=_MAX_OVERLAP_SECONDS,
        description="How many seconds the previous secret stays valid. Send 0 if it leaked.",
    )


class WebhookShown(BaseModel):
    """A webhook, without its secret."""

    id: str
    url: str = Field(description="The address to which the sender delivers.")
    name: str
    tool: str
    scheme: SignatureScheme
    mapping: DeliveryMapping
    tolerance_seconds: int
    principal_id: str = Field(description="The principal that its runs act as.")
    active: bool
    created_at: datetime
    updated_at: datetime


class WebhookMade(WebhookShown):
    """A webhook, with the secret that was created for it."""

    secret: str | None = Field(
        description="The secret for the sender, shown only once. Null if the sender sets the secret."
    )


class _WebhookRoutesContext:
    """What the webhook routes share."""

    def __init__(self, webhooks: Webhooks, registry: Registry, *, public_url: str) -> None:
        self.webhooks = webhooks
        self._registry = registry
        self._public_url = public_url

    def require_fitting_mapping(self, mapping: DeliveryMapping, tool_name: str) -> None:
        tool = self._registry.find_tool(tool_name)
        mapping.require_tool_fit(tool.input_schema, tool.input_type)

    def to_webhook_shown(self, webhook: Webhook) -> WebhookShown:
        return WebhookShown(
            id=webhook.id,
            url=f"{self._public_url}{HOOKS_PATH}/{webhook.id}",
            name=webhook.name,
            tool=webhook.tool_name,
            scheme=webhook.scheme,
            mapping=webhook.mapping,
            tolerance_seconds=webhook.tolerance_seconds,
            principal_id=webhook.principal_id,
            active=webhook.is_active,
            created_at=webhook.created_at,
            updated_at=webhook.updated_at,
        )

    def to_webhook_made(self, made_webhook: WebhookWithSecret) -> WebhookMade:
        return WebhookMade(
            **dict(self.to_webhook_shown(made_webhook.webhook)), secret=made_webhook.webhook_secret
        )


def build_routes(
    webhooks: Webhooks, policy: Policy, registry: Registry, vault: Vault, public_url: str
) -> APIRouter:
    """Build the router of `/webhooks`, `/webhooks/{webhook_id}` and its secret."""
    router = APIRouter(tags=["webhooks"])
    routes_context = _WebhookRoutesContext(webhooks, registry, public_url=public_url)
    _add_making_routes(router, routes_context, policy, ListCursors(vault, "webhooks"))
    _add_changing_routes(router, routes_context)
    return router


def _add_making_routes(
    router: APIRouter, routes_context: _WebhookRoutesContext, policy: Policy, webhook_cursors: ListCursors
) -> None:
    @router.get(
        "/webhooks",
        summary="List the webhooks that act as you, and as services if you are an administrator, newest first",
        responses=describe_problems(400, 403, 422),
    )
    async def list_webhooks(
        caller: InPersonCaller, after: PageCursor = None, limit: PageLimit = DEFAULT_PAGE_ITEMS
    ) -> Page[WebhookShown]:
        page_webhooks = await routes_context.webhooks.list_webhooks(
            caller.principal, limit=limit + 1, after_place=webhook_cursors.open_time_and_id(after)
        )
        cursor_positions = [to_cursor_position((webhook.created_at, webhook.id)) for webhook in page_webhooks]
        return webhook_cursors.build_page(
            [routes_context.to_webhook_shown(webhook) for webhook in page_webhooks], cursor_positions, limit
        )

    @router.post(
        "/webhooks",
        summary="Create a webhook",
        status_code=HTTPStatus.CREATED,
        responses=describe_problems(403, 404, 422),
    )
    async def create_webhook(
        caller: InPersonCaller, new_webhook: NewWebhook, response: Response
    ) -> WebhookMade:
        principal = await routes_context.webhooks.resolve_principal(
            caller.principal, new_webhook.principal_id
        )
        routes_context.require_fitting_mapping(new_webhook.mapping, new_webhook.tool)
        await policy.require_permission(principal, new_webhook.tool)
        made_webhook = await routes_context.webhooks.create_webhook(
            caller.principal,
            principal,
            webhook_name=new_webhook.name,
            tool_name=new_webhook.tool,
            scheme=new_webhook.scheme,
            delivery_mapping=new_webhook.mapping,
            tolerance_seconds=new_webhook.tolerance_seconds,
            sender_secret=_reveal_secret(new_webhook.secret),
        )
        response.headers["Location"] = f"{API_PATH}/webhooks/{made_webhook.webhook.id}"
        set_etag(response, made_webhook.webhook.version)
        return routes_context.to_webhook_made(made_webhook)

    @router.get(
        "/webhooks/{webhook_id}",
        summary="Get a webhook, with the ETag that a change requires",
        responses=describe_problems(403, 404, 422),
    )
    async def get_webhook(caller: InPersonCaller, webhook_id: WebhookId, response: Response) -> WebhookShown:
        webhook = await routes_context.webhooks.get_webhook(caller.principal, webhook_id)
        set_etag(response, webhook.version)
        return routes_context.to_webhook_shown(webhook)


def _add_changing_routes(router: APIRouter, routes_context: _WebhookRoutesContext) -> None:
    @router.patch(
        "/webhooks/{webhook_id}",
        summary="Change a webhook, except its principal, its tool and its scheme",
        responses=describe_problems(403, 404, 412, 422, 428),
    )
    async def change_webhook(
        caller: InPersonCaller,
        webhook_id: WebhookId,
        precondition: IfMatch,
        requested_changes: WebhookChanges,
        response: Response,
    ) -> WebhookShown:
        webhook = await routes_context.webhooks.get_webhook(caller.principal, webhook_id)
        precondition.check_version(webhook.version)
        if requested_changes.mapping is not None:
            routes_context.require_fitting_mapping(requested_changes.mapping, webhook.tool_name)
        webhook_changes = WebhookUpdate(
            requested_changes.name,
            requested_changes.mapping,
            requested_changes.tolerance_seconds,
            requested_changes.active,
        )
        changed_webhook = await routes_context.webhooks.change_webhook(
            caller.principal, webhook, webhook_changes
        )
        if changed_webhook is None:
            raise build_stale_error()
        set_etag(response, changed_webhook.version)
        return routes_context.to_webhook_shown(changed_webhook)

    @router.post(
        "/webhooks/{webhook_id}/secret",
        summary="Give a webhook a new secret, which you send or Byline creates",
        responses=describe_problems(403, 404, 412, 422, 428),
    )
    async def rotate_webhook_secret(
        caller: InPersonCaller,
        webhook_id: WebhookId,
        precondition: IfMatch,
        new_secret: NewSecret,
        response: Response,
    ) -> WebhookMade:
        webhook = await routes_context.webhooks.get_webhook(caller.principal, webhook_id)
        precondition.check_version(webhook.version)
        overlap_period = timedelta(seconds=new_secret.overlap_seconds)
        made_webhook = await routes_context.webhooks.rotate_secret(
            caller.principal, webhook, overlap_period, _reveal_secret(new_secret.secret)
        )
        if made_webhook is None:
            raise build_stale_error()
        set_etag(response, made_webhook.webhook.version)
        return routes_context.to_webhook_made(made_webhook)

    @router.delete(
        "/webhooks/{webhook_id}",
        summary="Delete a webhook; its runs continue",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(403, 404, 412, 422, 428),
    )
    async def delete_webhook(caller: InPersonCaller, webhook_id: WebhookId, precondition: IfMatch) -> None:
        webhook = await routes_context.webhooks.get_webhook(caller.principal, webhook_id)
        precondition.check_version(webhook.version)
        if not await routes_context.webhooks.delete_webhook(caller.principal, webhook):
            raise build_stale_error()


def _reveal_secret(sender_secret: SecretStr | None) -> str | None:
    return None if sender_secret is None else sender_secret.get_secret_value()
