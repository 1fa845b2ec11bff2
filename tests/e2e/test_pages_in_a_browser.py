"""Every page in a real Chromium: read by axe, in light and dark, at 320 px, by keyboard, and without scripts."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
import pytest_asyncio
from playwright.async_api import Locator
from sqlalchemy import update
from sqlmodel import col, select
from typing_extensions import override

from engine.db.database import utc_now
from engine.db.tables import AuditEventRow, AuthorizationRequestRow
from examples.chat import Person, chat
from tests.e2e.world import TOOL, World, outcome, said
from tests.foreign.chromium import Chromium, Window, chromium

NOTE = "pays on time"
PRESSES = 20
BACK_AT_THE_CLIENT = re.compile(r"http://127\.0\.0\.1:9/")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(world: World) -> AsyncIterator[Chromium]:
    async with chromium(world.stack.gateway_url) as running:
        yield running


@dataclass
class Stage:
    """The browser, and people at Byline who have chat clients."""

    world: World
    browser: Chromium

    async def parked(self, who: Person, tool: str = TOOL, **arguments: object) -> tuple[str, str]:
        """The run and the link that a call of this person's ends with."""
        async with chat(who, self.world.stack.mcp_url, elicitation=False) as client:
            waits = said(await client.call_tool(tool, arguments or self.annotation()))
        return waits["run_id"], waits["links"][0]["url"]

    async def ended(self, who: Person, run_id: str) -> dict[str, object]:
        """What the run ended with."""
        async with chat(who, self.world.stack.mcp_url, elicitation=False) as client:
            return await outcome(client, run_id)

    async def removals(self) -> list[str]:
        """Whose grants were removed, according to the trail."""
        removed = select(AuditEventRow).where(AuditEventRow.kind == "grant.removed")
        async with self.world.database.open_read_session() as session:
            return [row.event["principal"]["name"] for row in (await session.exec(removed)).all()]

    def annotation(self) -> dict[str, object]:
        """A note on a new record."""
        return {"record": self.world.record(), "note": NOTE}

    async def provider_lets_in(self, window: Window, account: str) -> None:
        """Sign in at the provider, and agree."""
        page = window.page
        await page.locator("input[name=login]").fill(account)
        await page.locator("input[name=password]").fill("any will do")
        await page.get_by_role("button", name="Sign-in").click()
        await page.get_by_role("button", name="Continue").click()


@pytest.fixture
def stage(world: World, browser: Chromium) -> Stage:
    return Stage(world, browser)


