"""Holds notes to telling the right person, once, by the channel they chose, and to holding up nobody."""

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.responses import Response
from temporalio.api.enums.v1 import EventType
from temporalio.service import RPCError

from engine.db.database import utc_now
from engine.errors import (
    AddressRefused,
    AnswerRequired,
    ArgumentsInvalid,
    BylineError,
    RequestRejected,
    TooSoon,
    UpstreamUnavailable,
)
from engine.identity.model import Actor, Principal, TriggerKind
from engine.identity.roles import ADMINISTRATOR_ROLE
from engine.notifications import messages
from engine.notifications.channels import ChannelKind, NotificationChannel, NotificationEvent
from engine.notifications.mail import MailSender
from engine.notifications.notifier import RunNotifier
from engine.notifications.posts import NotePoster
from engine.notifications.workflow import DueNote, RunNotice
from engine.outgoing.client import OutgoingClient
from engine.questions.ask_people import QuestionInput
from engine.questions.questions import AskingStep
from engine.runs.caller import Caller
from engine.runs.outcome import Failed, Finished
from engine.settings import NotificationSettings, OutgoingSettings
from engine.waiting.page_paths import PageLinks
from engine.waiting.waiters import ParkedAction
from examples.browser import Browser
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.support.administration import add_service, give_role
from tests.support.api_server import ApiServer, serve_api
from tests.support.foreign.process import free_port
from tests.support.page_server import PASSWORDS
from tests.support.platform import CONTOSO, NORTHWIND, Platform, wait_until
from tests.support.receivers import Receiver, run_mail_server, run_receiver
from tests.unit.test_errors import list_subclasses

SCRIPT = Actor("api_client", "script", "Script")
READ = {"account_id": NORTHWIND}
BOTH: tuple[NotificationEvent, ...] = ("waiting", "ended")
CHILD_STARTED_EVENT = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED
LOCAL = OutgoingSettings(allow_http=True, allow_private=True)


@dataclass
class NotifyingPlatform:
    """A platform whose worker tells people, with a mail server and a receiver that they have their channels at."""

    platform: Platform
    notifier: RunNotifier
    mail_port: int
    receiver: Receiver
    secrets: dict[str, str] = field(default_factory=dict)

    async def add_channel(
        self, person: Principal, kind: ChannelKind, place: str, events: tuple[NotificationEvent, ...] = BOTH
    ) -> NotificationChannel:
        """Add a channel: a mail address, or a path at the receiver."""
        address = place if kind == "email" else f"http://127.0.0.1:{self.receiver.port}{place}"
        channel, destination = await self.notifier.add_channel(person, kind, address, events)
        self.secrets[place] = destination.secret or ""
        return channel

    async def call_tool(
        self,
        arguments: Mapping[str, str],
        person: Principal,
        trigger: TriggerKind = "rest",
        tool: str = "read_once",
    ) -> str:
        """Call a tool otherwise than from a chat."""
        return (
            await self.platform.runs.starter.start_or_attach(tool, arguments, Caller(person, SCRIPT, trigger))
        ).run_id

    def list_notes_to(self, place: str) -> list[dict[str, Any]]:
        """What a person's own webhook was told, with every signature verified."""
        verify = Webhook(self.secrets[place]).verify
        return [verify(post.body, dict(post.headers)) for post in self.receiver.list_requests_to(place)]

    async def count_notes(self, run_id: str) -> int:
        """How many times a run had people told."""
        return await self.platform.count_events(run_id, CHILD_STARTED_EVENT)

    async def count_tries(self, workflow_id: str) -> int:
        """How often the undelivered notes of a workflow were tried."""
        try:
            description = await self.platform.temporal.get_workflow_handle(workflow_id).describe()
        except RPCError:
            return 0
        return max(
            (activity.attempt for activity in description.raw_description.pending_activities), default=0
        )


def build_notifier(
    idle_platform: Platform, mail: NotificationSettings, outgoing: OutgoingClient
) -> RunNotifier:
    """What tells people by this mail server, and calls what this allows."""
    services = idle_platform.services
    return RunNotifier(
        services.notification_channels,
        MailSender(mail, services.page_links),
        NotePoster(outgoing),
        services.authorization_requests,
        services.questions,
        services.run_records,
        services.principals,
        services.roles,
        services.catalogue,
        services.page_links,
    )


