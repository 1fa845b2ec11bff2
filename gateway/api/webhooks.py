"""REST routes for webhooks: make, read, change, give a new secret, delete. A secret is shown once, when it is made."""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field, SecretStr

from engine.registry import Registry
from engine.services import Services
from engine.webhooks.mapping import DeliveryMapping
from engine.webhooks.signatures import Scheme
from engine.webhooks.webhooks import TOLERANCE_SECONDS, Changes, Made, Webhook
from gateway.api.bodies import Body
from gateway.api.callers import CallingInPerson
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page, position
from gateway.api.etags import IfMatch, stale, tag
from gateway.api.problems import problems
from gateway.hooks import HOOKS_PATH
from gateway.protected_resource import API_PATH

_LONGEST_OVERLAP: Final = 7 * 24 * 3600

Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Told as the actor of its runs.",
    ),
]
Tolerance = Annotated[
    int, Field(ge=10, le=3600, description="How far from now a delivery's signed time may be, in seconds.")
]
SenderSecret = Annotated[
    SecretStr | None, Field(description="The secret to check signatures with, where the sender gives it.")
]
WebhookId = Annotated[str, Path(max_length=100)]


class NewWebhook(Body):
    """What a webhook is to be."""

    name: Name
    tool: str = Field(max_length=64)
    scheme: Scheme = Field(description="How the sender signs.")
    mapping: DeliveryMapping
    tolerance_seconds: Tolerance = TOLERANCE_SECONDS
    principal_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]{1,100}$",
        description="Who it acts as: you, unless an administrator names a service.",
    )
    secret: SenderSecret = None


class WebhookChanges(Body):
    """What to change. A field that is left out stays as it is."""

    name: Name | None = None
    mapping: DeliveryMapping | None = None
    tolerance_seconds: Tolerance | None = None
    active: bool | None = Field(default=None, description="False refuses every delivery.")


class NewSecret(Body):
    """The next secret, and how long the previous one stays valid."""

    secret: SenderSecret = None
    overlap_seconds: int = Field(
        default=24 * 3600, ge=0, le=_LONGEST_OVERLAP, description="0 where the old one got known."
    )


class WebhookShown(BaseModel):
    """A webhook, without its secret."""

    id: str
    url: str = Field(description="Where the sender delivers to.")
    name: str
    tool: str
    scheme: Scheme
    mapping: DeliveryMapping
    tolerance_seconds: int
    principal_id: str = Field(description="Who its runs act as.")
    active: bool
    created_at: datetime
    updated_at: datetime


class WebhookMade(WebhookShown):
    """A webhook with the secret that was made for it."""

    secret: str | None = Field(
        description="For the sender, shown this once; null where the sender has given it, or is still to."
    )


