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
from engine.runs.runs import Caller, Failed, Finished
from engine.settings import NotificationSettings, OutgoingSettings
from engine.waiting.page_paths import PageLinks
from engine.waiting.waiters import ParkedAction
from examples.browser import Browser
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.foreign.process import free_port
from tests.listeners import Receiver, mail_server, receiver
from tests.pages import PASSWORDS
from tests.platform import CONTOSO, NORTHWIND, Platform, until
from tests.rest import Rest, serving
from tests.unit.test_errors import below

SCRIPT = Actor("api_client", "script", "Script")
READ = {"account_id": NORTHWIND}
BOTH: tuple[NotificationEvent, ...] = ("waiting", "ended")
STARTED = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED
LOCAL = OutgoingSettings(allow_http=True, allow_private=True)


@dataclass
class Town:
    """A platform whose worker tells people, with a mail server and a receiver that they have their channels at."""

    platform: Platform
    notifier: RunNotifier
    mail_port: int
    receiver: Receiver
    secrets: dict[str, str] = field(default_factory=dict)

    async def channel(
        self, person: Principal, kind: ChannelKind, place: str, events: tuple[NotificationEvent, ...] = BOTH
    ) -> NotificationChannel:
        """Add a channel: a mail address, or a path at the receiver."""
        address = place if kind == "email" else f"http://127.0.0.1:{self.receiver.port}{place}"
        channel, destination = await self.notifier.add_channel(person, kind, address, events)
        self.secrets[place] = destination.secret or ""
        return channel

    async def call(
        self,
        arguments: Mapping[str, str],
        person: Principal,
        trigger: TriggerKind = "rest",
        tool: str = "read_once",
    ) -> str:
        """Call a tool otherwise than from a chat."""
        return (
            await self.platform.runs.start_or_attach(tool, arguments, Caller(person, SCRIPT, trigger))
        ).run_id

    def told(self, place: str) -> list[dict[str, Any]]:
        """What a person's own webhook was told, with every signature verified."""
        verify = Webhook(self.secrets[place]).verify
        return [verify(post.body, dict(post.headers)) for post in self.receiver.to(place)]

    async def notes(self, run_id: str) -> int:
        """How many times a run had people told."""
        return await self.platform.count(run_id, STARTED)

    async def tries(self, workflow_id: str) -> int:
        """How often the undelivered notes of a workflow were tried."""
        try:
            described = await self.platform.temporal.get_workflow_handle(workflow_id).describe()
        except RPCError:
            return 0
        return max((each.attempt for each in described.raw_description.pending_activities), default=0)


def notifying(idle: Platform, mail: NotificationSettings, outgoing: OutgoingClient) -> RunNotifier:
    """What tells people by this mail server, and calls what this allows."""
    services = idle.services
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
async def settled(idle: Platform) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        receiving = await stack.enter_async_context(receiver())
        outgoing = await stack.enter_async_context(OutgoingClient(LOCAL))
        port = free_port()
        mail = NotificationSettings(
            smtp_host="127.0.0.1", smtp_port=port, smtp_tls="none", sender="Byline <byline@byline.example>"
        )
        notifier = notifying(idle, mail, outgoing)
        await stack.enter_async_context(idle.working(notifier=notifier))
        await stack.enter_async_context(idle.delivering())
        yield Town(idle, notifier, port, receiving)


@pytest.fixture
async def town(idle: Platform) -> AsyncIterator[Town]:
    async with settled(idle) as town:
        yield town