@asynccontextmanager
async def open_notifying_platform(idle_platform: Platform) -> AsyncIterator[NotifyingPlatform]:
    async with AsyncExitStack() as stack:
        receiving = await stack.enter_async_context(run_receiver())
        outgoing = await stack.enter_async_context(OutgoingClient(LOCAL))
        port = free_port()
        mail = NotificationSettings(
            smtp_host="127.0.0.1", smtp_port=port, smtp_tls="none", sender="Byline <byline@byline.example>"
        )
        notifier = build_notifier(idle_platform, mail, outgoing)
        await stack.enter_async_context(idle_platform.run_worker(notifier=notifier))
        await stack.enter_async_context(idle_platform.run_wake_up_delivery())
        yield NotifyingPlatform(idle_platform, notifier, port, receiving)


@pytest.fixture
async def notifying_platform(idle_platform: Platform) -> AsyncIterator[NotifyingPlatform]:
    async with open_notifying_platform(idle_platform) as notifying_platform:
        yield notifying_platform


async def test_a_run_that_waits_notifies_its_person_once_by_every_channel_and_nobody_else(
    notifying_platform: NotifyingPlatform, tmp_path: Path
) -> None:
    platform, alice = notifying_platform.platform, notifying_platform.platform.alice
    await notifying_platform.add_channel(alice, "email", "alice@example.com")
    await notifying_platform.add_channel(alice, "slack", "/services/alices-own-path")
    await notifying_platform.add_channel(alice, "webhook", "/alices-hook-path")
    await notifying_platform.add_channel(platform.bob, "webhook", "/bob")

    async with run_mail_server(notifying_platform.mail_port) as mailbox:
        first = await notifying_platform.call_tool(READ, alice)
        (request,) = await platform.wait_until_parked(first)

        async def has_arrived() -> bool:
            posts = [
                notifying_platform.receiver.list_requests_to(place)
                for place in ("/services/alices-own-path", "/alices-hook-path")
            ]
            return bool(mailbox.mails) and all(posts)

        await wait_until(has_arrived)
        second = await notifying_platform.call_tool({**READ, "label": "second"}, alice, "schedule")
        await platform.wait_until_parked(second)
        await platform.consent(request, alice)
        assert isinstance(await platform.wait_for_outcome(first), Finished)
        assert isinstance(await platform.wait_for_outcome(second), Finished)

        async def is_notified_of_both_ends() -> bool:
            return len(mailbox.mails) == 3 and len(notifying_platform.list_notes_to("/alices-hook-path")) == 3

        await wait_until(is_notified_of_both_ends)

    link = f"{platform.settings.public_url}/connect/{request.id}"
    waiting, *ends = notifying_platform.list_notes_to("/alices-hook-path")
    slack = notifying_platform.receiver.list_requests_to("/services/alices-own-path")[0].body.decode()
    mail = mailbox.mails[0]
    assert (waiting["type"], waiting["data"]["url"], waiting["data"]["run_id"]) == (
        "run.waiting",
        link,
        first,
    )
    assert {(end["type"], end["data"]["run_id"]) for end in ends} == {
        ("run.ended", first),
        ("run.ended", second),
    }
    assert mail.to == ["alice@example.com"]
    assert mail.message["Subject"] == "Read once waits for you"
    assert mail.message["From"] == "Byline <byline@byline.example>"
    for text in (mail.text, slack):
        assert link in text
        assert "sign in to Salesforce" in text or "sign in to" in text
    assert "Read once completed." in mailbox.mails[-1].text
    assert notifying_platform.receiver.list_requests_to("/bob") == []
    assert (await notifying_platform.count_notes(first), await notifying_platform.count_notes(second)) == (
        2,
        1,
    )

    # No note says what a run was given or found, and nothing that is kept says where notes go.
    sent_bytes = b"".join(post.body for post in notifying_platform.receiver.posts) + b"".join(
        received_mail.message.as_bytes() for received_mail in mailbox.mails
    )
    assert NORTHWIND.encode() not in sent_bytes
    stored_bytes = b"".join(path.read_bytes() for path in tmp_path.glob("byline.db*"))
    for workflow in (first, second, f"byline.notify:{first}:ended", f"byline.notify:{second}:ended"):
        history = await platform.temporal.get_workflow_handle(workflow).fetch_history()
        stored_bytes += b"".join(event.SerializeToString() for event in history.events)
    assert first.encode() in stored_bytes
    for secret in (
        "alice@example.com",
        "alices-own-path",
        "alices-hook-path",
        notifying_platform.secrets["/alices-hook-path"],
    ):
        assert secret.encode() not in stored_bytes


