"""REST routes for the caller's notification channels: list, add, try, remove. They return no full address."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from engine.notifications.channels import (
    ChannelKind,
    NotificationChannel,
    NotificationChannels,
    NotificationEvent,
)
from engine.notifications.notifier import RunNotifier
from engine.vault.vault import Vault
from gateway.api.authentication import ApiCaller, InPersonCaller
from gateway.api.cursors import (
    DEFAULT_PAGE_ITEMS,
    ListCursors,
    Page,
    PageCursor,
    PageLimit,
    TimeAndId,
    to_cursor_position,
)
from gateway.api.problems import describe_problems
from gateway.api.request_bodies import RequestBody
from gateway.protected_resource import API_PATH

_ChannelId = Annotated[str, Path(max_length=100, pattern=r"^[\x21-\x7e]+$")]


class ChannelShown(BaseModel):
    """One place where the caller is told."""

    id: str
    kind: ChannelKind
    label: str = Field(description="Enough of the address to know it again.")
    events: list[NotificationEvent]
    created_at: datetime


class ChannelMade(ChannelShown):
    """A new channel, and what is never shown again."""

    secret: str | None = Field(
        description="The key that signs what a webhook is sent (Standard Webhooks); null for other kinds."
    )


class NewChannel(RequestBody):
    """A channel to add."""

    kind: ChannelKind
    address: str = Field(
        max_length=2000,
        description="An email address, or the URL of a Slack-compatible incoming webhook or of one's own receiver.",
    )
    events: list[NotificationEvent] = Field(
        default=["waiting", "ended"],
        max_length=10,
        description="What to tell. The events named `chat_…` are of runs that a chat client began.",
    )


def build_routes(
    notification_channels: NotificationChannels, notifier: RunNotifier, vault: Vault
) -> APIRouter:
    """Build the router of `/channels` and what is below it."""
    router = APIRouter(tags=["notifications"])
    channel_cursors = ListCursors(vault, "channels")

    @router.get(
        "/channels", summary="List your channels, oldest first", responses=describe_problems(400, 422)
    )
    async def list_channels(
        caller: ApiCaller, after: PageCursor = None, limit: PageLimit = DEFAULT_PAGE_ITEMS
    ) -> Page[ChannelShown]:
        page_start = channel_cursors.open_time_and_id(after)
        channels = [
            channel
            for channel in await notification_channels.list_channels(caller.principal.id)
            if page_start is None or _to_time_and_id(channel) > page_start
        ]
        page_channels = channels[: limit + 1]
        return channel_cursors.build_page(
            [_to_channel_shown(channel) for channel in page_channels],
            [to_cursor_position(_to_time_and_id(channel)) for channel in page_channels],
            limit,
        )

    @router.post(
        "/channels",
        summary="Add a channel; a webhook's secret is in this answer alone",
        status_code=HTTPStatus.CREATED,
        responses=describe_problems(403, 422),
    )
    async def add_channel(caller: InPersonCaller, new_channel: NewChannel, response: Response) -> ChannelMade:
        channel, destination = await notifier.add_channel(
            caller.principal, new_channel.kind, new_channel.address, new_channel.events
        )
        response.headers["Location"] = f"{API_PATH}/channels/{channel.id}"
        return ChannelMade(**_to_channel_shown(channel).model_dump(), secret=destination.secret)

    @router.get(
        "/channels/{channel_id}", summary="Get one of your channels", responses=describe_problems(404, 422)
    )
    async def get_channel(caller: ApiCaller, channel_id: _ChannelId) -> ChannelShown:
        return _to_channel_shown(await notification_channels.get_owned_channel(channel_id, caller.principal))

    @router.delete(
        "/channels/{channel_id}",
        summary="Remove one of your channels",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(403, 404, 422),
    )
    async def remove_channel(caller: InPersonCaller, channel_id: _ChannelId) -> None:
        await notification_channels.remove_channel(channel_id, caller.principal)

    @router.post(
        "/channels/{channel_id}/test",
        summary="Send a note there now, and say whether it was taken",
        status_code=HTTPStatus.NO_CONTENT,
        responses=describe_problems(403, 404, 422, 429, 502),
    )
    async def test_channel(caller: InPersonCaller, channel_id: _ChannelId) -> None:
        await notifier.send_test_note(channel_id, caller.principal)

    return router


def _to_time_and_id(channel: NotificationChannel) -> TimeAndId:
    """Return where a channel stands in its list."""
    return channel.created_at, channel.id


def _to_channel_shown(channel: NotificationChannel) -> ChannelShown:
    return ChannelShown(
        id=channel.id,
        kind=channel.kind,
        label=channel.label,
        events=list(channel.events),
        created_at=channel.created_at,
    )