async def test_a_run_that_waits_tells_its_person_once_by_every_channel_and_nobody_else(
    town: Town, tmp_path: Path
) -> None:
    platform, alice = town.platform, town.platform.alice
    await town.channel(alice, "email", "alice@example.com")
    await town.channel(alice, "slack", "/services/alices-own-path")
    await town.channel(alice, "webhook", "/alices-hook-path")
    await town.channel(platform.bob, "webhook", "/bob")

    async with mail_server(town.mail_port) as mailbox:
        first = await town.call(READ, alice)
        (request,) = await platform.parked(first)

        async def arrived() -> bool:
            posts = [town.receiver.to(place) for place in ("/services/alices-own-path", "/alices-hook-path")]
            return bool(mailbox.mails) and all(posts)

        await until(arrived)
        second = await town.call({**READ, "label": "second"}, alice, "schedule")
        await platform.parked(second)
        await platform.consent(request, alice)
        assert isinstance(await platform.outcome(first), Finished)
        assert isinstance(await platform.outcome(second), Finished)

        async def told_of_both_ends() -> bool:
            return len(mailbox.mails) == 3 and len(town.told("/alices-hook-path")) == 3

        await until(told_of_both_ends)

    link = f"{platform.settings.public_url}/connect/{request.id}"
    waiting, *ends = town.told("/alices-hook-path")
    slack = town.receiver.to("/services/alices-own-path")[0].body.decode()
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
    assert town.receiver.to("/bob") == []
    assert (await town.notes(first), await town.notes(second)) == (2, 1)

    # No note says what a run was given or found, and nothing that is kept says where notes go.
    said = b"".join(post.body for post in town.receiver.posts) + b"".join(
        each.message.as_bytes() for each in mailbox.mails
    )
    assert NORTHWIND.encode() not in said
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("byline.db*"))
    for workflow in (first, second, f"byline.notify:{first}:ended", f"byline.notify:{second}:ended"):
        history = await platform.temporal.get_workflow_handle(workflow).fetch_history()
        kept += b"".join(event.SerializeToString() for event in history.events)
    assert first.encode() in kept
    for secret in (
        "alice@example.com",
        "alices-own-path",
        "alices-hook-path",
        town.secrets["/alices-hook-path"],
    ):
        assert secret.encode() not in kept


async def test_a_mail_server_that_is_down_delays_the_notes_and_no_run(town: Town) -> None:
    platform, alice, bob = town.platform, town.platform.alice, town.platform.bob
    await platform.grant("crm", alice)
    await town.channel(alice, "email", "alice@example.com")
    await town.channel(bob, "email", "bob@example.com")

    waits = await town.call(READ, bob)
    (request,) = await platform.parked(waits)
    ends = await town.call(READ, alice)
    assert isinstance(await platform.outcome(ends), Finished)

    async def tried() -> bool:
        return await town.tries(f"byline.notify:{ends}:ended") >= 2

    await until(tried)
    async with mail_server(town.mail_port) as mailbox:

        async def both_told() -> bool:
            return len(mailbox.mails) == 2

        await until(both_told)
    by_person = {mail.to[0]: mail.text for mail in mailbox.mails}
    assert request.id in by_person["bob@example.com"]
    assert ends in by_person["alice@example.com"]


async def test_the_end_of_a_run_is_told_in_words_and_stays_what_it_was(town: Town) -> None:
    platform, alice, bob = town.platform, town.platform.alice, town.platform.bob
    await platform.grant("crm", alice)
    await town.channel(alice, "webhook", "/alice")
    await town.channel(bob, "webhook", "/bob", ("ended",))

    good = await town.call(READ, alice, "webhook")
    bad = await town.call({"account_id": "001000000000000AAA"}, alice)
    waits = await town.call({"account_id": CONTOSO}, bob)
    await platform.parked(waits)
    await platform.temporal.get_workflow_handle(waits).cancel()
    outcomes = [await platform.outcome(run) for run in (good, bad, waits)]

    async def all_told() -> bool:
        return len(town.told("/alice")) == 2 and len(town.told("/bob")) == 1

    await until(all_told)
    ends = {end["data"]["run_id"]: end["data"] for end in [*town.told("/alice"), *town.told("/bob")]}
    assert isinstance(outcomes[0], Finished)
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].code == "record_not_found"
    assert outcomes[2] == Failed("run_cancelled", "The run was cancelled.")
    assert (ends[good]["outcome"], ends[good]["error"]) == ("completed", None)
    assert (ends[bad]["outcome"], ends[bad]["error"]) == ("failed", "record_not_found")
    assert (ends[waits]["outcome"], ends[waits]["error"]) == ("cancelled", None)
    assert {end["title"] for end in ends.values()} == {"Read once"}


