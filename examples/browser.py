"""Simulates a person's browser over HTTP: it opens pages, follows redirects and sends forms. It runs no scripts."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpx2
from typing_extensions import override

MAX_REDIRECTS = 20


class Browser:
    """One person's browser, with its own cookies. It does not open addresses that begin with `stop_at`."""

    def __init__(self, stop_at: str | None = None) -> None:
        # Like a browser, this has to open a new connection if a server was restarted, so it keeps no connection.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(headers={"Accept": "text/html"}, timeout=30, limits=limits)
        self._stop_at = stop_at

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def open(self, url: str) -> "Page":
        """Open an address and follow its redirects."""
        return await self._go(self._client.build_request("GET", url))

    async def submit(self, form: "Form", fields: dict[str, str], came_from: str) -> "Page":
        """Send a form as a browser does."""
        if form.method == "get":
            return await self._go(self._client.build_request("GET", form.action, params=fields))
        page = urlsplit(came_from)
        headers = {"Origin": f"{page.scheme}://{page.netloc}"}
        return await self._go(self._client.build_request("POST", form.action, data=fields, headers=headers))

    async def _go(self, request: httpx2.Request) -> "Page":
        for _ in range(MAX_REDIRECTS):
            response = await self._client.send(request)
            if not response.has_redirect_location:
                return Page(self, str(response.url), response.status_code, response.text)
            target = urljoin(str(response.url), response.headers["location"])
            if self._stop_at and target.startswith(self._stop_at):
                return Page(self, target, response.status_code, "")
            request = self._client.build_request("GET", target)
        raise RuntimeError(f"More than {MAX_REDIRECTS} redirects, the last one to {request.url}")


@dataclass(frozen=True)
class Page:
    """The page that the browser shows."""

    browser: Browser
    url: str
    status: int
    text: str

    async def form(self, *, submit: str, **fields: str) -> "Page":
        """Fill in the form that has a button with this label, and press it. Raises LookupError if there is none."""
        reader = _FormReader(self.url)
        reader.feed(self.text)
        forms = [form for form in reader.forms if submit in form.buttons]
        if not forms:
            labels = [label for form in reader.forms for label in form.buttons]
            raise LookupError(f"No button {submit!r} on {self.url} ({self.status}), only {labels}")
        unknown = set(fields) - set(forms[0].fields)
        if unknown:
            raise LookupError(f"No field {unknown} in the form on {self.url}, only {set(forms[0].fields)}")
        button_fields = forms[0].buttons[submit]
        return await self.browser.submit(forms[0], forms[0].fields | fields | button_fields, self.url)


@dataclass
class Form:
    """A form on a page: the values of its fields, and what each of its buttons adds when it is pressed."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: dict[str, dict[str, str]] = field(default_factory=dict)


class _FormReader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._url = url
        self._open = False
        self._button: dict[str, str] | None = None
        self._label = ""

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = urljoin(self._url, has.get("action", ""))
            self.forms.append(Form(action, has.get("method", "get").lower()))
            self._open = True
        elif not self._open:
            return
        elif tag == "button" and has.get("type", "submit") == "submit":
            self._button = {has["name"]: has.get("value", "")} if "name" in has else {}
            self._label = ""
        elif tag == "input" and has.get("type") == "submit":
            adds = {has["name"]: has.get("value", "")} if "name" in has else {}
            self.forms[-1].buttons[has.get("value", "Submit")] = adds
        elif tag in ("input", "textarea", "select") and "name" in has:
            is_unchecked = has.get("type") in ("checkbox", "radio") and "checked" not in has
            if not is_unchecked:
                self.forms[-1].fields[has["name"]] = has.get("value", "")

    @override
    def handle_data(self, data: str) -> None:
        self._label += data

    @override
    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False
        elif tag == "button" and self._button is not None:
            self.forms[-1].buttons[" ".join(self._label.split())] = self._button
            self._button = None
