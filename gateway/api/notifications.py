"""Where the caller is told that a run waits or ended: their channels, and no one else's; no address comes back out."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from engine.errors import NotAllowed
from engine.notifications.channels import Channel, ChannelKind, Event
from engine.services import Services
from gateway.api.callers import Calling
from gateway.api.cursors import After, Cursors, Limit, Page
from gateway.api.problems import problems
from gateway.runs import Caller

_ID = Annotated[str, Path(max_length=100)]


class ChannelShown(BaseModel):
    """One place where the caller is told."""

    id: str
    kind: ChannelKind
    label: str = Field(description="Enough of the address to know it again.")
    events: list[Event]
    created_at: datetime


class ChannelAdded(ChannelShown):
    """A new channel, and what is never shown again."""

    secret: str | None = Field(
        description="The key that signs what a webhook is sent (Standard Webhooks); null for other kinds."
    )


class ChannelWanted(BaseModel):
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
    """List, add, try and remove one's own channels."""
    router = APIRouter(tags=["notifications"])
    cursors = Cursors(services.keyring, "channels")

    @router.get("/channels", responses=problems(400, 422))
    async def list_channels(caller: Calling, limit: Limit = 50, after: After = None) -> Page[ChannelShown]:
        """The caller's channels, oldest first."""
        reached = tuple(map(str, cursors.open(after) or ()))
        channels = [
            each for each in await services.channels.of(caller.principal.id) if _place(each) > reached
        ]
        page = channels[: limit + 1]
        return cursors.page([_shown(each) for each in page], [[*_place(each)] for each in page], limit)

    @router.post("/channels", status_code=HTTPStatus.CREATED, responses=problems(403, 422))
    async def add_channel(caller: Calling, wanted: ChannelWanted) -> ChannelAdded:
        """Add a channel; a webhook's secret is in this answer alone."""
        _whole(caller)
        channel, destination = await services.notifier.add(
            caller.principal, wanted.kind, wanted.address, wanted.events
        )
        return ChannelAdded(**_shown(channel).model_dump(), secret=destination.secret)

    @router.delete(
        "/channels/{channel_id}", status_code=HTTPStatus.NO_CONTENT, responses=problems(403, 404, 422)
    )
    async def remove_channel(caller: Calling, channel_id: _ID) -> None:
        """Tell the caller nothing there any more."""
        _whole(caller)
        await services.channels.remove(channel_id, caller.principal)

    @router.post(
        "/channels/{channel_id}/test",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 422, 429, 502),
    )
    async def test_channel(caller: Calling, channel_id: _ID) -> None:
        """Send a note there now, and say whether it was taken."""
        _whole(caller)
        await services.notifier.test(channel_id, caller.principal)

    return router


def _place(channel: Channel) -> tuple[str, ...]:
    """Where a channel stands in its list."""
    return channel.created_at.isoformat(), channel.id


def _shown(channel: Channel) -> ChannelShown:
    return ChannelShown(
        id=channel.id,
        kind=channel.kind,
        label=channel.label,
        events=list(channel.events),
        created_at=channel.created_at,
    )


def _whole(caller: Caller) -> None:
    """Raise NotAllowed for a token that was made for some tools alone."""
    if caller.tools is not None:
        raise NotAllowed(
            "A token for some tools alone changes no channel. Sign in, or use one without that limit."
        )