async def test_a_run_of_many_continuations_and_children_ends_once(town: Town) -> None:
    platform, alice = town.platform, town.platform.alice
    await platform.grant("crm", alice)
    await town.channel(alice, "webhook", "/alice")

    run = await town.call({**READ, "levels": 1, "continued": 1}, alice, tool="read_at_every_level")  # type: ignore[dict-item]
    assert isinstance(await platform.outcome(run), Finished)

    async def told() -> bool:
        return bool(town.told("/alice"))

    await until(told)
    assert [each["data"]["run_id"] for each in town.told("/alice")] == [run]


async def test_whoever_chose_nothing_costs_a_run_nothing(town: Town) -> None:
    platform, alice = town.platform, town.platform.alice
    await town.channel(platform.bob, "webhook", "/bob", ("waiting", "ended", "chat_waiting", "chat_ended"))
    run = await town.call(READ, alice)
    (request,) = await platform.parked(run)
    await platform.consent(request, alice)
    assert isinstance(await platform.outcome(run), Finished)

    assert await town.notes(run) == 0
    assert "byline-notify" not in await platform.headers(run)
    assert b"notify" not in b"".join(event.SerializeToString() for event in await platform.history(run))
    assert town.receiver.posts == []


async def test_who_calls_from_a_chat_is_told_elsewhere_only_where_they_chose_that(town: Town) -> None:
    platform, alice, bob = town.platform, town.platform.alice, town.platform.bob
    await town.channel(alice, "webhook", "/alice", BOTH)
    await town.channel(bob, "webhook", "/bob", ("chat_waiting",))

    hers = await town.call(READ, alice, "mcp")
    his = await town.call(READ, bob, "mcp")
    await platform.parked(hers)
    await platform.parked(his)

    async def told() -> bool:
        return bool(town.told("/bob"))

    await until(told)
    assert await town.notes(hers) == 0
    # The same question, asked by a run whose person is not there, is one to tell.
    await town.call({**READ, "label": "at night"}, alice, "schedule")

    async def told_too() -> bool:
        return bool(town.told("/alice"))

    await until(told_too)
    assert town.told("/alice")[0]["data"]["waits_for"] == "connection"


async def test_a_notice_that_somebody_made_up_tells_nobody(town: Town) -> None:
    platform, alice, bob = town.platform, town.platform.alice, town.platform.bob
    channel = await town.channel(alice, "webhook", "/alice")
    his = await town.call(READ, bob)
    (request,) = await platform.parked(his)

    async def delivered(event: Literal["waiting", "ended"], awaits: str | None = None, run: str = his) -> str:
        owed = DueNote(RunNotice(event, run, [channel.id], awaits=awaits), channel.id, time.time())
        return await town.notifier.deliver_note(owed, str)

    assert await delivered("ended") == "not asked"
    assert await delivered("waiting", request.id) == "not asked"
    assert await delivered("waiting", "a-request-that-is-not-there") == "answered meanwhile"
    assert await delivered("ended", run="a-run-that-is-not-there") == "run unknown"
    await platform.services.notification_channels.remove_channel(channel.id, alice)
    assert await delivered("ended") == "channel removed"
    assert town.receiver.posts == []


