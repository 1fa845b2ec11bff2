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
    """A channel on which the caller is notified."""

    id: str
    kind: ChannelKind
    label: str = Field(description="A part of the address, by which you recognize it.")
    events: list[NotificationEvent]
    created_at: datetime


class ChannelMade(ChannelShown):
    """A new channel, with its signing key, which is shown only here."""

    secret: str | None = Field(
        description="The key that signs the notes to a webhook (Standard Webhooks). Null for other kinds."
    )


class NewChannel(RequestBody):
    """The channel to add."""

    kind: ChannelKind
    address: str = Field(
        max_length=2000,
        description="An email address, or the URL of a Slack-compatible webhook or of your own receiver.",
    )
    events: list[NotificationEvent] = Field(
        default=["waiting", "ended"],
        max_length=10,
        description="The events to notify of. Those named `chat_…` concern runs that a chat client started.",
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
        summary="Add a channel; only this response shows a webhook's secret",
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
        summary="Send a note to a channel now, and return whether it was accepted",
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