async def test_a_mail_server_that_is_down_delays_the_notes_and_no_run(
    notifying_platform: NotifyingPlatform,
) -> None:
    platform, alice, bob = (
        notifying_platform.platform,
        notifying_platform.platform.alice,
        notifying_platform.platform.bob,
    )
    await platform.give_grant("crm", alice)
    await notifying_platform.add_channel(alice, "email", "alice@example.com")
    await notifying_platform.add_channel(bob, "email", "bob@example.com")

    waits = await notifying_platform.call_tool(READ, bob)
    (request,) = await platform.wait_until_parked(waits)
    ends = await notifying_platform.call_tool(READ, alice)
    assert isinstance(await platform.wait_for_outcome(ends), Finished)

    async def has_tried() -> bool:
        return await notifying_platform.count_tries(f"byline.notify:{ends}:ended") >= 2

    await wait_until(has_tried)
    async with run_mail_server(notifying_platform.mail_port) as mailbox:

        async def has_notified_both() -> bool:
            return len(mailbox.mails) == 2

        await wait_until(has_notified_both)
    by_person = {mail.to[0]: mail.text for mail in mailbox.mails}
    assert request.id in by_person["bob@example.com"]
    assert ends in by_person["alice@example.com"]


async def test_a_note_says_in_words_how_a_run_ended_and_does_not_change(
    notifying_platform: NotifyingPlatform,
) -> None:
    platform, alice, bob = (
        notifying_platform.platform,
        notifying_platform.platform.alice,
        notifying_platform.platform.bob,
    )
    await platform.give_grant("crm", alice)
    await notifying_platform.add_channel(alice, "webhook", "/alice")
    await notifying_platform.add_channel(bob, "webhook", "/bob", ("ended",))

    good = await notifying_platform.call_tool(READ, alice, "webhook")
    bad = await notifying_platform.call_tool({"account_id": "001000000000000AAA"}, alice)
    waits = await notifying_platform.call_tool({"account_id": CONTOSO}, bob)
    await platform.wait_until_parked(waits)
    await platform.temporal.get_workflow_handle(waits).cancel()
    outcomes = [await platform.wait_for_outcome(run) for run in (good, bad, waits)]

    async def has_notified_all() -> bool:
        return (
            len(notifying_platform.list_notes_to("/alice")) == 2
            and len(notifying_platform.list_notes_to("/bob")) == 1
        )

    await wait_until(has_notified_all)
    ends = {
        end["data"]["run_id"]: end["data"]
        for end in [*notifying_platform.list_notes_to("/alice"), *notifying_platform.list_notes_to("/bob")]
    }
    assert isinstance(outcomes[0], Finished)
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].code == "record_not_found"
    assert outcomes[2] == Failed("run_cancelled", "The run was cancelled.")
    assert (ends[good]["outcome"], ends[good]["error"]) == ("completed", None)
    assert (ends[bad]["outcome"], ends[bad]["error"]) == ("failed", "record_not_found")
    assert (ends[waits]["outcome"], ends[waits]["error"]) == ("cancelled", None)
    assert {end["title"] for end in ends.values()} == {"Read once"}


async def test_a_run_of_many_continuations_and_children_ends_once(
    notifying_platform: NotifyingPlatform,
) -> None:
    platform, alice = notifying_platform.platform, notifying_platform.platform.alice
    await platform.give_grant("crm", alice)
    await notifying_platform.add_channel(alice, "webhook", "/alice")

    run = await notifying_platform.call_tool(
        {**READ, "levels": 1, "continued": 1},  # type: ignore[dict-item]
        alice,
        tool="read_at_every_level",
    )
    assert isinstance(await platform.wait_for_outcome(run), Finished)

    async def is_notified() -> bool:
        return bool(notifying_platform.list_notes_to("/alice"))

    await wait_until(is_notified)
    assert [note["data"]["run_id"] for note in notifying_platform.list_notes_to("/alice")] == [run]