async def test_a_receiver_that_asks_for_patience_gets_the_same_note_later_and_one_that_is_gone_gets_none(
    town: Town,
) -> None:
    platform, alice, bob = town.platform, town.platform.alice, town.platform.bob
    await platform.grant("crm", alice)
    await town.channel(alice, "webhook", "/alice")
    town.receiver.answers = [
        Response(status_code=503),
        Response(status_code=429, headers={"Retry-After": "1"}),
    ]
    run = await town.call(READ, alice)

    async def tried_three_times() -> bool:
        return len(town.receiver.posts) == 3

    await until(tried_three_times)
    posts = town.receiver.to("/alice")
    assert len({post.headers["webhook-id"] for post in posts}) == 1
    assert len({post.body for post in posts}) == 1
    assert [each["data"]["run_id"] for each in town.told("/alice")] == [run] * 3
    with pytest.raises(WebhookVerificationError):
        Webhook(town.secrets["/alice"]).verify(posts[0].body + b" ", dict(posts[0].headers))

    channel = await town.channel(bob, "slack", "/bob")
    town.receiver.answers = [Response(status_code=410)]
    with pytest.raises(RequestRejected):
        await town.notifier.send_test_note(channel.id, bob)


@pytest.mark.parametrize(
    ("reply", "raised"),
    [("451 later", UpstreamUnavailable), ("554 never", RequestRejected)],
)
async def test_a_mail_server_says_whether_to_try_again(
    town: Town, reply: str, raised: type[Exception]
) -> None:
    channel = await town.channel(town.platform.alice, "email", "alice@example.com")
    async with mail_server(town.mail_port) as mailbox:
        mailbox.refusal = reply
        with pytest.raises(raised) as told:
            await town.notifier.send_test_note(channel.id, town.platform.alice)

    assert "alice@example.com" not in str(told.value)


async def test_a_person_tries_a_channel_a_few_times_a_minute_at_most(town: Town) -> None:
    alice = town.platform.alice
    channel = await town.channel(alice, "slack", "/alice")

    async def try_until_refused() -> bool:
        try:
            await town.notifier.send_test_note(channel.id, alice)
        except TooSoon:
            return True
        return False

    await until(try_until_refused)
    assert 1 <= len(town.receiver.posts) <= 2


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
async def test_an_address_that_is_none_is_refused(town: Town, kind: ChannelKind, address: str) -> None:
    with pytest.raises(AddressRefused):
        await town.notifier.add_channel(town.platform.alice, kind, address, BOTH)

    assert await town.platform.services.notification_channels.list_channels(town.platform.alice.id) == []


@pytest.fixture
async def rest(town: Town) -> AsyncIterator[Rest]:
    """A gateway that sends where the town's worker sends."""
    await BuiltInPeople(town.platform.services.database).add_demo_people()
    services = replace(town.platform.services, notifier=town.notifier)
    async with serving(replace(town.platform, services=services)) as rest:
        yield rest


async def test_a_page_adds_tries_and_removes_a_channel_and_shows_its_secret_once(
    town: Town, rest: Rest
) -> None:
    address = f"http://127.0.0.1:{town.receiver.port}/a-path-of-my-own"
    async with Browser() as browser:
        page = await browser.open(f"{rest.url}/notifications")
        page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
        nowhere = page.text
        page = await page.form(submit="Add", kind="webhook", address="http://")
        refused = (page.status, page.text)
        page = await page.form(submit="Add", kind="webhook", address=address)
        (secret,) = re.findall(r"whsec_[\w+/=]+", page.text)
        page = await browser.open(f"{rest.url}/notifications")
        page = await page.form(submit="Send a test note")
        page = await page.form(submit="Remove")

    assert "You are told nowhere yet." in nowhere
    assert refused[0] == 422
    assert "An address begins with" in refused[1]
    assert secret not in page.text
    assert "a-path-of-my-own" not in page.text
    assert "You are told nowhere yet." in page.text
    (post,) = town.receiver.posts
    assert Webhook(secret).verify(post.body, dict(post.headers))["type"] == "test"
    trail = [event["object_id"] for event in await town.platform.trail("channel.added")]
    assert trail == [event["object_id"] for event in await town.platform.trail("channel.removed")]