async def test_signing_in_out_and_going_astray(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    async with stage.browser.window() as window:
        await window.open("/")
        await window.shows("Byline")
        await window.page.get_by_role("link", name="Sign in").click()
        await window.shows("Sign in to Byline")
        await window.sign_in(alice.username, "not it")
        await window.shows("Sign in to Byline")
        assert "The username or the password is wrong." in await window.text()
        await window.sign_in(alice.username, alice.password)
        await window.page.get_by_text("Nothing waits for you").wait_for()
        await window.shows("Byline")
        await window.open("/nowhere")
        await window.shows("There is no such page")
        await window.open("/sign-out")
        await window.shows("There is no such page")
        await window.open("/connect/unknown")
        await window.shows("Unknown link")
        await window.open("/oauth/callback?state=made-up")
        await window.shows("This answer cannot be read")
        await window.open("/")
        await window.page.context.clear_cookies()
        await window.press("Sign out")
        await window.shows("Please try again")
        await window.open("/sign-in")
        await window.sign_in(alice.username, alice.password)
        await window.press("Sign out")
        await window.shows("You are signed out")


async def test_an_account_is_connected_seen_and_disconnected(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    run_id, link = await stage.parked(alice)
    async with stage.browser.window() as window:
        await window.open(link)
        await window.sign_in(alice.username, alice.password)
        await window.shows("Connect Kinto?")
        await window.press("Continue")
        await stage.provider_lets_in(window, "alice")
        await window.shows("Kinto is connected")
        assert (await stage.ended(alice, run_id))["notes"] == [NOTE]
        await window.page.get_by_role("link", name="Connections").click()
        await window.shows("My connections")
        told = await window.text()
        assert re.search(r"Account\s+alice\s", told)
        assert "Know who you are (openid)" in told
        assert re.search(r"Last used\s+\d.*, by Annotate a record", told)
        await window.press("Disconnect Kinto")
        await window.page.get_by_text("You have connected nothing yet.").wait_for()
        await window.shows("My connections")

    assert await stage.removals() == [f"Alice {alice.username[-6:]}"]
    await stage.parked(alice)


async def test_of_two_accounts_one_is_chosen_seen_and_disconnected(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    async with stage.browser.window() as window:
        await window.open(f"/connect/tools/{TOOL}")
        await window.sign_in(alice.username, alice.password)
        await window.shows("What Annotate a record needs")
        await window.press("Connect Kinto")
        await stage.provider_lets_in(window, "alice")
        await window.shows("Kinto is connected")
        await window.page.get_by_role("link", name="See what else is needed").click()
        await window.page.get_by_text("Everything is connected.").wait_for()
        await window.shows("What Annotate a record needs")
    # A browser of its own, since the provider ends the tokens of whoever was signed in before in the same one.
    async with stage.browser.window() as window:
        await window.open("/connections")
        await window.sign_in(alice.username, alice.password)
        await window.press("Connect another account at Kinto")
        await window.shows("Connect Kinto?")
        await window.press("Continue")
        await stage.provider_lets_in(window, "bob")
        await window.shows("Kinto is connected")
        await window.open(f"/connect/tools/{TOOL}")
        await window.page.get_by_text("more than one account").wait_for()
        await window.shows("What Annotate a record needs")
        run_id, link = await stage.parked(alice)
        await window.open(link)
        await window.shows("Which account at Kinto?")
        await window.page.get_by_label("alice").check()
        await window.press("Use this account")
        await window.shows("Kinto is connected")
        assert (await stage.ended(alice, run_id))["notes"] == [NOTE]
        await window.open("/connections")
        await window.shows("My connections")
        every = window.page.get_by_label("Every tool")
        assert await every.locator("option:checked").inner_text() == "alice"
        await window.page.get_by_text("Single tools").click()
        await window.page.get_by_label("Annotate a record").select_option("bob")
        await window.press("Use these")
        await window.shows("My connections")
        await window.press("Disconnect Kinto: bob")
        await window.page.get_by_text("bob (not connected any more)").first.wait_for(state="attached")
        await window.shows("My connections")
        _, link = await stage.parked(alice)
        await window.open(link)
        await window.page.get_by_text("It used bob so far").wait_for()
        await window.shows("Which account at Kinto?")


async def test_a_link_that_is_declined_too_old_or_anothers_says_so(stage: Stage) -> None:
    alice, bob = await stage.world.newcomer("alice"), await stage.world.newcomer("bob")
    _, link = await stage.parked(alice)
    async with stage.browser.window() as window:
        await window.open(link)
        await window.sign_in(bob.username, bob.password)
        await window.shows("This link was made for somebody else")
        await window.press("Sign out")
        await window.page.get_by_role("link", name="Sign in as somebody else").click()
        await window.sign_in(alice.username, alice.password)
        await window.shows("Connect Kinto?")
        await window.press("Decline")
        await window.shows("You declined Kinto")
        _, link = await stage.parked(alice)
        await window.open(link)
        await window.press("Continue")
        await window.page.get_by_role("link", name="Cancel").click()
        await window.shows("You declined Kinto")
        _, link = await stage.parked(alice)
        expire = update(AuthorizationRequestRow).where(
            col(AuthorizationRequestRow.id) == link.rpartition("/")[2]
        )
        async with stage.world.database.open_write_session() as session:
            await session.exec(expire.values(expires_at=utc_now() - timedelta(seconds=1)))
        await window.open(link)
        await window.shows("This link is too old")


async def test_questions_and_approvals_are_put_to_whom_they_are_for(stage: Stage) -> None:
    alice, bob = await stage.world.newcomer("alice"), await stage.world.newcomer("bob")
    run_id, link = await stage.parked(alice, "choose_account", name="North")
    async with stage.browser.window() as window:
        await window.open(link)
        await window.sign_in(alice.username, alice.password)
        await window.shows("A tool asks you")
        await window.page.get_by_label("Account").select_option("Contoso")
        await window.page.get_by_label("Discount").fill("51")
        await window.press("Answer")
        await window.shows("A tool asks you")
        assert "50" in await window.page.get_by_role("alert").inner_text()
        await window.page.get_by_label("Discount").fill("5")
        await window.press("Answer")
        await window.shows("This is answered")
        assert (await stage.ended(alice, run_id))["account"] == "Contoso"

    async with stage.browser.window() as window:
        await window.open("/sign-in")
        await window.sign_in(bob.username, bob.password)
        await window.open(link)
        await window.shows("This link was made for somebody else")
        await stage.world.byline("people", "give-role", f"Bob {bob.username[-6:]}", "refund-approver")
        async with chat(alice, stage.world.stack.mcp_url, elicitation=False) as client:
            await client.call_tool("refund", {"amount": 20, "to": "Northwind"})
        await window.open("/")
        await window.shows("Byline")
        await window.page.get_by_role("link", name="Refund 20 EUR to Northwind?").click()
        await window.shows("Do you approve?")
        await window.press("Decline")
        await window.shows("This was declined")


async def test_choices_have_titles_and_several_can_be_made(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    run_id, link = await stage.parked(alice, "order_lunch", name="Alice")
    async with stage.browser.window() as window:
        await window.open(link)
        await window.sign_in(alice.username, alice.password)
        await window.shows("A tool asks you")
        await window.page.get_by_label("Size").select_option("Large")
        assert await window.page.get_by_label("cheese").is_checked()
        for topping in ("olives", "basil"):
            await window.page.get_by_label(topping).check()
        await window.press("Answer")
        await window.shows("A tool asks you")
        assert "too many" in await window.page.get_by_role("alert").inner_text()
        await window.page.get_by_label("cheese").uncheck()
        await window.press("Answer")
        await window.shows("This is answered")

    assert await stage.ended(alice, run_id) == {"size": "l", "on_top": ["olives", "basil"]}


async def test_a_token_is_made_shown_once_and_revoked(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    async with stage.browser.window() as window:
        await window.open("/tokens")
        await window.sign_in(alice.username, alice.password)
        await window.shows("API tokens")
        await window.fill(name="A program with a name that goes on and on, " * 2)
        await window.press("Make the token")
        await window.shows("API tokens")
        assert "for no tool" in await window.page.get_by_role("alert").inner_text()
        await window.fill(name="Reports")
        await window.page.get_by_label("every tool that I may call").check()
        await window.press("Make the token")
        await window.shows("API tokens")
        assert "byline_" in await window.text()
        await window.press("Revoke Reports")
        await window.page.get_by_text("revoked", exact=False).first.wait_for()
        await window.shows("API tokens")


async def test_a_schedule_is_made_steered_and_deleted(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    async with stage.browser.window() as window:
        await window.open("/sign-in")
        await window.sign_in(alice.username, alice.password)
        await window.page.get_by_role("link", name="Schedules").first.click()
        await window.shows("Schedules")
        await window.fill(name="Every morning")
        await window.press("Make it")
        await window.shows("Schedules")
        await window.page.get_by_role("alert").wait_for()
        await window.page.get_by_label("Arguments").fill(
            '{"record": "crm/accounts/a-very-long-name", "note": "hello"}'
        )
        await window.page.get_by_label("Times, as a cron").fill("0 0 1 1 *")
        await window.press("Make it")
        await window.page.get_by_role("region", name="Every morning").wait_for()
        await window.shows("Schedules")
        await window.page.get_by_label("Hand it over").fill("nobody of this name")
        await window.page.keyboard.press("Enter")
        assert "nobody of this name" in await window.page.get_by_role("alert").inner_text()
        await window.press("Pause")
        await window.page.get_by_role("button", name="Resume").wait_for()
        await window.press("Delete")
        await window.page.get_by_text("You have no schedule.").wait_for()


async def test_a_place_to_be_told_at_is_added_tried_and_removed(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    async with stage.browser.window() as window:
        await window.open("/notifications")
        await window.sign_in(alice.username, alice.password)
        await window.shows("Where you are told")
        await window.page.get_by_label("How").select_option("webhook")
        await window.page.get_by_label("Email address").fill("not an address")
        await window.press("Add")
        await window.page.get_by_role("alert").wait_for()
        await window.shows("Where you are told")
        await window.page.get_by_label("How").select_option("webhook")
        await window.page.get_by_label("Email address").fill("https://hooks.example/byline")
        await window.press("Add")
        await window.page.get_by_text("never shown again").wait_for()
        await window.shows("Where you are told")
        await window.press("Send a test note")
        await window.page.get_by_role("alert").wait_for()
        await window.press("Remove")
        await window.page.get_by_text("You are told nowhere yet.").wait_for()


@dataclass
class InChromium(Person):
    """Somebody whose chat client opens Chromium."""

    window: Window | None = None

    @override
    async def sign_in(self, url: str) -> str:
        window = self.window
        assert window is not None
        await window.open(url)
        await window.sign_in(self.username, self.password)
        await window.shows("Let A chat client act for you?")
        asked = window.page.url
        async with window.page.expect_response(asked) as answered:
            await window.press("Allow")
        location = (await (await answered.value).all_headers())["location"]
        assert BACK_AT_THE_CLIENT.match(location)
        # In a tab beside it, as this one is on its way to a client that nothing listens for.
        beside = Window(await window.page.context.new_page(), window.origin)
        await beside.open(asked)
        await beside.shows("Nothing to answer")
        return location


async def test_a_chat_client_is_let_in(stage: Stage) -> None:
    known = await stage.world.newcomer("alice")
    async with stage.browser.window() as window:
        alice = InChromium(known.username, known.password, window=window)
        async with chat(alice, stage.world.stack.mcp_url) as client:
            assert TOOL in {tool.name for tool in (await client.list_tools()).tools}
        await window.open("/applications")
        await window.shows("Applications")
        await window.press("Withdraw A chat client")
        await window.page.get_by_text("No application acts for you.").wait_for()
        await window.shows("Applications")


async def test_an_account_is_connected_by_keyboard_and_without_scripts(stage: Stage) -> None:
    alice = await stage.world.newcomer("alice")
    run_id, link = await stage.parked(alice)
    async with stage.browser.window(java_script_enabled=False) as window:
        page = window.page
        await window.open(link)
        await tab_to(window, page.get_by_label("Username"))
        await page.keyboard.type(alice.username)
        await tab_to(window, page.get_by_label("Password"))
        await page.keyboard.type(alice.password)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Connect Kinto?").wait_for()
        await tab_to(window, page.get_by_role("button", name="Continue"))
        await page.keyboard.press("Enter")
        await stage.provider_lets_in(window, "alice")
        await page.get_by_role("heading", name="Kinto is connected").wait_for()
        assert (await stage.ended(alice, run_id))["notes"] == [NOTE]
        await window.open("/connections")
        await tab_to(window, page.get_by_role("button", name="Disconnect Kinto"))
        await page.keyboard.press("Space")
        await page.get_by_text("You have connected nothing yet.").wait_for()


async def tab_to(window: Window, wanted: Locator) -> None:
    """Go to a control as somebody without a mouse does."""
    for _ in range(PRESSES):
        await window.page.keyboard.press("Tab")
        if await wanted.evaluate("each => each === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {wanted} within {PRESSES} presses")