async def test_whoever_chose_nothing_costs_a_run_nothing(notifying_platform: NotifyingPlatform) -> None:
    platform, alice = notifying_platform.platform, notifying_platform.platform.alice
    await notifying_platform.add_channel(
        platform.bob, "webhook", "/bob", ("waiting", "ended", "chat_waiting", "chat_ended")
    )
    run = await notifying_platform.call_tool(READ, alice)
    (request,) = await platform.wait_until_parked(run)
    await platform.consent(request, alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)

    assert await notifying_platform.count_notes(run) == 0
    assert "byline-notify" not in await platform.fetch_headers(run)
    assert b"notify" not in b"".join(event.SerializeToString() for event in await platform.fetch_history(run))
    assert notifying_platform.receiver.posts == []


async def test_who_calls_from_a_chat_is_notified_elsewhere_only_where_they_chose_that(
    notifying_platform: NotifyingPlatform,
) -> None:
    platform, alice, bob = (
        notifying_platform.platform,
        notifying_platform.platform.alice,
        notifying_platform.platform.bob,
    )
    await notifying_platform.add_channel(alice, "webhook", "/alice", BOTH)
    await notifying_platform.add_channel(bob, "webhook", "/bob", ("chat_waiting",))

    hers = await notifying_platform.call_tool(READ, alice, "mcp")
    his = await notifying_platform.call_tool(READ, bob, "mcp")
    await platform.wait_until_parked(hers)
    await platform.wait_until_parked(his)

    async def is_notified() -> bool:
        return bool(notifying_platform.list_notes_to("/bob"))

    await wait_until(is_notified)
    assert await notifying_platform.count_notes(hers) == 0
    # The same question, asked by a run whose person is not there, is one to tell.
    await notifying_platform.call_tool({**READ, "label": "at night"}, alice, "schedule")

    async def is_notified_too() -> bool:
        return bool(notifying_platform.list_notes_to("/alice"))

    await wait_until(is_notified_too)
    assert notifying_platform.list_notes_to("/alice")[0]["data"]["waits_for"] == "connection"


async def test_a_forged_notice_notifies_nobody(notifying_platform: NotifyingPlatform) -> None:
    platform, alice, bob = (
        notifying_platform.platform,
        notifying_platform.platform.alice,
        notifying_platform.platform.bob,
    )
    channel = await notifying_platform.add_channel(alice, "webhook", "/alice")
    his = await notifying_platform.call_tool(READ, bob)
    (request,) = await platform.wait_until_parked(his)

    async def deliver_notice(
        event: Literal["waiting", "ended"], awaits: str | None = None, run: str = his
    ) -> str:
        due_note = DueNote(RunNotice(event, run, [channel.id], awaits=awaits), channel.id, time.time())
        return await notifying_platform.notifier.deliver_note(due_note, str)

    assert await deliver_notice("ended") == "not asked"
    assert await deliver_notice("waiting", request.id) == "not asked"
    assert await deliver_notice("waiting", "a-request-that-is-not-there") == "answered meanwhile"
    assert await deliver_notice("ended", run="a-run-that-is-not-there") == "run unknown"
    await platform.services.notification_channels.remove_channel(channel.id, alice)
    assert await deliver_notice("ended") == "channel removed"
    assert notifying_platform.receiver.posts == []


async def test_a_receiver_with_a_retry_after_gets_the_same_note_later_and_one_that_is_gone_gets_none(
    notifying_platform: NotifyingPlatform,
) -> None:
    platform, alice, bob = (
        notifying_platform.platform,
        notifying_platform.platform.alice,
        notifying_platform.platform.bob,
    )
    await platform.give_grant("crm", alice)
    await notifying_platform.add_channel(alice, "webhook", "/alice")
    notifying_platform.receiver.answers = [
        Response(status_code=503),
        Response(status_code=429, headers={"Retry-After": "1"}),
    ]
    run = await notifying_platform.call_tool(READ, alice)

    async def tried_three_times() -> bool:
        return len(notifying_platform.receiver.posts) == 3

    await wait_until(tried_three_times)
    posts = notifying_platform.receiver.list_requests_to("/alice")
    assert len({post.headers["webhook-id"] for post in posts}) == 1
    assert len({post.body for post in posts}) == 1
    assert [note["data"]["run_id"] for note in notifying_platform.list_notes_to("/alice")] == [run] * 3
    with pytest.raises(WebhookVerificationError):
        Webhook(notifying_platform.secrets["/alice"]).verify(posts[0].body + b" ", dict(posts[0].headers))

    channel = await notifying_platform.add_channel(bob, "slack", "/bob")
    notifying_platform.receiver.answers = [Response(status_code=410)]
    with pytest.raises(RequestRejected):
        await notifying_platform.notifier.send_test_note(channel.id, bob)