class _Webhooks:
    """What the webhook routes share."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self.owner = services.webhooks
        self._registry = registry
        self._public_url = services.settings.public_url

    def require_fit(self, mapping: DeliveryMapping, name: str) -> None:
        tool = self._registry.tool(name)
        mapping.require_fit(tool.input_schema, tool.input_type)

    def shown(self, webhook: Webhook) -> WebhookShown:
        return WebhookShown(
            id=webhook.id,
            url=f"{self._public_url}{HOOKS_PATH}/{webhook.id}",
            name=webhook.name,
            tool=webhook.tool,
            scheme=webhook.scheme,
            mapping=webhook.mapping,
            tolerance_seconds=webhook.tolerance_seconds,
            principal_id=webhook.principal_id,
            active=webhook.active,
            created_at=webhook.created_at,
            updated_at=webhook.updated_at,
        )

    def shown_once(self, made: Made) -> WebhookMade:
        return WebhookMade(**dict(self.shown(made.webhook)), secret=made.secret)


def routes(services: Services, registry: Registry) -> APIRouter:
    """Build the router of `/webhooks`, `/webhooks/{webhook_id}` and its secret."""
    router = APIRouter(tags=["webhooks"])
    webhooks = _Webhooks(services, registry)
    _made_and_read(router, webhooks, services)
    _changed(router, webhooks)
    return router


def _made_and_read(router: APIRouter, webhooks: _Webhooks, services: Services) -> None:
    cursors = Cursors(services.vault, "webhooks")

    @router.get(
        "/webhooks",
        summary="List the webhooks that act as you, and as services if you are an administrator, newest first",
        responses=problems(400, 403, 422),
    )
    async def list_webhooks(
        caller: CallingInPerson, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[WebhookShown]:
        found = await webhooks.owner.reachable(caller.principal, limit=limit + 1, after=cursors.place(after))
        positions = [position((one.created_at, one.id)) for one in found]
        return cursors.page([webhooks.shown(one) for one in found], positions, limit)

    @router.post(
        "/webhooks",
        summary="Make a webhook",
        status_code=HTTPStatus.CREATED,
        responses=problems(403, 404, 422),
    )
    async def create_webhook(caller: CallingInPerson, new: NewWebhook, response: Response) -> WebhookMade:
        principal = await webhooks.owner.declarable(caller.principal, new.principal_id)
        webhooks.require_fit(new.mapping, new.tool)
        await services.policy.require(principal, new.tool)
        made = await webhooks.owner.create(
            caller.principal,
            principal,
            name=new.name,
            tool=new.tool,
            scheme=new.scheme,
            mapping=new.mapping,
            tolerance_seconds=new.tolerance_seconds,
            secret=_plain(new.secret),
        )
        response.headers["Location"] = f"{API_PATH}/webhooks/{made.webhook.id}"
        tag(response, made.webhook.version)
        return webhooks.shown_once(made)

    @router.get(
        "/webhooks/{webhook_id}",
        summary="Get a webhook, with the ETag that a change takes",
        responses=problems(403, 404, 422),
    )
    async def get_webhook(caller: CallingInPerson, webhook_id: WebhookId, response: Response) -> WebhookShown:
        webhook = await webhooks.owner.get(caller.principal, webhook_id)
        tag(response, webhook.version)
        return webhooks.shown(webhook)


def _changed(router: APIRouter, webhooks: _Webhooks) -> None:
    @router.patch(
        "/webhooks/{webhook_id}",
        summary="Change a webhook; who it acts as, its tool and its scheme stay",
        responses=problems(403, 404, 412, 422, 428),
    )
    async def change_webhook(
        caller: CallingInPerson,
        webhook_id: WebhookId,
        precondition: IfMatch,
        changes: WebhookChanges,
        response: Response,
    ) -> WebhookShown:
        webhook = await webhooks.owner.get(caller.principal, webhook_id)
        precondition.check(webhook.version)
        if changes.mapping is not None:
            webhooks.require_fit(changes.mapping, webhook.tool)
        wanted = Changes(changes.name, changes.mapping, changes.tolerance_seconds, changes.active)
        changed = await webhooks.owner.change(caller.principal, webhook, wanted)
        if changed is None:
            raise stale()
        tag(response, changed.version)
        return webhooks.shown(changed)

    @router.post(
        "/webhooks/{webhook_id}/secret",
        summary="Give a webhook a new secret: the one you send, or one that is made",
        responses=problems(403, 404, 412, 422, 428),
    )
    async def rotate_webhook_secret(
        caller: CallingInPerson,
        webhook_id: WebhookId,
        precondition: IfMatch,
        new: NewSecret,
        response: Response,
    ) -> WebhookMade:
        webhook = await webhooks.owner.get(caller.principal, webhook_id)
        precondition.check(webhook.version)
        overlap = timedelta(seconds=new.overlap_seconds)
        made = await webhooks.owner.rotate(caller.principal, webhook, overlap, _plain(new.secret))
        if made is None:
            raise stale()
        tag(response, made.webhook.version)
        return webhooks.shown_once(made)

    @router.delete(
        "/webhooks/{webhook_id}",
        summary="Delete a webhook; its runs go on",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 412, 422, 428),
    )
    async def delete_webhook(caller: CallingInPerson, webhook_id: WebhookId, precondition: IfMatch) -> None:
        webhook = await webhooks.owner.get(caller.principal, webhook_id)
        precondition.check(webhook.version)
        if not await webhooks.owner.delete(caller.principal, webhook):
            raise stale()


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