async def test_a_form_that_the_page_did_not_give_changes_nothing(town: Town, rest: Rest) -> None:
    channel = await town.channel(town.platform.alice, "slack", "/alice")
    async with httpx2.AsyncClient(base_url=rest.url) as stranger:
        for path, fields in (
            ("/notifications", {"kind": "slack", "address": "http://127.0.0.1/", "waiting": "on"}),
            (f"/notifications/{channel.id}", {"decision": "remove"}),
        ):
            assert (await stranger.post(path, data=fields)).status_code == 403

    assert await town.platform.services.notification_channels.list_channels(town.platform.alice.id) == [
        channel
    ]


async def test_the_api_lists_adds_tries_and_removes_ones_own_channels_alone(town: Town, rest: Rest) -> None:
    ann, ben = await rest.person("ann", "Ann"), await rest.person("ben", "Ben")
    address = f"http://127.0.0.1:{town.receiver.port}/ann"
    async with rest.calling_as(ann) as hers, rest.calling_as(ben) as his:
        added = await hers.post("/channels", json={"kind": "webhook", "address": address})
        mail = await hers.post(
            "/channels", json={"kind": "email", "address": "ann@example.com", "events": ["ended"]}
        )
        refused = await hers.post("/channels", json={"kind": "email", "address": "ann"})
        first = (await hers.get("/channels", params={"limit": 1})).json()
        rest_of_them = (
            await hers.get("/channels", params={"limit": 1, "after": first["next_cursor"]})
        ).json()
        path = f"/channels/{added.json()['id']}"
        theirs = [
            each.status_code
            for each in (await his.get(path), await his.delete(path), await his.post(f"{path}/test"))
        ]
        read = await hers.get(added.headers["location"].removeprefix("/api/v1"))
        tried = await hers.post(f"{path}/test")
        again = [(await hers.post(f"{path}/test")).status_code for _ in range(2)]
        removed = await hers.delete(path)
        left = (await hers.get("/channels")).json()

    assert (added.status_code, mail.status_code) == (201, 201)
    assert added.json()["secret"].startswith("whsec_")
    assert (mail.json()["secret"], mail.json()["label"]) == (None, "a…@example.com")
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:byline:error:address_refused")
    assert [each["items"][0]["kind"] for each in (first, rest_of_them)] == ["webhook", "email"]
    assert rest_of_them["next_cursor"] is None
    assert "secret" not in first["items"][0]
    assert theirs == [404, 404, 404]
    assert read.json() == first["items"][0]
    assert tried.status_code == 204
    assert again[-1] == 429
    assert removed.status_code == 204
    assert [each["kind"] for each in left["items"]] == ["email"]


async def test_an_address_within_the_network_is_refused_by_a_gateway_that_was_not_told_otherwise(
    idle: Platform,
) -> None:
    async with OutgoingClient(OutgoingSettings()) as outgoing:
        notifier = notifying(idle, NotificationSettings(), outgoing)
        channel, _ = await notifier.add_channel(idle.alice, "slack", "https://127.0.0.1:9/", BOTH)

        with pytest.raises(AddressRefused, match="public Internet"):
            await notifier.send_test_note(channel.id, idle.alice)


async def test_a_person_has_ten_channels_at_most_and_a_service_none(town: Town) -> None:
    alice = town.platform.alice
    for number in range(10):
        await town.channel(alice, "slack", f"/{number}")

    with pytest.raises(ArgumentsInvalid):
        await town.channel(alice, "slack", "/one-more")
    with pytest.raises(ArgumentsInvalid):
        await town.channel(replace(alice, kind="service"), "slack", "/service")