@pytest.mark.parametrize(
    ("reply", "error_type"),
    [("451 later", UpstreamUnavailable), ("554 never", RequestRejected)],
)
async def test_a_mail_server_says_whether_to_try_again(
    notifying_platform: NotifyingPlatform, reply: str, error_type: type[Exception]
) -> None:
    channel = await notifying_platform.add_channel(
        notifying_platform.platform.alice, "email", "alice@example.com"
    )
    async with run_mail_server(notifying_platform.mail_port) as mailbox:
        mailbox.refusal = reply
        with pytest.raises(error_type) as error_info:
            await notifying_platform.notifier.send_test_note(channel.id, notifying_platform.platform.alice)

    assert "alice@example.com" not in str(error_info.value)


async def test_a_person_tries_a_channel_a_few_times_a_minute_at_most(
    notifying_platform: NotifyingPlatform,
) -> None:
    alice = notifying_platform.platform.alice
    channel = await notifying_platform.add_channel(alice, "slack", "/alice")

    async def try_until_refused() -> bool:
        try:
            await notifying_platform.notifier.send_test_note(channel.id, alice)
        except TooSoon:
            return True
        return False

    await wait_until(try_until_refused)
    assert 1 <= len(notifying_platform.receiver.posts) <= 2


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("email", "alice@example.com\nBcc: everybody@example.com"),
        ("email", "alice"),
        ("email", "alice@example.com, bob@example.com"),
        ("email", "Alice <alice@example.com>"),
        ("slack", "not an address"),
        ("webhook", "ftp://example.com/"),
    ],
)
async def test_an_address_that_is_none_is_refused(
    notifying_platform: NotifyingPlatform, kind: ChannelKind, address: str
) -> None:
    with pytest.raises(AddressRefused):
        await notifying_platform.notifier.add_channel(notifying_platform.platform.alice, kind, address, BOTH)

    assert (
        await notifying_platform.platform.services.notification_channels.list_channels(
            notifying_platform.platform.alice.id
        )
        == []
    )


@pytest.fixture
async def api_server(notifying_platform: NotifyingPlatform) -> AsyncIterator[ApiServer]:
    """A gateway that sends where the town's worker sends."""
    await BuiltInPeople(notifying_platform.platform.services.database).add_demo_people()
    services = replace(notifying_platform.platform.services, notifier=notifying_platform.notifier)
    async with serve_api(replace(notifying_platform.platform, services=services)) as api_server:
        yield api_server


async def test_a_page_adds_tries_and_removes_a_channel_and_shows_its_secret_once(
    notifying_platform: NotifyingPlatform, api_server: ApiServer
) -> None:
    address = f"http://127.0.0.1:{notifying_platform.receiver.port}/a-path-of-my-own"
    async with Browser() as browser:
        page = await browser.open(f"{api_server.url}/notifications")
        page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
        nowhere = page.text
        page = await page.form(submit="Add", kind="webhook", address="http://")
        refused_page = (page.status, page.text)
        page = await page.form(submit="Add", kind="webhook", address=address)
        (secret,) = re.findall(r"whsec_[\w+/=]+", page.text)
        page = await browser.open(f"{api_server.url}/notifications")
        page = await page.form(submit="Send a test note")
        page = await page.form(submit="Remove")

    assert "You are told nowhere yet." in nowhere
    assert refused_page[0] == 422
    assert "An address begins with" in refused_page[1]
    assert secret not in page.text
    assert "a-path-of-my-own" not in page.text
    assert "You are told nowhere yet." in page.text
    (post,) = notifying_platform.receiver.posts
    assert Webhook(secret).verify(post.body, dict(post.headers))["type"] == "test"
    trail = [
        event["object_id"] for event in await notifying_platform.platform.list_trail_events("channel.added")
    ]
    assert trail == [
        event["object_id"] for event in await notifying_platform.platform.list_trail_events("channel.removed")
    ]


