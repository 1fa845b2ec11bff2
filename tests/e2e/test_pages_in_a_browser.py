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
from examples.chat import Person, open_chat
from tests.e2e.installation import TOOL, Installation, collect_outcome, read_result
from tests.support.foreign.chromium import BrowserWindow, Chromium, chromium

NOTE = "pays on time"
PRESSES = 20
BACK_AT_THE_CLIENT = re.compile(r"http://127\.0\.0\.1:9/")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(installation: Installation) -> AsyncIterator[Chromium]:
    async with chromium(installation.stack.gateway_url) as running:
        yield running


@dataclass
class BrowserSetup:
    """The browser, and people at Byline who have chat clients."""

    installation: Installation
    browser: Chromium

    async def park_run(self, who: Person, tool: str = TOOL, **arguments: object) -> tuple[str, str]:
        """The run and the link that a call of this person's ends with."""
        async with open_chat(who, self.installation.stack.mcp_url, elicitation=False) as client:
            waits = read_result(await client.call_tool(tool, arguments or self.build_annotation()))
        return waits["run_id"], waits["links"][0]["url"]

    async def wait_until_ended(self, who: Person, run_id: str) -> dict[str, object]:
        """What the run ended with."""
        async with open_chat(who, self.installation.stack.mcp_url, elicitation=False) as client:
            return await collect_outcome(client, run_id)

    async def list_removals(self) -> list[str]:
        """Whose grants were removed, according to the trail."""
        removed_events = select(AuditEventRow).where(AuditEventRow.kind == "grant.removed")
        async with self.installation.database.open_read_session() as session:
            return [row.event["principal"]["name"] for row in (await session.exec(removed_events)).all()]

    def build_annotation(self) -> dict[str, object]:
        """A note on a new record."""
        return {"record": self.installation.add_record(), "note": NOTE}

    async def confirm_at_provider(self, window: BrowserWindow, account: str) -> None:
        """Sign in at the provider, and agree."""
        page = window.page
        await page.locator("input[name=login]").fill(account)
        await page.locator("input[name=password]").fill("any will do")
        await page.get_by_role("button", name="Sign-in").click()
        await page.get_by_role("button", name="Continue").click()


@pytest.fixture
def browser_setup(installation: Installation, browser: Chromium) -> BrowserSetup:
    return BrowserSetup(installation, browser)