async def test_an_approval_is_asked_of_everybody_with_the_role_but_the_one_who_needs_it(town: Town) -> None:
    platform, alice, bob = town.platform, town.platform.alice, town.platform.bob
    services = platform.services
    for person in (alice, bob):
        await services.roles.assign_role(person.id, "lead")
        await town.channel(person, "webhook", f"/{person.subject}", ("waiting",))
    identity = platform.identity(alice, "run-1", "read_once")
    await platform.register(identity)
    place = AskingStep(identity, "run-1", ParkedAction("w", "r", "k"), waiter_id=None, has_timed_out=False)
    with pytest.raises(AnswerRequired) as required:
        await services.questions.ask_question(
            place, QuestionInput("May I pay 1,000,000?", {}, role="lead", timeout=600)
        )

    async def owed(waiter: str) -> list[str]:
        asked, awaits = required.value.asked_principal_ids, required.value.awaited_id
        return await town.notifier.find_wait_listeners(
            awaited_id=awaits, waiter_id=waiter, asked_principal_ids=asked, identity=identity
        )

    channels = await owed("first")
    notice = RunNotice("waiting", "run-1", channels, awaits=required.value.awaited_id)
    said = [
        await town.notifier.deliver_note(DueNote(notice, channel, time.time()), str) for channel in channels
    ]

    assert said == ["delivered"]
    assert (await owed("first"), await owed("second")) == (channels, [])
    (told,) = town.told("/bob")
    assert told["data"]["waits_for"] == "approval"
    assert told["data"]["url"] == f"{platform.settings.public_url}/questions/{required.value.awaited_id}"
    assert b"1,000,000" not in town.receiver.to("/bob")[0].body
    assert town.told("/alice") == []


async def test_the_sign_in_that_a_service_needs_is_told_to_its_administrators(town: Town) -> None:
    platform, alice, bob = town.platform, town.platform.alice, town.platform.bob
    await platform.services.roles.assign_role(bob.id, ADMINISTRATOR_ROLE)
    service = await platform.services.service_principals.add_service("nightly", administrator=bob)
    await town.channel(alice, "webhook", "/alice")
    await town.channel(bob, "webhook", "/bob")

    run = await town.call(READ, service)
    (request,) = await platform.parked(run)

    async def told() -> bool:
        return bool(town.told("/bob"))

    await until(told)
    assert town.told("/bob")[0]["data"]["url"].endswith(f"/connect/{request.id}")
    assert town.told("/alice") == []


async def test_a_worker_as_it_is_deployed_tells_of_an_end(idle: Platform) -> None:
    await idle.grant("crm", idle.alice)
    local = {"BYLINE_OUTGOING__ALLOW_HTTP": "true", "BYLINE_OUTGOING__ALLOW_PRIVATE": "true"}
    async with receiver() as receiving, idle.worker_process(**local):
        address = f"http://127.0.0.1:{receiving.port}/alice"
        await idle.services.notification_channels.add_channel(idle.alice, "slack", address, "here", ["ended"])
        run = (await idle.runs.start_or_attach("read_once", READ, Caller(idle.alice, SCRIPT, "rest"))).run_id
        assert isinstance(await idle.outcome(run), Finished)

        async def told() -> bool:
            return bool(receiving.posts)

        await until(told)
    assert run.encode() in receiving.posts[0].body


async def test_no_mail_leaves_in_the_clear_where_settings_ask_for_tls() -> None:
    port = free_port()
    settings = NotificationSettings(smtp_host="127.0.0.1", smtp_port=port, sender="byline@byline.example")
    async with mail_server(port) as mailbox:
        with pytest.raises(UpstreamUnavailable):
            await MailSender(settings, PageLinks("https://byline.example")).send_note(
                messages.compose_test_note("1", utc_now()), "alice@example.com"
            )

    assert mailbox.mails == []


def test_what_is_said_of_a_failure_is_said_of_codes_that_there_are() -> None:
    assert messages.FAILURE_REASONS.keys() <= {kind.code for kind in below(BylineError)}