async def test_a_form_that_the_page_did_not_give_changes_nothing(
    notifying_platform: NotifyingPlatform, api_server: ApiServer
) -> None:
    channel = await notifying_platform.add_channel(notifying_platform.platform.alice, "slack", "/alice")
    async with httpx2.AsyncClient(base_url=api_server.url) as stranger:
        for path, fields in (
            ("/notifications", {"kind": "slack", "address": "http://127.0.0.1/", "waiting": "on"}),
            (f"/notifications/{channel.id}", {"decision": "remove"}),
        ):
            assert (await stranger.post(path, data=fields)).status_code == 403

    assert await notifying_platform.platform.services.notification_channels.list_channels(
        notifying_platform.platform.alice.id
    ) == [channel]


async def test_the_api_lists_adds_tries_and_removes_ones_own_channels_alone(
    notifying_platform: NotifyingPlatform, api_server: ApiServer
) -> None:
    ann, ben = await api_server.add_person("ann", "Ann"), await api_server.add_person("ben", "Ben")
    address = f"http://127.0.0.1:{notifying_platform.receiver.port}/ann"
    async with api_server.open_client(ann) as hers, api_server.open_client(ben) as his:
        creation = await hers.post("/channels", json={"kind": "webhook", "address": address})
        mail = await hers.post(
            "/channels", json={"kind": "email", "address": "ann@example.com", "events": ["ended"]}
        )
        refusal = await hers.post("/channels", json={"kind": "email", "address": "ann"})
        first = (await hers.get("/channels", params={"limit": 1})).json()
        rest_of_them = (
            await hers.get("/channels", params={"limit": 1, "after": first["next_cursor"]})
        ).json()
        path = f"/channels/{creation.json()['id']}"
        theirs = [
            response.status_code
            for response in (await his.get(path), await his.delete(path), await his.post(f"{path}/test"))
        ]
        read = await hers.get(creation.headers["location"].removeprefix("/api/v1"))
        trial_response = await hers.post(f"{path}/test")
        again = [(await hers.post(f"{path}/test")).status_code for _ in range(2)]
        removal = await hers.delete(path)
        left = (await hers.get("/channels")).json()

    assert (creation.status_code, mail.status_code) == (201, 201)
    assert creation.json()["secret"].startswith("whsec_")
    assert (mail.json()["secret"], mail.json()["label"]) == (None, "a…@example.com")
    assert (refusal.status_code, refusal.json()["type"]) == (422, "urn:byline:error:address_refused")
    assert [response["items"][0]["kind"] for response in (first, rest_of_them)] == ["webhook", "email"]
    assert rest_of_them["next_cursor"] is None
    assert "secret" not in first["items"][0]
    assert theirs == [404, 404, 404]
    assert read.json() == first["items"][0]
    assert trial_response.status_code == 204
    assert again[-1] == 429
    assert removal.status_code == 204
    assert [response["kind"] for response in left["items"]] == ["email"]


async def test_an_address_within_the_network_is_refused_by_a_gateway_without_a_setting_for_it(
    idle_platform: Platform,
) -> None:
    async with OutgoingClient(OutgoingSettings()) as outgoing:
        notifier = build_notifier(idle_platform, NotificationSettings(), outgoing)
        channel, _ = await notifier.add_channel(idle_platform.alice, "slack", "https://127.0.0.1:9/", BOTH)

        with pytest.raises(AddressRefused, match="public Internet"):
            await notifier.send_test_note(channel.id, idle_platform.alice)


async def test_a_person_has_ten_channels_at_most_and_a_service_none(
    notifying_platform: NotifyingPlatform,
) -> None:
    alice = notifying_platform.platform.alice
    for number in range(10):
        await notifying_platform.add_channel(alice, "slack", f"/{number}")

    with pytest.raises(ArgumentsInvalid):
        await notifying_platform.add_channel(alice, "slack", "/one-more")
    with pytest.raises(ArgumentsInvalid):
        await notifying_platform.add_channel(replace(alice, kind="service"), "slack", "/service")


