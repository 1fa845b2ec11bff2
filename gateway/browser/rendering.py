"""Render pages from templates: one layout, escaped, without scripts, and with headers that forbid framing."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gateway.browser.sessions import BrowserSession

_HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def page(
    template: str,
    *,
    title: str,
    session: BrowserSession | None = None,
    status: int = 200,
    leads_away: bool = False,
    **context: Any,
) -> HTMLResponse:
    """Render a page from a template. `may_leave_site` says that submitting its form can redirect to another site."""
    # Browsers apply form-action to every redirect that follows a submission. Where a provider or a client
    # redirects next is unknown, so a page whose form may leave this site has no form-action.
    policy = _POLICY if leads_away else f"{_POLICY}; form-action 'self'"
    html = _TEMPLATES.get_template(template).render(title=title, session=session, **context)
    return HTMLResponse(html, status, {**_HEADERS, "Content-Security-Policy": policy})


def notice(
    title: str,
    text: str,
    *,
    status: int,
    session: BrowserSession | None = None,
    link: tuple[str, str] | None = None,
) -> HTMLResponse:
    """Render a page with one message and at most one link, given as an address and its text."""
    return page("notice.html", title=title, text=text, link=link, session=session, status=status)


def on_to(address: str) -> RedirectResponse:
    """Redirect the browser with 303 See Other (RFC 9110 section 15.4.4), without caching and without a referrer."""
    return RedirectResponse(address, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def stale_form(link: str) -> HTMLResponse:
    """Render the page for a form with a wrong CSRF token: it was forged by another site, or comes from an old tab."""
    text = "The page you came from is too old, or your browser did not send its cookie. Nothing was changed."
    return notice("Please try again", text, status=403, link=(link, "Open the page again"))


def nothing_here(status: int) -> HTMLResponse:
    """Render the page for an address that does not exist, or that does not accept the request's method."""
    text = "The address may be mistyped, or what was here is gone."
    return notice("There is no such page", text, status=status, link=("/", "Go to the front page"))


def assets() -> APIRouter:
    """Create the route of the style sheet that every page links to."""
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/static/byline.css", _style_sheet, methods=["GET"])
    return router


async def _style_sheet() -> FileResponse:
    headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(_HERE / "static" / "byline.css", media_type="text/css", headers=headers)