async def test_signing_in_and_out_and_opening_pages_that_do_not_exist(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    async with browser_setup.browser.open_window() as window:
        await window.open("/")
        await window.check_page("Byline")
        await window.page.get_by_role("link", name="Sign in").click()
        await window.check_page("Sign in to Byline")
        await window.sign_in(alice.username, "not it")
        await window.check_page("Sign in to Byline")
        assert "The username or the password is wrong." in await window.read_text()
        await window.sign_in(alice.username, alice.password)
        await window.page.get_by_text("Nothing waits for you").wait_for()
        await window.check_page("Byline")
        await window.open("/nowhere")
        await window.check_page("There is no such page")
        await window.open("/sign-out")
        await window.check_page("There is no such page")
        await window.open("/connect/unknown")
        await window.check_page("Unknown link")
        await window.open("/oauth/callback?state=made-up")
        await window.check_page("This answer cannot be read")
        await window.open("/")
        await window.page.context.clear_cookies()
        await window.press("Sign out")
        await window.check_page("Please try again")
        await window.open("/sign-in")
        await window.sign_in(alice.username, alice.password)
        await window.press("Sign out")
        await window.check_page("You are signed out")


async def test_an_account_is_connected_seen_and_disconnected(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    run_id, link = await browser_setup.park_run(alice)
    async with browser_setup.browser.open_window() as window:
        await window.open(link)
        await window.sign_in(alice.username, alice.password)
        await window.check_page("Connect Kinto?")
        await window.press("Continue")
        await browser_setup.confirm_at_provider(window, "alice")
        await window.check_page("Kinto is connected")
        assert (await browser_setup.wait_until_ended(alice, run_id))["notes"] == [NOTE]
        await window.page.get_by_role("link", name="Connections").click()
        await window.check_page("My connections")
        page_text = await window.read_text()
        assert re.search(r"Account\s+alice\s", page_text)
        assert "Know who you are (openid)" in page_text
        assert re.search(r"Last used\s+\d.*, by Annotate a record", page_text)
        await window.press("Disconnect Kinto")
        await window.page.get_by_text("You have connected nothing yet.").wait_for()
        await window.check_page("My connections")

    assert await browser_setup.list_removals() == [f"Alice {alice.username[-6:]}"]
    await browser_setup.park_run(alice)


async def test_of_two_accounts_one_is_chosen_seen_and_disconnected(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    async with browser_setup.browser.open_window() as window:
        await window.open(f"/connect/tools/{TOOL}")
        await window.sign_in(alice.username, alice.password)
        await window.check_page("What Annotate a record needs")
        await window.press("Connect Kinto")
        await browser_setup.confirm_at_provider(window, "alice")
        await window.check_page("Kinto is connected")
        await window.page.get_by_role("link", name="See what else is needed").click()
        await window.page.get_by_text("Everything is connected.").wait_for()
        await window.check_page("What Annotate a record needs")
    # A browser of its own, since the provider ends the tokens of whoever was signed in before in the same one.
    async with browser_setup.browser.open_window() as window:
        await window.open("/connections")
        await window.sign_in(alice.username, alice.password)
        await window.press("Connect another account at Kinto")
        await window.check_page("Connect Kinto?")
        await window.press("Continue")
        await browser_setup.confirm_at_provider(window, "bob")
        await window.check_page("Kinto is connected")
        await window.open(f"/connect/tools/{TOOL}")
        await window.page.get_by_text("more than one account").wait_for()
        await window.check_page("What Annotate a record needs")
        run_id, link = await browser_setup.park_run(alice)
        await window.open(link)
        await window.check_page("Which account at Kinto?")
        await window.page.get_by_label("alice").check()
        await window.press("Use this account")
        await window.check_page("Kinto is connected")
        assert (await browser_setup.wait_until_ended(alice, run_id))["notes"] == [NOTE]
        await window.open("/connections")
        await window.check_page("My connections")
        every = window.page.get_by_label("Every tool")
        assert await every.locator("option:checked").inner_text() == "alice"
        await window.page.get_by_text("Single tools").click()
        await window.page.get_by_label("Annotate a record").select_option("bob")
        await window.press("Use these")
        await window.check_page("My connections")
        await window.press("Disconnect Kinto: bob")
        await window.page.get_by_text("bob (not connected any more)").first.wait_for(state="attached")
        await window.check_page("My connections")
        _, link = await browser_setup.park_run(alice)
        await window.open(link)
        await window.page.get_by_text("It used bob so far").wait_for()
        await window.check_page("Which account at Kinto?")


async def test_a_link_that_is_declined_too_old_or_anothers_says_so(browser_setup: BrowserSetup) -> None:
    alice, bob = (
        await browser_setup.installation.add_newcomer("alice"),
        await browser_setup.installation.add_newcomer("bob"),
    )
    _, link = await browser_setup.park_run(alice)
    async with browser_setup.browser.open_window() as window:
        await window.open(link)
        await window.sign_in(bob.username, bob.password)
        await window.check_page("This link was made for somebody else")
        await window.press("Sign out")
        await window.page.get_by_role("link", name="Sign in as somebody else").click()
        await window.sign_in(alice.username, alice.password)
        await window.check_page("Connect Kinto?")
        await window.press("Decline")
        await window.check_page("You declined Kinto")
        _, link = await browser_setup.park_run(alice)
        await window.open(link)
        await window.press("Continue")
        await window.page.get_by_role("link", name="Cancel").click()
        await window.check_page("You declined Kinto")
        _, link = await browser_setup.park_run(alice)
        expire = update(AuthorizationRequestRow).where(
            col(AuthorizationRequestRow.id) == link.rpartition("/")[2]
        )
        async with browser_setup.installation.database.open_write_session() as session:
            await session.exec(expire.values(expires_at=utc_now() - timedelta(seconds=1)))
        await window.open(link)
        await window.check_page("This link is too old")


async def test_questions_and_approvals_are_put_to_whom_they_are_for(browser_setup: BrowserSetup) -> None:
    alice, bob = (
        await browser_setup.installation.add_newcomer("alice"),
        await browser_setup.installation.add_newcomer("bob"),
    )
    run_id, link = await browser_setup.park_run(alice, "choose_account", name="North")
    async with browser_setup.browser.open_window() as window:
        await window.open(link)
        await window.sign_in(alice.username, alice.password)
        await window.check_page("A tool asks you")
        await window.page.get_by_label("Account").select_option("Contoso")
        await window.page.get_by_label("Discount").fill("51")
        await window.press("Answer")
        await window.check_page("A tool asks you")
        assert "50" in await window.page.get_by_role("alert").inner_text()
        await window.page.get_by_label("Discount").fill("5")
        await window.press("Answer")
        await window.check_page("This is answered")
        assert (await browser_setup.wait_until_ended(alice, run_id))["account"] == "Contoso"

    async with browser_setup.browser.open_window() as window:
        await window.open("/sign-in")
        await window.sign_in(bob.username, bob.password)
        await window.open(link)
        await window.check_page("This link was made for somebody else")
        await browser_setup.installation.run_byline(
            "people", "give-role", f"Bob {bob.username[-6:]}", "refund-approver"
        )
        async with open_chat(alice, browser_setup.installation.stack.mcp_url, elicitation=False) as client:
            await client.call_tool("refund", {"amount": 20, "to": "Northwind"})
        await window.open("/")
        await window.check_page("Byline")
        await window.page.get_by_role("link", name="Refund 20 EUR to Northwind?").click()
        await window.check_page("Do you approve?")
        await window.press("Decline")
        await window.check_page("This was declined")


async def test_choices_have_titles_and_several_can_be_made(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    run_id, link = await browser_setup.park_run(alice, "order_lunch", name="Alice")
    async with browser_setup.browser.open_window() as window:
        await window.open(link)
        await window.sign_in(alice.username, alice.password)
        await window.check_page("A tool asks you")
        await window.page.get_by_label("Size").select_option("Large")
        assert await window.page.get_by_label("cheese").is_checked()
        for topping in ("olives", "basil"):
            await window.page.get_by_label(topping).check()
        await window.press("Answer")
        await window.check_page("A tool asks you")
        assert "too many" in await window.page.get_by_role("alert").inner_text()
        await window.page.get_by_label("cheese").uncheck()
        await window.press("Answer")
        await window.check_page("This is answered")

    assert await browser_setup.wait_until_ended(alice, run_id) == {"size": "l", "on_top": ["olives", "basil"]}


async def test_a_token_is_made_shown_once_and_revoked(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    async with browser_setup.browser.open_window() as window:
        await window.open("/tokens")
        await window.sign_in(alice.username, alice.password)
        await window.check_page("API tokens")
        await window.fill(name="A program with a name that goes on and on, " * 2)
        await window.press("Make the token")
        await window.check_page("API tokens")
        assert "for no tool" in await window.page.get_by_role("alert").inner_text()
        await window.fill(name="Reports")
        await window.page.get_by_label("every tool that I may call").check()
        await window.press("Make the token")
        await window.check_page("API tokens")
        assert "byline_" in await window.read_text()
        await window.press("Revoke Reports")
        await window.page.get_by_text("revoked", exact=False).first.wait_for()
        await window.check_page("API tokens")


async def test_a_schedule_is_made_steered_and_deleted(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    async with browser_setup.browser.open_window() as window:
        await window.open("/sign-in")
        await window.sign_in(alice.username, alice.password)
        await window.page.get_by_role("link", name="Schedules").first.click()
        await window.check_page("Schedules")
        await window.fill(name="Every morning")
        await window.press("Make it")
        await window.check_page("Schedules")
        await window.page.get_by_role("alert").wait_for()
        await window.page.get_by_label("Arguments").fill(
            '{"record": "crm/accounts/a-very-long-name", "note": "hello"}'
        )
        await window.page.get_by_label("Times, as a cron").fill("0 0 1 1 *")
        await window.press("Make it")
        await window.page.get_by_role("region", name="Every morning").wait_for()
        await window.check_page("Schedules")
        await window.page.get_by_label("Hand it over").fill("nobody of this name")
        await window.page.keyboard.press("Enter")
        assert "nobody of this name" in await window.page.get_by_role("alert").inner_text()
        await window.press("Pause")
        await window.page.get_by_role("button", name="Resume").wait_for()
        await window.press("Delete")
        await window.page.get_by_text("You have no schedule.").wait_for()


async def test_a_notification_channel_is_added_tried_and_removed(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    async with browser_setup.browser.open_window() as window:
        await window.open("/notifications")
        await window.sign_in(alice.username, alice.password)
        await window.check_page("Where you are told")
        await window.page.get_by_label("How").select_option("webhook")
        await window.page.get_by_label("Email address").fill("not an address")
        await window.press("Add")
        await window.page.get_by_role("alert").wait_for()
        await window.check_page("Where you are told")
        await window.page.get_by_label("How").select_option("webhook")
        await window.page.get_by_label("Email address").fill("https://hooks.example/byline")
        await window.press("Add")
        await window.page.get_by_text("never shown again").wait_for()
        await window.check_page("Where you are told")
        await window.press("Send a test note")
        await window.page.get_by_role("alert").wait_for()
        await window.press("Remove")
        await window.page.get_by_text("You are told nowhere yet.").wait_for()


@dataclass
class ChromiumPerson(Person):
    """Somebody whose chat client opens Chromium."""

    window: BrowserWindow | None = None

    @override
    async def sign_in(self, url: str) -> str:
        window = self.window
        assert window is not None
        await window.open(url)
        await window.sign_in(self.username, self.password)
        await window.check_page("Let A chat client act for you?")
        requested_url = window.page.url
        async with window.page.expect_response(requested_url) as response_info:
            await window.press("Allow")
        location = (await (await response_info.value).all_headers())["location"]
        assert BACK_AT_THE_CLIENT.match(location)
        # In a tab beside it, as this one is on its way to a client that nothing listens for.
        beside = BrowserWindow(await window.page.context.new_page(), window.origin)
        await beside.open(requested_url)
        await beside.check_page("Nothing to answer")
        return location


async def test_a_chat_client_is_let_in(browser_setup: BrowserSetup) -> None:
    newcomer = await browser_setup.installation.add_newcomer("alice")
    async with browser_setup.browser.open_window() as window:
        alice = ChromiumPerson(newcomer.username, newcomer.password, window=window)
        async with open_chat(alice, browser_setup.installation.stack.mcp_url) as client:
            assert TOOL in {tool.name for tool in (await client.list_tools()).tools}
        await window.open("/applications")
        await window.check_page("Applications")
        await window.press("Withdraw A chat client")
        await window.page.get_by_text("No application acts for you.").wait_for()
        await window.check_page("Applications")


async def test_an_account_is_connected_by_keyboard_and_without_scripts(browser_setup: BrowserSetup) -> None:
    alice = await browser_setup.installation.add_newcomer("alice")
    run_id, link = await browser_setup.park_run(alice)
    async with browser_setup.browser.open_window(java_script_enabled=False) as window:
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
        await browser_setup.confirm_at_provider(window, "alice")
        await page.get_by_role("heading", name="Kinto is connected").wait_for()
        assert (await browser_setup.wait_until_ended(alice, run_id))["notes"] == [NOTE]
        await window.open("/connections")
        await tab_to(window, page.get_by_role("button", name="Disconnect Kinto"))
        await page.keyboard.press("Space")
        await page.get_by_text("You have connected nothing yet.").wait_for()


async def tab_to(window: BrowserWindow, target: Locator) -> None:
    """Go to a control as somebody without a mouse does."""
    for _ in range(PRESSES):
        await window.page.keyboard.press("Tab")
        if await target.evaluate("each => each === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {target} within {PRESSES} presses")