async def test_an_approval_notifies_everybody_with_the_role_but_the_one_who_needs_it(
    notifying_platform: NotifyingPlatform,
) -> None:
    platform, alice, bob = (
        notifying_platform.platform,
        notifying_platform.platform.alice,
        notifying_platform.platform.bob,
    )
    services = platform.services
    for person in (alice, bob):
        await give_role(services, person.id, "lead")
        await notifying_platform.add_channel(person, "webhook", f"/{person.subject}", ("waiting",))
    identity = platform.build_identity(alice, "run-1", "read_once")
    await platform.register(identity)
    place = AskingStep(identity, "run-1", ParkedAction("w", "r", "k"), waiter_id=None, has_timed_out=False)
    with pytest.raises(AnswerRequired) as error_info:
        await services.questions.ask_question(
            place, QuestionInput("May I pay 1,000,000?", {}, role="lead", timeout=600)
        )

    async def list_notified(waiter: str) -> list[str]:
        asked_ids, awaits = error_info.value.asked_principal_ids, error_info.value.awaited_id
        return await notifying_platform.notifier.claim_wait_listeners(
            awaited_id=awaits, waiter_id=waiter, asked_principal_ids=asked_ids, identity=identity
        )

    channels = await list_notified("first")
    notice = RunNotice("waiting", "run-1", channels, awaits=error_info.value.awaited_id)
    note_texts = [
        await notifying_platform.notifier.deliver_note(DueNote(notice, channel, time.time()), str)
        for channel in channels
    ]

    assert note_texts == ["delivered"]
    assert (await list_notified("first"), await list_notified("second")) == (channels, [])
    (note,) = notifying_platform.list_notes_to("/bob")
    assert note["data"]["waits_for"] == "approval"
    assert note["data"]["url"] == f"{platform.settings.public_url}/questions/{error_info.value.awaited_id}"
    assert b"1,000,000" not in notifying_platform.receiver.list_requests_to("/bob")[0].body
    assert notifying_platform.list_notes_to("/alice") == []


async def test_the_sign_in_that_a_service_needs_notifies_its_administrators(
    notifying_platform: NotifyingPlatform,
) -> None:
    platform, alice, bob = (
        notifying_platform.platform,
        notifying_platform.platform.alice,
        notifying_platform.platform.bob,
    )
    await give_role(platform.services, bob.id, ADMINISTRATOR_ROLE)
    service = await add_service(platform.services, "nightly", administrator=bob)
    await notifying_platform.add_channel(alice, "webhook", "/alice")
    await notifying_platform.add_channel(bob, "webhook", "/bob")

    run = await notifying_platform.call_tool(READ, service)
    (request,) = await platform.wait_until_parked(run)

    async def is_notified() -> bool:
        return bool(notifying_platform.list_notes_to("/bob"))

    await wait_until(is_notified)
    assert notifying_platform.list_notes_to("/bob")[0]["data"]["url"].endswith(f"/connect/{request.id}")
    assert notifying_platform.list_notes_to("/alice") == []


async def test_a_worker_as_it_is_deployed_notifies_of_an_end(idle_platform: Platform) -> None:
    await idle_platform.give_grant("crm", idle_platform.alice)
    local = {"BYLINE_OUTGOING__ALLOW_HTTP": "true", "BYLINE_OUTGOING__ALLOW_PRIVATE": "true"}
    async with run_receiver() as receiving, idle_platform.run_worker_process(**local):
        address = f"http://127.0.0.1:{receiving.port}/alice"
        await idle_platform.services.notification_channels.add_channel(
            idle_platform.alice, "slack", address, "here", ["ended"]
        )
        run = (
            await idle_platform.runs.starter.start_or_attach(
                "read_once", READ, Caller(idle_platform.alice, SCRIPT, "rest")
            )
        ).run_id
        assert isinstance(await idle_platform.wait_for_outcome(run), Finished)

        async def is_notified() -> bool:
            return bool(receiving.posts)

        await wait_until(is_notified)
    assert run.encode() in receiving.posts[0].body


async def test_no_mail_leaves_in_the_clear_where_settings_ask_for_tls() -> None:
    port = free_port()
    settings = NotificationSettings(smtp_host="127.0.0.1", smtp_port=port, sender="byline@byline.example")
    async with run_mail_server(port) as mailbox:
        with pytest.raises(UpstreamUnavailable):
            await MailSender(settings, PageLinks("https://byline.example")).send_note(
                messages.compose_test_note("1", utc_now()), "alice@example.com"
            )

    assert mailbox.mails == []


def test_what_is_said_of_a_failure_is_said_of_codes_that_there_are() -> None:
    assert messages.FAILURE_REASONS.keys() <= {kind.code for kind in list_subclasses(BylineError)}
