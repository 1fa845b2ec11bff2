"""Opens Byline's pages in Chromium and looks at them as people do; it reaches nothing beyond this machine."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from playwright.async_api import Browser, ConsoleMessage, Page, Response, async_playwright

from tests.support.foreign.node import SCRIPTS

MISSING = "The browser tests need Chromium: apt-get install chromium (on Debian and Ubuntu, as root)."
TIMEOUT_MILLISECONDS = 30_000.0
LOOKS: tuple[tuple[Literal["light", "dark"], int], ...] = (("light", 1280), ("dark", 320))
POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"

_FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A provider's page may name a font or a picture elsewhere; it is to fail at once instead of being waited for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_AXE = (SCRIPTS / "node_modules" / "axe-core" / "axe.min.js").read_text
_RUN_AXE = """async () => {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"];
  const { violations } = await axe.run(document, {
    runOnly: { type: "tag", values: tags },
    rules: { "target-size": { enabled: true } },
  });
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`));
}"""
_FIND_DEFECTS = """() => {
  const missed = [];
  const say = (holds, what) => holds || missed.push(what);
  say(document.documentElement.lang === "en", "no language");
  say(document.title.startsWith(document.querySelector("h1").innerText), `title: ${document.title}`);
  say(document.documentElement.scrollWidth <= innerWidth, `wider than ${innerWidth} px`);
  for (const inline of document.querySelectorAll("script, style, [style]")) missed.push(inline.outerHTML);
  return missed;
}"""
# Where the next Tab begins: at the top, whatever has the focus now.
_TO_THE_TOP = (
    "() => { document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex'); }"
)
_CONTROLS = """() => {
  const kinds = "a[href], button, input:not([type=hidden]), select, summary, textarea";
  const controls = [...document.querySelectorAll(kinds)].filter((each) => each.checkVisibility());
  const inGroup = (each) => each.type === "radio" && !each.checked;
  return controls.filter((each) => !each.disabled && !inGroup(each)).map((each) => {
    each.dataset.control ??= controls.indexOf(each);
    return each.dataset.control;
  });
}"""
_DESCRIBE_FOCUS = """() => {
  const at = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  const shows = at.matches(":focus-visible") && outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
  return [at.dataset.control ?? at.tagName, shows];
}"""


@dataclass
class BrowserWindow:
    """One tab of somebody's browser; what the browser complains of and what Byline fails to forbid is collected."""

    page: Page
    origin: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(TIMEOUT_MILLISECONDS)
        self.page.on("console", self._collect_message)
        self.page.on("response", self._check_response)

    async def open(self, address: str) -> None:
        """Go to an address, or to a path of Byline's."""
        await self.page.goto(address if "://" in address else f"{self.origin}{address}")

    async def press(self, name: str) -> None:
        """Click the button with this name."""
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def fill(self, **values: str) -> None:
        """Fill in fields, each by the first words of its label."""
        for label, value in values.items():
            await self.page.get_by_label(label.replace("_", " ").capitalize()).fill(value)

    async def sign_in(self, username: str, password: str) -> None:
        """Fill in the page that asks who this is."""
        await self.fill(username=username, password=password)
        await self.press("Sign in")

    async def check_page(self, heading: str) -> None:
        """Wait for the page with this heading, and look at it in every way."""
        await self.page.get_by_role("heading", level=1, name=heading, exact=True).wait_for()
        assert self.page.url.startswith(self.origin), self.page.url
        defects = await self._find_defects()
        assert not defects, "\n".join([f"On {self.page.url}, {heading}:", *defects])

    async def read_text(self) -> str:
        """What the page says."""
        return await self.page.get_by_role("main").inner_text()

    async def _find_defects(self) -> list[str]:
        defects = []
        for scheme, width in LOOKS:
            await self.page.emulate_media(color_scheme=scheme)
            await self.page.set_viewport_size({"width": width, "height": 800})
            await self.page.evaluate(_AXE())
            messages: list[str] = [
                *await self.page.evaluate(_RUN_AXE),
                *await self.page.evaluate(_FIND_DEFECTS),
            ]
            defects += [f"{scheme}, {width} px: {message}" for message in messages]
        return defects + await self._find_unreachable_controls() + self.complaints

    async def _find_unreachable_controls(self) -> list[str]:
        """What Tab fails to reach in order, or to show."""
        controls: list[str] = await self.page.evaluate(_CONTROLS)
        await self.page.evaluate(_TO_THE_TOP)
        reached_controls = []
        for _ in controls:
            await self.page.keyboard.press("Tab")
            reached_controls.append(await self.page.evaluate(_DESCRIBE_FOCUS))
        unseen = [
            f"The focus on control {control} is not to be seen."
            for control, shows in reached_controls
            if not shows
        ]
        order = [control for control, _ in reached_controls]
        return unseen if order == controls else [*unseen, f"Tab reaches {order} and not {controls}."]

    def _collect_message(self, message: ConsoleMessage) -> None:
        # That it found no page, or no leave, is for the page to say; and no page has an icon.
        place, is_failed_load = message.location["url"], message.text.startswith("Failed to load resource")
        is_expected = is_failed_load and place in {self.page.url, f"{self.origin}/favicon.ico"}
        if place.startswith(self.origin) and not is_expected:
            self.complaints.append(f"The browser says: {message.text}")

    def _check_response(self, response: Response) -> None:
        response_headers = response.headers
        if response.url.startswith(self.origin) and response_headers.get("content-type", "").startswith(
            "text/html"
        ):
            policy = response_headers.get("content-security-policy", "")
            if policy.removesuffix("; form-action 'self'") != POLICY:
                self.complaints.append(f"The policy of {response.url} is {policy!r}.")


@dataclass(frozen=True)
class Chromium:
    """A running browser; whoever opens a window in it shares no cookie with any other."""

    browser: Browser
    origin: str

    @asynccontextmanager
    async def open_window(self, **options: Any) -> AsyncIterator[BrowserWindow]:
        """A window of a person's own."""
        async with await self.browser.new_context(**options) as context:
            yield BrowserWindow(await context.new_page(), self.origin)


@asynccontextmanager
async def chromium(origin: str) -> AsyncIterator[Chromium]:
    """Run the machine's own Chromium for a Byline at this origin."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise RuntimeError(MISSING)
    async with async_playwright() as driver:
        # In its own sandbox Chromium refuses to run as root, as whom a container often runs; it opens no page but ours.
        browser = await driver.chromium.launch(
            executable_path=program, chromium_sandbox=False, args=[*_FLAGS]
        )
        async with browser:
            yield Chromium(browser, origin)
