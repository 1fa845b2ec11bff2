"""REST routes for the caller's notification channels: list, add, try, remove. They return no full address."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from engine.notifications.channels import Channel, ChannelKind, Event
from engine.services import Services
from gateway.api.bodies import Body
from gateway.api.callers import Calling, CallingInPerson
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page, Place, position
from gateway.api.problems import problems
from gateway.protected_resource import API_PATH

_ID = Annotated[str, Path(max_length=100, pattern=r"^[\x21-\x7e]+$")]


class ChannelShown(BaseModel):
    """One place where the caller is told."""

    id: str
    kind: ChannelKind
    label: str = Field(description="Enough of the address to know it again.")
    events: list[Event]
    created_at: datetime


class ChannelMade(ChannelShown):
    """A new channel, and what is never shown again."""

    secret: str | None = Field(
        description="The key that signs what a webhook is sent (Standard Webhooks); null for other kinds."
    )


class NewChannel(Body):
    """A channel to add."""

    kind: ChannelKind
    address: str = Field(
        max_length=2000,
        description="An email address, or the URL of a Slack-compatible incoming webhook or of one's own receiver.",
    )
    events: list[Event] = Field(
        default=["waiting", "ended"],
        max_length=10,
        description="What to tell. The events named `chat_…` are of runs that a chat client began.",
    )


def routes(services: Services) -> APIRouter:
    """Build the router of `/channels` and what is below it."""
    router = APIRouter(tags=["notifications"])
    cursors = Cursors(services.vault, "channels")

    @router.get("/channels", summary="List your channels, oldest first", responses=problems(400, 422))
    async def list_channels(
        caller: Calling, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[ChannelShown]:
        reached = cursors.place(after)
        channels = [
            each
            for each in await services.channels.of(caller.principal.id)
            if reached is None or _place(each) > reached
        ]
        page = channels[: limit + 1]
        return cursors.page([_shown(each) for each in page], [position(_place(each)) for each in page], limit)

    @router.post(
        "/channels",
        summary="Add a channel; a webhook's secret is in this answer alone",
        status_code=HTTPStatus.CREATED,
        responses=problems(403, 422),
    )
    async def add_channel(caller: CallingInPerson, new: NewChannel, response: Response) -> ChannelMade:
        channel, destination = await services.notifier.add(
            caller.principal, new.kind, new.address, new.events
        )
        response.headers["Location"] = f"{API_PATH}/channels/{channel.id}"
        return ChannelMade(**_shown(channel).model_dump(), secret=destination.secret)

    @router.get("/channels/{channel_id}", summary="Get one of your channels", responses=problems(404, 422))
    async def get_channel(caller: Calling, channel_id: _ID) -> ChannelShown:
        return _shown(await services.channels.owned(channel_id, caller.principal))

    @router.delete(
        "/channels/{channel_id}",
        summary="Remove one of your channels",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 422),
    )
    async def remove_channel(caller: CallingInPerson, channel_id: _ID) -> None:
        await services.channels.remove(channel_id, caller.principal)

    @router.post(
        "/channels/{channel_id}/test",
        summary="Send a note there now, and say whether it was taken",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 422, 429, 502),
    )
    async def test_channel(caller: CallingInPerson, channel_id: _ID) -> None:
        await services.notifier.test(channel_id, caller.principal)

    return router


def _place(channel: Channel) -> Place:
    """Return where a channel stands in its list."""
    return channel.created_at, channel.id


def _shown(channel: Channel) -> ChannelShown:
    return ChannelShown(
        id=channel.id,
        kind=channel.kind,
        label=channel.label,
        events=list(channel.events),
        created_at=channel.created_at,
    )
